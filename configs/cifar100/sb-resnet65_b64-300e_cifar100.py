# SB-ResNet-65, stages 1 and 2, CIFAR-100: paper table 1, top-1 error 20.77 %, 0.77 M parameters, 106.9 M operations.
# python tools/train.py configs/cifar100/sb-resnet65_b64-300e_cifar100.py
_base_ = '../_base_/cifar100_b64_300e.py'
model = dict(backbone=dict(depth=65))
