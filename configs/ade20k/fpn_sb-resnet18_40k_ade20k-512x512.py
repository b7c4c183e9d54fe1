# SB-ResNet-18 of timm, semantic FPN, ADE20K 40k: not in the paper.
# bash tools/dist_train.sh configs/ade20k/fpn_sb-resnet18_40k_ade20k-512x512.py 2     (2 x 14 images, AdamW, lr 2e-4)
# To start from weights with timm's names, file or URL: --cfg-options model.backbone.pretrained=resnet18.pth
_base_ = '../_base_/ade20k_fpn_40k.py'
model = dict(
    backbone=dict(_delete_=True, type='mmsb.TimmBackbone', model_name='resnet18', spatial_bias=dict()),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
