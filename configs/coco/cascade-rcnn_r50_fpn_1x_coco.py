# ResNet-50, Cascade R-CNN, FPN, COCO 1x: paper table 12, AP 41.9 (50: 60.5, 75: 45.7, s/m/l: 24.2/45.8/54.8).
# bash tools/dist_train.sh configs/coco/cascade-rcnn_r50_fpn_1x_coco.py 2     (2 x 8 images, lr 0.02)
_base_ = 'cascade-rcnn_sb-r50_fpn_1x_coco.py'
model = dict(backbone=dict(spatial_bias=None))
