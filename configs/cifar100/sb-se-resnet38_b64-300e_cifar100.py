# SB-SE-ResNet-38, CIFAR-100: SE in every block; not in the paper.
# python tools/train.py configs/cifar100/sb-se-resnet38_b64-300e_cifar100.py
_base_ = 'sb-resnet38_b64-300e_cifar100.py'
model = dict(backbone=dict(plugins=[dict(cfg=dict(type='mmsb.SE'), position='after_conv3')]))
