# SB-BAT-50, ImageNet recipe B: paper table 9, top-1 78.06 %, 30.66 M parameters, 5.43 G operations. BAT replaces
# NL; the sides of its maps must be multiples of 7: image sizes of 112, 224, ... px.
# bash tools/dist_train.sh configs/imagenet/sb-bat-resnet50_b256-100e_in1k.py 8     (8 x 32 images)
_base_ = 'sb-resnet50_b256-100e_in1k.py'
model = dict(
    backbone=dict(
        plugins=[
            dict(
                cfg=dict(type='mmsb.BAT'),
                position='after_block',
                stages=(False, True, True, False),
                blocks=(1, 3, 5),
            )
        ]
    )
)
