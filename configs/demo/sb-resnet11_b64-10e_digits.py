# SB-ResNet-11 on single handwritten digits: classification in a minute on 2 CPU cores, > 97 % top-1.
# python tools/train.py configs/demo/sb-resnet11_b64-10e_digits.py
_base_ = '../_base_/digits_runtime.py'
default_scope = 'mmpretrain'

dataset = dict(
    type='CustomDataset',
    data_root='data/demo/digits',
    pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
)
train_dataloader = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**dataset, data_prefix='train'),
)
val_dataloader = dict(
    batch_size=120,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, data_prefix='val'),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy')
test_evaluator = val_evaluator

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=10, mean=[60.0] * 3, std=[90.0] * 3),
    backbone=dict(type='mmsb.SBResNetCifar', depth=11, out_indices=(2,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=256, loss=dict(type='CrossEntropyLoss')),
)
train_cfg = dict(by_epoch=True, max_epochs=10, val_interval=1)
log_processor = dict(by_epoch=True)
default_hooks = dict(checkpoint=dict(interval=1, by_epoch=True))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=4e-3, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, end=3, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=3, end=10, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=64)
