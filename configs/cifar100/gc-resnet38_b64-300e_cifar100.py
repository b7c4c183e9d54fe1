# GC-ResNet-38, CIFAR-100: GC in every block; not in the paper.
# python tools/train.py configs/cifar100/gc-resnet38_b64-300e_cifar100.py
_base_ = 'sb-gc-resnet38_b64-300e_cifar100.py'
model = dict(backbone=dict(spatial_bias=None))
