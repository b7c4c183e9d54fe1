"""Bilinear attentional transform: the map is multiplied from both sides by matrices that the map itself says.

Source: Chi et al., "Non-Local Neural Networks With Grouped Bilinear Attentional Transforms", CVPR 2020; layers and
values are those of timm's `BatNonLocalAttn`, with the sizes of BAT-ResNet-50. Differs from timm: not in the function.
timm multiplies by matrices of H x H and W x W, the Kronecker products of S x S ones with the identity, which are zeros
for the most part; here the S x S ones act on the S blocks of the map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsb.models.context.library import from_library, plain_norms, reduced_channels
from mmsb.options import known_options
from mmsb.registry import MODELS


@MODELS.register_module()
class BAT(nn.Module):
    """1x1 conv to C / ratio, transform, 1x1 conv to C, each conv with norm and ReLU; dropout of channels; sum.

    The transform cuts the map into S x S blocks, mixes the S rows of blocks by one matrix and the S columns by
    another, and ends in a 1x1 conv with norm and ReLU. Each group of channels has matrices of its own: of maxima over
    the rows (columns) of blocks, through a convolution and a sigmoid, normalised to sum 1.

    Args:
        in_channels: C.
        block_size: S; height and width of the maps are multiples of it.
        groups: of channels.
        ratio: the reduction.
        drop_rate: of the dropout.

    Raises:
        ValueError: for a ratio that leaves no channel, groups that do not divide them, and maps whose sides are no
            multiples of S.
        ImportError: without timm.
    """

    @known_options
    def __init__(
        self, in_channels: int, *, block_size: int = 7, groups: int = 4, ratio: int = 2, drop_rate: float = 0.2
    ):
        super().__init__()
        inner = reduced_channels('BAT', in_channels, ratio)
        if inner % groups:
            raise ValueError(f'groups of BAT must divide its {inner} inner channels, got {groups!r}')
        block = from_library('BAT', 'timm.layers', 'BatNonLocalAttn')
        sizes = dict(block_size=block_size, groups=groups, rd_channels=inner, drop_rate=drop_rate)
        self.block = plain_norms(block(in_channels, **sizes))

    def forward(self, x: Tensor) -> Tensor:
        """Add the transformed map to `x`, (B, C, H, W)."""
        size = self.block.ba.block_size
        if x.shape[-2] % size or x.shape[-1] % size:
            raise ValueError(
                f'BAT of block_size {size} needs maps whose sides are multiples of {size}, '
                f'got {x.shape[-2]} x {x.shape[-1]}: resize the images, or build it with another block_size'
            )
        y = self.block.conv2(self._transform(self.block.conv1(x)))
        return self.block.dropout(y) + x

    def _transform(self, x: Tensor) -> Tensor:
        layers = self.block.ba
        size, groups = layers.block_size, layers.groups
        maxima = layers.conv1(x)  # (B, groups, H, W)
        rows = layers.conv_p(F.adaptive_max_pool2d(maxima, (size, 1))).unflatten(1, (groups, size, size))
        columns = layers.conv_q(F.adaptive_max_pool2d(maxima, (1, size))).unflatten(1, (groups, size, size))
        rows, columns = rows.flatten(3).sigmoid(), columns.flatten(3).sigmoid()  # (B, groups, S, S)
        rows = rows / rows.sum(3, keepdim=True)
        columns = columns / columns.sum(2, keepdim=True)
        # blocks i, j of positions u, v in groups g of channels c
        y = x.unflatten(3, (size, -1)).unflatten(2, (size, -1)).unflatten(1, (groups, -1))
        y = torch.einsum('bgki,bgciujv->bgckujv', rows, y)
        y = torch.einsum('bgckujv,bgjl->bgckulv', y, columns)
        return layers.conv2(y.flatten(5).flatten(3, 4).flatten(1, 2))
