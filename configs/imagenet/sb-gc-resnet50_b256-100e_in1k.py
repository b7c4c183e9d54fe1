# SB-GCNet-50+all, ImageNet recipe B: paper table 9, top-1 77.00 %, 28.51 M parameters, 4.14 G operations. GC in every
# block of stages 2 to 4.
# bash tools/dist_train.sh configs/imagenet/sb-gc-resnet50_b256-100e_in1k.py 8     (8 x 32 images)
_base_ = 'sb-resnet50_b256-100e_in1k.py'
model = dict(
    backbone=dict(plugins=[dict(cfg=dict(type='mmsb.GC'), stages=(False, True, True, True), position='after_conv3')])
)
