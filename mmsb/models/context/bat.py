"""Bilinear attentional transform: multiply the map from both sides by matrices predicted from it.

Source: Chi et al., "Non-Local Neural Networks With Grouped Bilinear Attentional Transforms", CVPR 2020; names and
initial values follow timm's `BatNonLocalAttn`, sizes follow BAT-ResNet-50. It computes the same function as timm's.
timm multiplies by H x H and W x W matrices that are mostly zeros: Kronecker products of S x S matrices with the
identity. Here the S x S matrices act directly on the S blocks of the map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsb.models.context.library import conv_norm_act, reduced_channels
from mmsb.options import known_options, positive_integer
from mmsb.registry import MODELS


@MODELS.register_module()
class BAT(nn.Module):
    """1x1 conv to C / ratio, transform, 1x1 conv to C, each conv with norm and ReLU; dropout of channels; sum.

    The transform divides the map into S x S blocks, mixes the S rows of blocks with one matrix and the S columns with
    another, and ends in a 1x1 conv with norm and ReLU. Each group of channels has its own matrices: a convolution and
    a sigmoid compute them from maxima over the rows (columns) of blocks, and they are normalised to sum to 1.

    Args:
        in_channels: C.
        block_size: S; the height and width of the maps must be multiples of it.
        groups: number of channel groups.
        ratio: channel reduction ratio.
        drop_rate: dropout probability.

    Raises:
        ValueError: if the ratio leaves no channel, groups does not divide the inner channels, or the sides of the
            maps are not multiples of S.
    """

    @known_options
    def __init__(
        self, in_channels: int, *, block_size: int = 7, groups: int = 4, ratio: int = 2, drop_rate: float = 0.2
    ):
        super().__init__()
        inner = reduced_channels('BAT', in_channels, ratio)
        positive_integer('block_size of BAT', block_size)
        if inner % positive_integer('groups of BAT', groups):
            raise ValueError(f'groups of BAT must divide its {inner} inner channels, got {groups!r}')
        self.block = nn.Module()  # names as in timm
        self.block.conv1 = conv_norm_act(in_channels, inner)
        self.block.ba = _Transform(inner, block_size, groups)
        self.block.conv2 = conv_norm_act(inner, in_channels)
        self.block.dropout = nn.Dropout2d(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Add the transformed map to `x`, (B, C, H, W)."""
        size = self.block.ba.block_size
        if x.shape[-2] % size or x.shape[-1] % size:
            raise ValueError(
                f'BAT of block_size {size} needs maps whose sides are multiples of {size}, '
                f'got {x.shape[-2]} x {x.shape[-1]}: resize the images, or set another block_size'
            )
        y = self.block.conv2(self.block.ba(self.block.conv1(x)))
        return self.block.dropout(y) + x


class _Transform(nn.Module):
    def __init__(self, channels: int, block_size: int, groups: int):
        super().__init__()
        self.block_size, self.groups = block_size, groups
        matrices = groups * block_size**2
        self.conv1 = conv_norm_act(channels, groups)
        self.conv_p = nn.Conv2d(groups, matrices, (block_size, 1))
        self.conv_q = nn.Conv2d(groups, matrices, (1, block_size))
        self.conv2 = conv_norm_act(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        size, groups = self.block_size, self.groups
        maxima = self.conv1(x)  # (B, groups, H, W)
        rows = self.conv_p(F.adaptive_max_pool2d(maxima, (size, 1))).unflatten(1, (groups, size, size))
        columns = self.conv_q(F.adaptive_max_pool2d(maxima, (1, size))).unflatten(1, (groups, size, size))
        rows, columns = rows.flatten(3).sigmoid(), columns.flatten(3).sigmoid()  # (B, groups, S, S)
        rows = rows / rows.sum(3, keepdim=True)
        columns = columns / columns.sum(2, keepdim=True)
        # blocks i, j of positions u, v in groups g of channels c
        y = x.unflatten(3, (size, -1)).unflatten(2, (size, -1)).unflatten(1, (groups, -1))
        y = torch.einsum('bgki,bgciujv->bgckujv', rows, y)
        y = torch.einsum('bgckujv,bgjl->bgckulv', y, columns)
        return self.conv2(y.flatten(5).flatten(3, 4).flatten(1, 2))
