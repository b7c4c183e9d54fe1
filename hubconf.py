"""Entry points of `torch.hub.load(REPOSITORY, 'sb_resnet50', pretrained=PATH_OR_URL)`; see mmsb.models.classifier."""

dependencies = ['torch', 'mmengine', 'mmcv', 'timm']

from mmsb.models.classifier import sb_resnet18, sb_resnet34, sb_resnet50, sb_resnet101, sb_resnet152  # noqa: E402, F401
