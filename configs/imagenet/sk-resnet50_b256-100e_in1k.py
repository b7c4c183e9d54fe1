# SK-ResNet-50 (SKNet-50: 32 groups x 4d, M = 2, r = 16), ImageNet recipe B: paper table 8, top-1 77.56 %, 27.49 M
# parameters, 4.47 G operations. These are multiply-adds only, as for SB-SK-ResNet-50.
# bash tools/dist_train.sh configs/imagenet/sk-resnet50_b256-100e_in1k.py 8     (8 x 32 images)
_base_ = 'sb-sk-resnet50_b256-100e_in1k.py'
model = dict(backbone=dict(spatial_bias=None))
