"""Convolutional block attention: scale the channels, then the positions, based on means and maxima.

Source: Woo et al., "CBAM: Convolutional Block Attention Module", arXiv:1807.06521, equations 2 and 3; the block is
timm's `CbamModule`. Differs from the paper: a batch norm after the 7x7 convolution, as in the authors' code.
"""

from torch import Tensor, nn

from mmsb.models.context.library import plain_norms, reduced_channels
from mmsb.options import known_options
from mmsb.registry import MODELS


@MODELS.register_module()
class CBAM(nn.Module):
    """Channels: global mean and maximum, each through 1x1 conv to C / ratio, ReLU, 1x1 conv to C; sigmoid of the sum.
    Positions: mean and maximum over the channels, 7x7 conv of both, norm, sigmoid.

    Args:
        in_channels: C.
        ratio: channel reduction ratio.

    Raises:
        ValueError: if the ratio leaves no channel.
    """

    @known_options
    def __init__(self, in_channels: int, *, ratio: int = 16):
        from timm.layers.cbam import CbamModule  # importing timm takes seconds

        super().__init__()
        reduced = reduced_channels('CBAM', in_channels, ratio)
        self.block = plain_norms(CbamModule(in_channels, rd_channels=reduced))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels and positions of `x`, (B, C, H, W)."""
        return self.block(x)
