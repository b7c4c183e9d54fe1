# SB-ResNet-50, Faster R-CNN, FPN, COCO 3x (12 epochs of 3 passes), short side 640 to 800 px. Not in the paper.
# bash tools/dist_train.sh configs/coco/faster-rcnn_sb-r50_fpn_ms-3x_coco.py 8     (8 x 2 images, lr 0.02)
# To start from your own SB checkpoint: --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/.../epoch_100.pth
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_ms-3x_coco.py'
model = dict(backbone=dict(type='mmsb.SBResNet'))
