# ResNet-65, CIFAR-100: paper table 1, top-1 error 21.87 %, 0.71 M parameters, 103.3 M operations.
# python tools/train.py configs/cifar100/resnet65_b64-300e_cifar100.py
_base_ = 'sb-resnet65_b64-300e_cifar100.py'
model = dict(backbone=dict(spatial_bias=None))
