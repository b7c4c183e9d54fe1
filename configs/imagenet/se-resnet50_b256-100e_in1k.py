# SE-ResNet-50, ImageNet recipe B: paper table 8, top-1 76.84 %, 28.09 M parameters, 4.14 G operations.
# bash tools/dist_train.sh configs/imagenet/se-resnet50_b256-100e_in1k.py 8     (8 x 32 images)
_base_ = 'sb-se-resnet50_b256-100e_in1k.py'
model = dict(backbone=dict(spatial_bias=None))
