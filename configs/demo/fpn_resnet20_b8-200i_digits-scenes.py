# The plain counterpart of fpn_sb-resnet20_b8-200i_digits-scenes.py.
# python tools/train.py configs/demo/fpn_resnet20_b8-200i_digits-scenes.py
_base_ = 'fpn_sb-resnet20_b8-200i_digits-scenes.py'
model = dict(backbone=dict(spatial_bias=None))
