# SB-ResNet-50, semantic FPN, ADE20K 40k: paper table 13, mIoU 40.20 (aAcc 79.09, mAcc 51.81).
# bash tools/dist_train.sh configs/ade20k/fpn_sb-r50_40k_ade20k-512x512.py 2     (2 x 14 images, AdamW, lr 2e-4)
# To start from your own SB checkpoint: --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/.../epoch_100.pth
_base_ = '../_base_/ade20k_fpn_40k.py'
