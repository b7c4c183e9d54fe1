# BAT-50, ImageNet recipe B: paper table 9, top-1 77.78 %, 30.23 M parameters, 5.41 G operations. Image sizes:
# 112, 224, ... px.
# bash tools/dist_train.sh configs/imagenet/bat-resnet50_b256-100e_in1k.py 8     (8 x 32 images)
_base_ = 'sb-bat-resnet50_b256-100e_in1k.py'
model = dict(backbone=dict(spatial_bias=None))
