# SB-NL-ResNet-38, CIFAR-100: NL after every other block of stages 2 and 3; not in the paper.
# python tools/train.py configs/cifar100/sb-nl-resnet38_b64-300e_cifar100.py
_base_ = 'sb-resnet38_b64-300e_cifar100.py'
model = dict(
    backbone=dict(
        plugins=[dict(cfg=dict(type='mmsb.NL'), position='after_block', stages=(False, True, True), blocks=(1, 3))]
    )
)
