# GC-ResNet-11 on the mirror: a global mean knows all colours, which are the same in each scene, but not their places.
# python tools/train.py configs/demo/gc-resnet11_b16-250i_digits-mirror.py
_base_ = 'resnet11_b16-250i_digits-mirror.py'
model = dict(backbone=dict(plugins=[dict(cfg=dict(type='mmsb.GC'), position='after_conv3')]))
