# ResNet-50, semantic FPN, CamVid, 200 iterations of 8 crops: for a CPU. Not in the paper.
# python tools/train.py configs/camvid/fpn_r50_b8-200i_camvid-240x320.py
_base_ = 'fpn_sb-r50_b8-200i_camvid-240x320.py'
model = dict(backbone=dict(spatial_bias=None))
