# SB-ResNet-50, stages 1 to 3, ImageNet recipe A: paper table 6, top-1 77.11 %, 25.99 M parameters.
# Recipe A is A3 of Wightman et al. 2021 (trained at 160 px, tested at 224) with batch 512 and lr 8e-3 (LAMB).
# bash tools/dist_train.sh configs/imagenet/sb-resnet50_b512-rsb-100e_in1k.py 8     (8 x 64 images)
_base_ = 'mmpretrain::resnet/resnet50_8xb256-rsb-a3-100e_in1k.py'
model = dict(backbone=dict(type='mmsb.SBResNet'))
train_dataloader = dict(batch_size=64)  # 256 -> 64
auto_scale_lr = dict(base_batch_size=512)  # 2048 -> 512
