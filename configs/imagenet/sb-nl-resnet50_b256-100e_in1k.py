# SB-NLNet-50, ImageNet recipe B: paper table 9, top-1 77.59 %, 33.35 M parameters, 7.68 G operations. NL after every
# other block of stages 2 and 3: two and three NL blocks.
# bash tools/dist_train.sh configs/imagenet/sb-nl-resnet50_b256-100e_in1k.py 8     (8 x 32 images)
_base_ = 'sb-resnet50_b256-100e_in1k.py'
model = dict(
    backbone=dict(
        plugins=[
            dict(
                cfg=dict(type='mmsb.NL'),
                position='after_block',
                stages=(False, True, True, False),
                blocks=(1, 3, 5),
            )
        ]
    )
)
