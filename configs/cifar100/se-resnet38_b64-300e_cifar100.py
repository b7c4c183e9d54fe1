# SE-ResNet-38, CIFAR-100: SE in every block; not in the paper.
# python tools/train.py configs/cifar100/se-resnet38_b64-300e_cifar100.py
_base_ = 'sb-se-resnet38_b64-300e_cifar100.py'
model = dict(backbone=dict(spatial_bias=None))
