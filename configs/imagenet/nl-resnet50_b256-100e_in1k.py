# NLNet-50, ImageNet recipe B: paper table 9, top-1 77.25 %, 32.92 M parameters, 7.66 G operations.
# bash tools/dist_train.sh configs/imagenet/nl-resnet50_b256-100e_in1k.py 8     (8 x 32 images)
_base_ = 'sb-nl-resnet50_b256-100e_in1k.py'
model = dict(backbone=dict(spatial_bias=None))
