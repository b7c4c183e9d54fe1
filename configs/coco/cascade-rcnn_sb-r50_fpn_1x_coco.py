# SB-ResNet-50, Cascade R-CNN, FPN, COCO 1x: paper table 12, AP 42.8 (50: 61.9, 75: 46.8, s/m/l: 25.2/46.2/55.5).
# bash tools/dist_train.sh configs/coco/cascade-rcnn_sb-r50_fpn_1x_coco.py 2     (2 x 8 images, lr 0.02)
# On 8 GPUs, with the same 16 images per step: replace 2 by 8 and add --cfg-options train_dataloader.batch_size=2
# To start from your own SB checkpoint: --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/.../epoch_100.pth
_base_ = 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py'
model = dict(backbone=dict(type='mmsb.SBResNet'))
train_dataloader = dict(batch_size=8, num_workers=8)  # 2 -> 8 on 2 GPUs instead of 8
