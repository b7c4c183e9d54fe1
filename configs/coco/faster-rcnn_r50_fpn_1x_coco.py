# ResNet-50, Faster R-CNN, FPN, COCO 1x: paper table 12, AP 39.0 (50: 60.3, 75: 42.4, s/m/l: 23.0/43.2/50.0).
# bash tools/dist_train.sh configs/coco/faster-rcnn_r50_fpn_1x_coco.py 2     (2 x 8 images, lr 0.02)
_base_ = 'faster-rcnn_sb-r50_fpn_1x_coco.py'
model = dict(backbone=dict(spatial_bias=None))
