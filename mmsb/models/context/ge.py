"""Gather-excite: scale each channel by a depth-wise convolution as large as the map.

Source: Hu et al., "Gather-Excite: Exploiting Feature Context in CNNs", arXiv:1810.12348, section 3.3: parametric,
global extent (GE-theta). Implemented here because timm's `GatherExcite` pads its global kernel, so it does not
gather to one value, and its parametric variants cannot be built in timm 1.0.31 (TypeError). Differs from the paper: the
convolution has a bias in addition to its batch norm, to match the parameter count in the spatial bias paper (31.12 M;
without it 31.11 M).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from mmsb.models.context.library import check_batch
from mmsb.options import known_options
from mmsb.registry import MODELS


@MODELS.register_module()
class GE(nn.Module):
    """Depth-wise convolution as large as the map, batch norm, sigmoid; times the input.

    The kernel is as large as the map, so a network with GE accepts images of one size only.

    Args:
        in_channels: C.
        extent: height and width of the maps; one integer for square maps.

    Raises:
        ValueError: if the extent is below 1, the maps have another size, or a training batch has one image.
    """

    @known_options
    def __init__(self, in_channels: int, *, extent: int | Sequence[int]):
        super().__init__()
        self.extent = (extent, extent) if isinstance(extent, int) else tuple(extent)
        if len(self.extent) != 2 or not all(isinstance(side, int) and side >= 1 for side in self.extent):
            raise ValueError(f'extent of GE must be the height and width of its maps, at least 1, got {extent!r}')
        self.conv = nn.Conv2d(in_channels, in_channels, self.extent, groups=in_channels)
        self.norm = nn.BatchNorm2d(in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of `x`, (B, C, *extent)."""
        if tuple(x.shape[-2:]) != self.extent:
            raise ValueError(
                f'GE of extent {self.extent[0]} x {self.extent[1]} takes maps of this size only, '
                f'got {x.shape[-2]} x {x.shape[-1]}: resize the images, or set another extent'
            )
        check_batch('GE', self.norm, len(x))
        return x * self.norm(self.conv(x)).sigmoid()
