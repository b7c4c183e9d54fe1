# The paper's CIFAR-100 recipe, after Yun et al. 2019: batch 64, 300 epochs, SGD with Nesterov momentum, lr 0.25
# multiplied by 0.1 after epochs 75, 150 and 225; random crop with padding 4, and flip.
_base_ = [
    'mmpretrain::_base_/datasets/cifar100_bs16.py',
    'mmpretrain::_base_/schedules/cifar10_bs128.py',
    'mmpretrain::_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=64, persistent_workers=True)  # 16 -> 64
val_dataloader = dict(batch_size=500, persistent_workers=True)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1, 5))
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(lr=0.25, nesterov=True))  # 0.1 -> 0.25
param_scheduler = dict(milestones=[75, 150, 225])
train_cfg = dict(max_epochs=300)  # 200 -> 300
auto_scale_lr = dict(base_batch_size=64)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='accuracy/top1'))
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmsb.SBResNetCifar', out_indices=(2,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=100,
        in_channels=256,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
