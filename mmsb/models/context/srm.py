"""Style-based recalibration: scale each channel according to its own mean and standard deviation.

Source: Lee et al., "SRM: A Style-based Recalibration Module for Convolutional Neural Networks", arXiv:1903.10829,
section 3.1. Differs from the paper: a small constant under the square root of the standard deviation, as in the
authors' code; without it a constant channel has no finite gradient.
"""

import torch
from torch import Tensor, nn

from mmsb.models.context.library import check_batch
from mmsb.options import known_options
from mmsb.registry import MODELS

_EPS = 1e-5


@MODELS.register_module()
class SRM(nn.Module):
    """Mean and standard deviation of each channel, two weights of its own, batch norm, sigmoid; times the input.

    Four parameters per channel. The weights start at zero, so every channel is scaled by 1/2, as in the authors' code.

    Args:
        in_channels: C.

    Raises:
        ValueError: if a training batch has one image.
    """

    @known_options
    def __init__(self, in_channels: int):
        super().__init__()
        self.style_weight = nn.Parameter(torch.empty(in_channels, 2))
        self.norm = nn.BatchNorm2d(in_channels)
        self.init_weights()

    def init_weights(self) -> None:
        nn.init.zeros_(self.style_weight)
        self.norm.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of `x`, (B, C, H, W)."""
        check_batch('SRM', self.norm, len(x))
        variance, mean = torch.var_mean(x, (2, 3), correction=0)
        style = torch.stack([mean, (variance + _EPS).sqrt()], dim=2)  # (B, C, 2)
        style = (style * self.style_weight).sum(2)[:, :, None, None]  # (B, C, 1, 1)
        return x * self.norm(style).sigmoid().to(x.dtype)
