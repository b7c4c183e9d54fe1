# SB-RegNetX-400MF of timm, Faster R-CNN, FPN, COCO 1x: not in the paper.
# bash tools/dist_train.sh configs/coco/faster-rcnn_sb-regnetx-400mf_fpn_1x_coco.py 2     (2 x 8 images, lr 0.02)
# To start from weights with timm's names, file or URL, and freeze as MMDetection does:
# --cfg-options model.backbone.pretrained=regnetx_004.pth model.backbone.frozen_stages=1 model.backbone.norm_eval=True
_base_ = 'faster-rcnn_sb-r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(_delete_=True, type='mmsb.TimmBackbone', model_name='regnetx_004', spatial_bias=dict()),
    neck=dict(in_channels=[32, 64, 160, 384]),
)
