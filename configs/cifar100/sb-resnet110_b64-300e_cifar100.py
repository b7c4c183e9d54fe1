# SB-ResNet-110, stages 1 and 2, CIFAR-100: paper table 1, top-1 error 19.42 %, 1.28 M parameters, 178.0 M operations.
# python tools/train.py configs/cifar100/sb-resnet110_b64-300e_cifar100.py
_base_ = '../_base_/cifar100_b64_300e.py'
model = dict(backbone=dict(depth=110))
