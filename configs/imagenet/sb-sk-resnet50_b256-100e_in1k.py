# SB-SK-ResNet-50, ImageNet recipe B: paper table 8, top-1 77.93 %, 27.94 M parameters, 4.49 G operations, which fits
# the multiply-adds alone: 4497 M here (+0.2 %). Counted like the other rows, with 43 M for batch norms, pooling and
# upsampling, there are 4541 M (+1.1 %).
# bash tools/dist_train.sh configs/imagenet/sb-sk-resnet50_b256-100e_in1k.py 8     (8 x 32 images)
_base_ = 'sb-resnet50_b256-100e_in1k.py'
model = dict(backbone=dict(conv2=dict(type='mmsb.SK'), groups=32, base_width=4))
