"""Squeeze-and-excitation: each channel is scaled by what two linear layers make of the means of all channels.

Source: Hu et al., "Squeeze-and-Excitation Networks", arXiv:1709.01507, equations 2 to 4; the block is MMPretrain's
`SELayer`.
"""

from torch import Tensor, nn

from mmsb.models.context.library import from_library, reduced_channels
from mmsb.options import known_options
from mmsb.registry import MODELS


@MODELS.register_module()
class SE(nn.Module):
    """Global mean, 1x1 conv to C / ratio, ReLU, 1x1 conv to C, sigmoid; times the input.

    Args:
        in_channels: C.
        ratio: the reduction.

    Raises:
        ValueError: for a ratio that leaves no channel.
        ImportError: without MMPretrain.
    """

    @known_options
    def __init__(self, in_channels: int, *, ratio: int = 16):
        super().__init__()
        squeezed = reduced_channels('SE', in_channels, ratio)
        self.block = from_library('SE', 'mmpretrain.models.utils', 'SELayer')(in_channels, squeezed)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of `x`, (B, C, H, W)."""
        return self.block(x)
