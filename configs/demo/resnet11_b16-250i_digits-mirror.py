# Plain ResNet-11 on the mirror: every patch lies outside the receptive field of its digit.
# python tools/train.py configs/demo/resnet11_b16-250i_digits-mirror.py
_base_ = 'sb-resnet11_b16-250i_digits-mirror.py'
model = dict(backbone=dict(spatial_bias=None))
