# GCNet-50+all, ImageNet recipe B: paper table 9, top-1 76.93 %, 28.08 M parameters, 4.12 G operations.
# bash tools/dist_train.sh configs/imagenet/gc-resnet50_b256-100e_in1k.py 8     (8 x 32 images)
_base_ = 'sb-gc-resnet50_b256-100e_in1k.py'
model = dict(backbone=dict(spatial_bias=None))
