# SRM-ResNet-50, ImageNet recipe B: paper table 8, top-1 77.10 %, 25.62 M parameters, 4.15 G operations.
# bash tools/dist_train.sh configs/imagenet/srm-resnet50_b256-100e_in1k.py 8     (8 x 32 images)
_base_ = 'resnet50_b256-100e_in1k.py'
model = dict(backbone=dict(plugins=[dict(cfg=dict(type='mmsb.SRM'), position='after_conv3')]))
