# SB-ResNet-20, semantic FPN: distinguishes the ink of handwritten digits from that of distractors.
# python tools/train.py configs/demo/fpn_sb-resnet20_b8-200i_digits-scenes.py
_base_ = '../_base_/digits_runtime.py'
default_scope = 'mmseg'

dataset = dict(
    type='BaseSegDataset',
    data_root='data/demo/digits-scenes',
    metainfo=dict(classes=('digit', 'distractor', 'background'), palette=[[50, 170, 60], [220, 50, 40], [40, 40, 40]]),
    img_suffix='.png',
    seg_map_suffix='.png',
    reduce_zero_label=True,
)
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='images/train', seg_map_path='masks/train'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', reduce_zero_label=True),
            dict(type='PackSegInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=25,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='images/val', seg_map_path='masks/val'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', reduce_zero_label=True),
            dict(type='PackSegInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[60.0] * 3, std=[50.0] * 3, bgr_to_rgb=True, size=(128, 128), seg_pad_val=255
    ),
    backbone=dict(type='mmsb.SBResNetCifar', depth=20, strides=(2, 2, 2)),
    neck=dict(type='FPN', in_channels=[64, 128, 256], out_channels=64, num_outs=3),
    decode_head=dict(
        type='FPNHead', in_channels=[64] * 3, in_index=[0, 1, 2], feature_strides=[2, 4, 8], channels=32,
        dropout_ratio=0, num_classes=3, norm_cfg=dict(type='BN'), align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', class_weight=[1.0, 1.0, 0.1]),  # 9 of 10 pixels are background
    ),
    test_cfg=dict(mode='whole'),
)  # fmt: skip
train_cfg = dict(type='IterBasedTrainLoop', max_iters=200, val_interval=50)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-3, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=200),
]
auto_scale_lr = dict(base_batch_size=8)
