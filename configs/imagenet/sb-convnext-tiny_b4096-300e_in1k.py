# SB-ConvNeXt-T of timm, stages 1 to 3, ConvNeXt's recipe: not in the paper.
# bash tools/dist_train.sh configs/imagenet/sb-convnext-tiny_b4096-300e_in1k.py 32     (32 x 128 images)
# To start from weights with timm's names, file or URL: --cfg-options model.backbone.pretrained=convnext_tiny.pth
# Differs from ConvNeXt: no layer norm behind the global average pool.
_base_ = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'
model = dict(
    backbone=dict(
        _delete_=True, type='mmsb.TimmBackbone', model_name='convnext_tiny', spatial_bias=dict(), out_indices=(3,),
        options=dict(drop_path_rate=0.1),
    ),
    neck=dict(type='GlobalAveragePooling'),
)  # fmt: skip
