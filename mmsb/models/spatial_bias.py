"""Spatial bias: a few global maps, computed without attention, beside a convolution.

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
from torch import Tensor, fx, nn

from mmsb.models.forms import form_of
from mmsb.models.resizing import POOLS, adaptive_pool2d, upsample_bilinear
from mmsb.options import choose, known_options, positive_integer
from mmsb.registry import MODELS

KERNEL_SIZE = 3

# A graph of torch.fx calls these whole, and so has all their forms.
fx.wrap('adaptive_pool2d')
fx.wrap('upsample_bilinear')
fx.wrap('concatenate')


@MODELS.register_module()
class SpatialBias(BaseModule):
    """1x1 conv to R channels, norm, act; pool to S x S; Conv1d over all S*S positions; bilinear upsampling.

    The Conv1d takes the S*S pooled positions as its channels and slides over the R reduced ones, so each of the N maps
    sees the whole image. S alone determines its cost.

    Args:
        in_channels: C.
        num_maps: N, the number of bias maps.
        pool_size: S, in pixels of the pooled map.
        kernel_size: k of the Conv1d, in reduced channels.
        pool: 'avg' or 'max' (paper, table 5).
        mix: whether there is a Conv1d; without it R = N ("pool only" in the paper's table 5).
        norm_cfg: norm of the reduction; None: batch norm.
        act_cfg: activation of the reduction; None: ReLU.
        init_cfg: see mmengine's BaseModule.

    Raises:
        ValueError: for sizes below 1, an unknown pool, a mix that is not a bool, and a kernel_size without `mix`.
    """

    @known_options
    def __init__(
        self,
        in_channels: int,
        num_maps: int = 3,
        pool_size: int = 10,
        kernel_size: int = KERNEL_SIZE,
        pool: str = 'avg',
        mix: bool = True,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        init_cfg: dict | list | None = None,
    ):
        super().__init__(init_cfg)
        sizes = dict(in_channels=in_channels, num_maps=num_maps, pool_size=pool_size, kernel_size=kernel_size)
        for name, value in sizes.items():
            positive_integer(f'{name} of SpatialBias', value)
        choose('mix of SpatialBias', mix, (True, False))
        if not mix and kernel_size != KERNEL_SIZE:
            raise ValueError(
                f'kernel_size of SpatialBias has no effect with mix=False, got {kernel_size}: leave it out'
            )
        self.num_maps = num_maps
        self.pool_size = pool_size
        self.pool = choose('pool of SpatialBias', pool, POOLS)
        reduced = num_maps + kernel_size - 1 if mix else num_maps
        norm_cfg = dict(type='BN') if norm_cfg is None else norm_cfg
        self.reduce = Reduction(
            in_channels,
            reduced,
            kernel_size=1,
            bias=False,
            norm_cfg=norm_for_maps(norm_cfg, reduced),
            act_cfg=dict(type='ReLU') if act_cfg is None else act_cfg,
        )
        self.mix = nn.Conv1d(pool_size**2, pool_size**2, kernel_size) if mix else None

    def forward(self, x: Tensor, out_size: tuple[int, int]) -> Tensor:
        """Compute the maps of `x`, (B, C, H, W), at `out_size` (height, width): (B, N, *out_size)."""
        pooled = adaptive_pool2d(self.reduce(x), self.pool_size, self.pool)  # (B, R, S, S)
        return upsample_bilinear(self.mix_positions(pooled), out_size)

    def mix_positions(self, x: Tensor) -> Tensor:
        """Map (B, R, S, S) to (B, N, S, S); in a deployed network by one matrix, and with the norm of the maps."""
        if self.mix is None:
            return x
        if isinstance(self.mix, nn.Linear):
            return self.mix(x.flatten(1)).unflatten(1, (self.num_maps, self.pool_size, self.pool_size))
        x = self.mix(x.flatten(2).transpose(1, 2))  # (B, S*S, N)
        return x.transpose(1, 2).unflatten(2, (self.pool_size, self.pool_size))

    def extra_repr(self) -> str:
        return f'num_maps={self.num_maps}, pool_size={self.pool_size}, pool={self.pool!r}'


class Reduction(ConvModule):
    """A convolution to few channels, norm and activation; the latter two in the form 'maps' of `forms.py`."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if form_of('maps', x) == 'weights':
            x = x.to(self.conv.weight.dtype, memory_format=torch.contiguous_format)
        return self.activate(self.norm(x))


def norm_for_maps(norm_cfg: dict, channels: int) -> dict:
    """Fit the config of a ResNet's norms to the few channels of the maps.

    The groups of a group norm must divide them. Caffe's weights come with eps=0, since their norms only evaluate; those
    of the maps train, and there it would divide by zero.
    """
    norm_cfg = {key: value for key, value in norm_cfg.items() if key != 'eps' or value > 0}
    if norm_cfg.get('type') == 'GN':
        norm_cfg['num_groups'] = math.gcd(norm_cfg['num_groups'], channels)
    return norm_cfg


def conv_of_concat(conv: nn.Module, bias_conv: nn.Module | None, y: Tensor, maps: Tensor) -> Tensor:
    """Convolve the concatenation of `y` (B, C, H, W) and `maps` (B, N, H, W) with weights that are stored apart.

    This is `conv(y) + bias_conv(maps)`, in the form 'read' of `forms.py`. Two plain convolutions are fused into one,
    which writes the wide output once. Where one convolution would not do the same, the sum itself is computed: another
    type of layer, groups, a padding mode other than zeros, and hooks of the module, which fire only when it is called
    (not torch's global ones, which counters set on every module). In a deployed network `conv` alone has the weights of
    both.

    Raises:
        ValueError: if a batch norm was folded into `conv` alone.
    """
    form = form_of('read', y)
    if bias_conv is not None:
        check_not_folded(conv)
        if not (is_plain(conv) and is_plain(bias_conv)):
            return conv(y) + bias_conv(maps)
        weights, bias = (conv.weight, bias_conv.weight), bias_conv.bias
    elif form == 'concat' or not is_plain(conv):
        return conv(concatenate(y, maps))
    else:
        weights, bias = conv.weight.split([y.shape[1], maps.shape[1]], dim=1), conv.bias
    geometry = (conv.stride, conv.padding, conv.dilation)
    if form == 'sum':
        return F.conv2d(y, weights[0], bias, *geometry) + F.conv2d(maps.to(y.dtype), weights[1], None, *geometry)
    if form == 'padded':
        missing = -(y.shape[1] + maps.shape[1]) % 8
        maps, own = (F.pad(part, (0, 0, 0, 0, 0, missing)) for part in (maps, weights[1]))
        weights = (weights[0], own)
    return F.conv2d(concatenate(y, maps), torch.cat(weights, dim=1), bias, *geometry)


def concatenate(y: Tensor, maps: Tensor) -> Tensor:
    """Concatenate in the type and memory format of `y`; of mixed formats torch.cat would make NCHW."""
    maps = maps.to(y.dtype)
    if not y.is_contiguous():
        maps = maps.contiguous(memory_format=torch.channels_last)
        for part in (y, maps):
            if part.requires_grad and form_of('gradients', y) == 'copied':
                part.register_hook(dense)
    return torch.cat([y, maps], dim=1)


def dense(grad: Tensor | None) -> Tensor | None:
    """Copy a gradient that is a view of some channels."""
    return grad if grad is None else grad.contiguous(memory_format=torch.channels_last)


def check_not_folded(conv: nn.Module) -> None:
    """Check that a convolution that was built without a bias still has none."""
    if getattr(conv, 'bias', None) is not None:
        raise ValueError(
            'a batch norm was folded into a convolution beside spatial bias, whose maps it also normalises: '
            'fuse_conv_bn gives wrong outputs here, use switch_to_deploy of mmsb.models.deploy'
        )


def is_plain(conv: nn.Module) -> bool:
    """Return whether a module is nn.Conv2d without groups, other padding or hooks."""
    hooks = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
    plain = type(conv) is nn.Conv2d and conv.groups == 1 and conv.padding_mode == 'zeros'
    return plain and not any(getattr(conv, name) for name in hooks)
