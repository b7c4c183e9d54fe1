# SB-SE-ResNet-50, ImageNet recipe B: paper table 8, top-1 77.10 %, 28.52 M parameters, 4.16 G operations.
# bash tools/dist_train.sh configs/imagenet/sb-se-resnet50_b256-100e_in1k.py 8     (8 x 32 images)
_base_ = 'sb-resnet50_b256-100e_in1k.py'
model = dict(backbone=dict(plugins=[dict(cfg=dict(type='mmsb.SE'), position='after_conv3')]))
