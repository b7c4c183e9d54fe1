# ResNet-50, Faster R-CNN, FPN, 128 images of COCO at a short side of 320 px: for a CPU. Not in the paper.
# python tools/train.py configs/coco/faster-rcnn_r50_fpn_b4-12e_coco128-320.py
_base_ = 'faster-rcnn_sb-r50_fpn_b4-12e_coco128-320.py'
model = dict(backbone=dict(spatial_bias=None))
