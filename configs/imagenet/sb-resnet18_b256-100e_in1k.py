# SB-ResNet-18 (basic blocks, maps beside their first convolution), stages 1 to 3, ImageNet recipe B: not in the paper.
# bash tools/dist_train.sh configs/imagenet/sb-resnet18_b256-100e_in1k.py 8     (8 x 32 images)
_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
model = dict(backbone=dict(type='mmsb.SBResNet'))
param_scheduler = dict(milestones=[30, 60, 80])  # upstream: 30, 60, 90
