# GE-ResNet-50, ImageNet recipe B: paper table 8, top-1 76.80 %, 31.12 M parameters, 4.14 G operations. Image size:
# only 224 px, because each kernel is as large as its map.
# bash tools/dist_train.sh configs/imagenet/ge-resnet50_b256-100e_in1k.py 8     (8 x 32 images)
_base_ = 'resnet50_b256-100e_in1k.py'
model = dict(
    backbone=dict(
        plugins=[
            dict(cfg=dict(type='mmsb.GE', extent=56), position='after_conv3', stages=(True, False, False, False)),
            dict(cfg=dict(type='mmsb.GE', extent=28), position='after_conv3', stages=(False, True, False, False)),
            dict(cfg=dict(type='mmsb.GE', extent=14), position='after_conv3', stages=(False, False, True, False)),
            dict(cfg=dict(type='mmsb.GE', extent=7), position='after_conv3', stages=(False, False, False, True)),
        ]
    )
)
