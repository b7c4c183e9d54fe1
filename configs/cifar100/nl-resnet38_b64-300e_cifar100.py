# NL-ResNet-38, CIFAR-100: NL after every other block of stages 2 and 3; not in the paper.
# python tools/train.py configs/cifar100/nl-resnet38_b64-300e_cifar100.py
_base_ = 'sb-nl-resnet38_b64-300e_cifar100.py'
model = dict(backbone=dict(spatial_bias=None))
