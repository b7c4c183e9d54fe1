"""Spatial bias: a few global maps, made without attention, beside a convolution.

Source: Go & Ryu, "Spatial Bias for Attention-free Non-local Neural Networks", arXiv:2302.12505, section 3.
Differs from the authors' code: any batch size (theirs fails on 1), any height and width (theirs has one scale for both
axes), any pool size (theirs is 10).

Shapes: B batch, C input channels, H x W input size, N maps, R = N + k - 1 reduced channels, S pool size, k kernel.
"""

import math

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmsb.options import choose, known_options
from mmsb.registry import MODELS

POOLS = {'avg': F.adaptive_avg_pool2d, 'max': F.adaptive_max_pool2d}


@MODELS.register_module()
class SpatialBias(BaseModule):
    """1x1 conv to R channels, norm, act; pool to S x S; Conv1d over all S*S positions; bilinear upsampling.

    The Conv1d takes the S*S pooled positions as its channels and slides over the R reduced ones, so that each of the N
    maps sees the whole image. Its cost is fixed by S.

    Args:
        in_channels: C.
        num_maps: N, the number of bias maps.
        pool_size: S, in pixels of the pooled map.
        kernel_size: k of the Conv1d, in reduced channels. Not used without `mix`.
        pool: 'avg' or 'max' (paper, table 5).
        mix: without it there is no Conv1d and R = N ("pool only" in the paper's table 5).
        norm_cfg: norm of the reduction; None: batch norm.
        act_cfg: activation of the reduction; None: ReLU.
        init_cfg: see mmengine's BaseModule.

    Raises:
        ValueError: for sizes below 1, an unknown pool, and a mix that is no bool.
    """

    @known_options
    def __init__(
        self,
        in_channels: int,
        num_maps: int = 3,
        pool_size: int = 10,
        kernel_size: int = 3,
        pool: str = 'avg',
        mix: bool = True,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        init_cfg: dict | list | None = None,
    ):
        super().__init__(init_cfg)
        sizes = dict(in_channels=in_channels, num_maps=num_maps, pool_size=pool_size, kernel_size=kernel_size)
        for name, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f'{name} of SpatialBias must be an integer of at least 1, got {value!r}')
        self.num_maps = num_maps
        self.pool_size = pool_size
        self.pool = choose('pool of SpatialBias', pool, POOLS)
        choose('mix of SpatialBias', mix, (True, False))
        reduced = num_maps + kernel_size - 1 if mix else num_maps
        self.reduce = ConvModule(
            in_channels,
            reduced,
            kernel_size=1,
            bias=False,
            norm_cfg=norm_of_maps(norm_cfg or dict(type='BN'), reduced),
            act_cfg=act_cfg or dict(type='ReLU'),
        )
        self.mix = nn.Conv1d(pool_size**2, pool_size**2, kernel_size) if mix else None

    def forward(self, x: Tensor, out_size: tuple[int, int]) -> Tensor:
        """Make the maps of `x`, (B, C, H, W), at `out_size` (height, width): (B, N, *out_size)."""
        x = POOLS[self.pool](self.reduce(x), self.pool_size)  # (B, R, S, S)
        if self.mix is not None:
            x = self.mix(x.flatten(2).transpose(1, 2))  # (B, S*S, N)
            x = x.transpose(1, 2).unflatten(2, (self.pool_size, self.pool_size))  # (B, N, S, S)
        return F.interpolate(x, size=out_size, mode='bilinear', align_corners=False)

    def extra_repr(self) -> str:
        return f'num_maps={self.num_maps}, pool_size={self.pool_size}, pool={self.pool!r}'


def norm_of_maps(norm_cfg: dict, channels: int) -> dict:
    """Fit the config of a group norm to a few channels: the largest number of groups that divides them."""
    if norm_cfg.get('type') == 'GN':
        return {**norm_cfg, 'num_groups': math.gcd(norm_cfg['num_groups'], channels)}
    return norm_cfg


def conv_of_concat(conv: nn.Conv2d, bias_conv: nn.Conv2d, y: Tensor, bias: Tensor) -> Tensor:
    """Convolve the concatenation of `y` (B, C, H, W) and `bias` (B, N, H, W) by weights that are stored apart.

    Equal to `conv(y) + bias_conv(bias)`, but writes the wide output once.
    """
    if conv.groups > 1 or type(conv) is not nn.Conv2d:  # no one plain convolution reads both
        return conv(y) + bias_conv(bias)
    x = torch.cat([y, bias.to(y.dtype)], dim=1)
    weight = torch.cat([conv.weight, bias_conv.weight], dim=1)
    return F.conv2d(x, weight, conv.bias, conv.stride, conv.padding, conv.dilation)
