# ResNet-110, CIFAR-100: paper table 1, top-1 error 20.59 %, 1.17 M parameters, 171.9 M operations.
# python tools/train.py configs/cifar100/resnet110_b64-300e_cifar100.py
_base_ = 'sb-resnet110_b64-300e_cifar100.py'
model = dict(backbone=dict(spatial_bias=None))
