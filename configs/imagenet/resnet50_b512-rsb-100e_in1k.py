# ResNet-50, ImageNet recipe A (see sb-resnet50_b512-rsb-100e_in1k.py): its plain counterpart; not in the paper.
# bash tools/dist_train.sh configs/imagenet/resnet50_b512-rsb-100e_in1k.py 8     (8 x 64 images)
_base_ = 'sb-resnet50_b512-rsb-100e_in1k.py'
model = dict(backbone=dict(spatial_bias=None))
