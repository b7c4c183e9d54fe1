# ResNet-38, CIFAR-100: paper table 1, top-1 error 23.98 %, 0.43 M parameters, 62.2 M operations.
# python tools/train.py configs/cifar100/resnet38_b64-300e_cifar100.py
_base_ = 'sb-resnet38_b64-300e_cifar100.py'
model = dict(backbone=dict(spatial_bias=None))
