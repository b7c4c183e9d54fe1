# SB-ResNet-50, semantic FPN, CamVid, 200 iterations of 8 crops: for a CPU. Not in the paper.
# python tools/train.py configs/camvid/fpn_sb-r50_b8-200i_camvid-240x320.py
# Data: data/camvid/{images,annotations}/{train,val}/, 480 x 360 px, masks (.png) of 0 to 10, 11 for void.
# Of other plain weights than torchvision's: --cfg-options model.backbone.init_cfg.checkpoint=FILE
_base_ = '../_base_/camvid_fpn_200i.py'
