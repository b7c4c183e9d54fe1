# Reduced NLNet-50 (pool 10), ImageNet recipe B: paper table 10, top-1 77.0 %, 32.9 M parameters.
# bash tools/dist_train.sh configs/imagenet/reduced-nl-resnet50_b256-100e_in1k.py 8     (8 x 32 images)
_base_ = 'resnet50_b256-100e_in1k.py'
model = dict(
    backbone=dict(
        plugins=[
            dict(
                cfg=dict(type='mmsb.ReducedNL'),
                position='after_block',
                stages=(False, True, True, False),
                blocks=(1, 3, 5),
            )
        ]
    )
)
