# The plain counterpart of faster-rcnn_sb-r50c16_fpn_b16-8e_digits-scenes.py.
# python tools/train.py configs/demo/faster-rcnn_r50c16_fpn_b16-8e_digits-scenes.py
_base_ = 'faster-rcnn_sb-r50c16_fpn_b16-8e_digits-scenes.py'
model = dict(backbone=dict(spatial_bias=None))
