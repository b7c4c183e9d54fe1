# Plain ResNet-20 on the long-range cue: the patch that determines the class lies outside its receptive field (25 px).
# python tools/train.py configs/demo/resnet20_b16-250i_digits-cue.py
_base_ = 'sb-resnet20_b16-250i_digits-cue.py'
model = dict(backbone=dict(spatial_bias=None))
