# SB-ResNet-20 on the long-range cue: spatial bias carries the patch's colour to the opposite corner.
# python tools/train.py configs/demo/sb-resnet20_b16-250i_digits-cue.py
_base_ = '../_base_/digits_runtime.py'
default_scope = 'mmseg'

classes = ('red', 'green', 'blue', 'yellow')
dataset = dict(
    type='BaseSegDataset',
    data_root='data/demo/digits-cue',
    metainfo=dict(classes=classes, palette=[[220, 50, 40], [50, 170, 60], [50, 90, 220], [225, 200, 40]]),
    img_suffix='.png',
    seg_map_suffix='.png',
)
train_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='images/train', seg_map_path='masks/train'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
    ),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='images/val', seg_map_path='masks/val'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[60.0] * 3, std=[40.0] * 3, bgr_to_rgb=True, size=(64, 64), seg_pad_val=255
    ),
    backbone=dict(type='mmsb.SBResNetCifar', depth=20, out_indices=(2,)),
    decode_head=dict(
        type='FCNHead', num_convs=0, concat_input=False, in_channels=256, in_index=0, channels=256, dropout_ratio=0,
        num_classes=4, align_corners=False, loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    ),
    test_cfg=dict(mode='whole'),
)  # fmt: skip
default_hooks = dict(logger=dict(interval=5))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=250, val_interval=25)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-3, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=250),
]
