# ResNet-50, semantic FPN, ADE20K 40k: paper table 13, mIoU 38.04 (aAcc 77.82, mAcc 48.5).
# bash tools/dist_train.sh configs/ade20k/fpn_r50_40k_ade20k-512x512.py 2     (2 x 14 images, AdamW, lr 2e-4)
_base_ = 'fpn_sb-r50_40k_ade20k-512x512.py'
model = dict(backbone=dict(spatial_bias=None))
