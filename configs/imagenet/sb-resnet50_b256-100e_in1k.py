# SB-ResNet-50, stages 1 to 3, ImageNet recipe B: paper table 8, top-1 76.86 %, 25.99 M parameters, 4.13 G operations.
# bash tools/dist_train.sh configs/imagenet/sb-resnet50_b256-100e_in1k.py 8     (8 x 32 images)
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
model = dict(backbone=dict(type='mmsb.SBResNet'))
param_scheduler = dict(milestones=[30, 60, 80])  # upstream: 30, 60, 90
