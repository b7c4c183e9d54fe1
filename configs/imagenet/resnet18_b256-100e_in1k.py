# ResNet-18, ImageNet recipe B: not in the paper.
# bash tools/dist_train.sh configs/imagenet/resnet18_b256-100e_in1k.py 8     (8 x 32 images)
_base_ = 'sb-resnet18_b256-100e_in1k.py'
model = dict(backbone=dict(spatial_bias=None))
