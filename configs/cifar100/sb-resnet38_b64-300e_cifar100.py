# SB-ResNet-38, stages 1 and 2, CIFAR-100: paper table 1, top-1 error 22.44 %, 0.46 M parameters, 64.2 M operations.
# python tools/train.py configs/cifar100/sb-resnet38_b64-300e_cifar100.py
_base_ = '../_base_/cifar100_b64_300e.py'
