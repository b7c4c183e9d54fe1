# SB-ResNet-11 on the mirror: spatial bias carries each patch's colour to the mirrored place, 33 px or more away.
# python tools/train.py configs/demo/sb-resnet11_b16-250i_digits-mirror.py
_base_ = 'sb-resnet20_b16-250i_digits-cue.py'

data = dict(dataset=dict(data_root='data/demo/digits-mirror'))
train_dataloader = data
val_dataloader = data
test_dataloader = data

model = dict(backbone=dict(depth=11, spatial_bias=dict(pool_size=8)))
optim_wrapper = dict(optimizer=dict(lr=6e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, end=20),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=20, end=250),
]
