# A narrow SB-ResNet-50 (16 base channels), Faster R-CNN, FPN: finds handwritten digits among lines and distractors.
# python tools/train.py configs/demo/faster-rcnn_sb-r50c16_fpn_b16-8e_digits-scenes.py
_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py', '../_base_/digits_runtime.py']
default_scope = 'mmdet'

dataset = dict(
    type='CocoDataset',
    data_root='data/demo/digits-scenes',
    metainfo=dict(classes=tuple('0123456789')),
)
train_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **dataset,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='images/train/'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape')),
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
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='images/val/'),
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale_factor=1.0),  # records the scale of the boxes in the sample
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric', ann_file='data/demo/digits-scenes/annotations/instances_val.json', metric='bbox'
)
test_evaluator = val_evaluator

model = dict(
    data_preprocessor=dict(mean=[60.0] * 3, std=[50.0] * 3),
    backbone=dict(
        type='mmsb.SBResNet', base_channels=16, stem_channels=16, frozen_stages=-1, norm_eval=False, init_cfg=None
    ),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64, num_outs=4),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[6], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, featmap_strides=[4, 8, 16]),
        bbox_head=dict(in_channels=64, fc_out_channels=128, num_classes=10),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=100), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(max_per_img=50)),
)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=8, val_interval=2)
log_processor = dict(by_epoch=True)
default_hooks = dict(checkpoint=dict(interval=1, by_epoch=True))
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-3, weight_decay=1e-4), clip_grad=dict(max_norm=10)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', begin=0, end=8, T_max=8, convert_to_iter_based=True),
]
