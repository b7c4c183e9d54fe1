# SB-ResNet-101, stages 1 to 3, ImageNet recipe B: not in the paper.
# bash tools/dist_train.sh configs/imagenet/sb-resnet101_b256-100e_in1k.py 8     (8 x 32 images)
_base_ = 'sb-resnet50_b256-100e_in1k.py'
model = dict(backbone=dict(depth=101))
