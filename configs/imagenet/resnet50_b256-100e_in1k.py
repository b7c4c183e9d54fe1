# ResNet-50, ImageNet recipe B: paper table 8, top-1 76.05 %, 25.56 M parameters, 4.11 G operations.
# bash tools/dist_train.sh configs/imagenet/resnet50_b256-100e_in1k.py 8     (8 x 32 images)
_base_ = 'sb-resnet50_b256-100e_in1k.py'
model = dict(backbone=dict(spatial_bias=None))
