"""Efficient channel attention: scale each channel by a short convolution along the channel means.

Source: Wang et al., "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks", arXiv:1910.03151,
equations 9 and 12; the block is timm's `EcaModule`.
"""

from torch import Tensor, nn

from mmsb.options import known_options
from mmsb.registry import MODELS


@MODELS.register_module()
class ECA(nn.Module):
    """Global mean, Conv1d along the channels, sigmoid; times the input. The kernel size grows with the logarithm of C.

    Args:
        in_channels: C.
    """

    @known_options
    def __init__(self, in_channels: int):
        from timm.layers import EcaModule  # importing timm takes seconds

        super().__init__()
        self.block = EcaModule(in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of `x`, (B, C, H, W)."""
        return self.block(x)
