# SB-ResNet-50, Faster R-CNN, FPN, 128 images of COCO at a short side of 320 px: for a CPU. Not in the paper.
# python tools/train.py configs/coco/faster-rcnn_sb-r50_fpn_b4-12e_coco128-320.py
# Data: data/coco128/{annotations/instances_{train,val}2017.json,train2017/,val2017/}
# To start from plain weights other than torchvision's: --cfg-options model.backbone.init_cfg.checkpoint=FILE
_base_ = '../_base_/coco128_faster-rcnn_12e.py'
model = dict(backbone=dict(type='mmsb.SBResNet'))
