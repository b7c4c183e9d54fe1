"""Squeeze-and-excitation: scale each channel by the output of two linear layers on the means of all channels.

Source: Hu et al., "Squeeze-and-Excitation Networks", arXiv:1709.01507, equations 2 to 4; names and initial values
follow MMPretrain's `SELayer`.
"""

from collections import OrderedDict

from mmcv.cnn import ConvModule
from torch import Tensor, nn

from mmsb.models.context.library import reduced_channels
from mmsb.options import known_options
from mmsb.registry import MODELS


@MODELS.register_module()
class SE(nn.Module):
    """Global mean, 1x1 conv to C / ratio, ReLU, 1x1 conv to C, sigmoid; times the input.

    Args:
        in_channels: C.
        ratio: channel reduction ratio.

    Raises:
        ValueError: if the ratio leaves no channel.
    """

    @known_options
    def __init__(self, in_channels: int, *, ratio: int = 16):
        super().__init__()
        squeezed = reduced_channels('SE', in_channels, ratio)
        conv1 = ConvModule(in_channels, squeezed, 1)
        conv2 = ConvModule(squeezed, in_channels, 1, act_cfg=dict(type='Sigmoid'))
        self.block = nn.Sequential(OrderedDict(pool=nn.AdaptiveAvgPool2d(1), conv1=conv1, conv2=conv2))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of `x`, (B, C, H, W)."""
        return x * self.block(x)
