# SB-ResNet-50, Mask R-CNN, FPN, COCO 1x. Not in the paper.
# bash tools/dist_train.sh configs/coco/mask-rcnn_sb-r50_fpn_1x_coco.py 8     (8 x 2 images, lr 0.02)
# To start from your own SB checkpoint: --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/.../epoch_100.pth
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
model = dict(backbone=dict(type='mmsb.SBResNet'))
