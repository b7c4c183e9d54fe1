"""The bottleneck: 1x1, norm, act, 3x3, norm, act, 1x1, norm, plus the shortcut, act; and slots beside them.

Source: He et al., "Deep Residual Learning for Image Recognition", with torchvision's names.

| slot | who fills it | contract |
|---|---|---|
| conv2 | the 3x3 convolution; SK or a deformable one replaces it | (B, C, H, W) -> (B, C, H', W') |
| spatial_bias | SpatialBias, beside conv1 or conv2 | reads that conv's input, adds N maps behind its output |
| after_conv1, after_conv2, after_conv3 | anything shape-preserving (SE, GC, ...) | (B, C, H, W) -> the same |
| after_block | whole blocks (NL, BAT, ...) | (B, 4C, H, W) -> the same |

Shapes: B batch, C_in, M (the width of the 3x3 convolution) and C_out channels, N maps; H x W at the input, H1 x W1
behind conv1, H2 x W2 behind conv2.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext

import torch
from mmcv.cnn import build_conv_layer, build_norm_layer, build_plugin_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmsb.models.forms import is_compiling
from mmsb.models.spatial_bias import SpatialBias, check_not_folded, conv_of_concat, norm_for_maps
from mmsb.options import check_keys, choose

PLUGIN_POSITIONS = ('after_conv1', 'after_conv2', 'after_conv3', 'after_block')
BIAS_PARTS = ('spatial_bias', 'bias_norm', 'bias_conv')
BIAS_OPTIONS = ('num_maps', 'pool_size', 'kernel_size', 'position', 'fusion', 'pool', 'mix')


class ResidualBlock(BaseModule):
    """What residual blocks share: spatial bias, plugins, checkpointing. A subclass wires the convolutions.

    The weights that read the bias maps are stored apart (`bias_norm`, `bias_conv`): a batch norm and a ReLU act per
    channel and a convolution is linear in its input channels, so every other weight keeps torchvision's name and shape.
    """

    expansion: int  # the default
    convs: tuple[str, ...]  # in the order of the data; each but the first can read the maps beside the one before it
    norm1_name, norm2_name = 'bn1', 'bn2'  # the libraries' accessors, whatever the type of the norms

    def _add_slots(
        self,
        widths: Sequence[int],
        geometries: Sequence[dict],
        *,
        positions: Sequence[str],
        spatial_bias: Mapping | None,
        plugins: Sequence[Mapping],
        norm_cfg: dict,
        with_cp: bool,
        drop_path_rate: float,
    ) -> None:
        """Add what lies beside and between the convolutions.

        Args:
            widths: channels at the input and behind each convolution.
            geometries: arguments of each convolution.
            positions: the convolutions that spatial bias may accompany; the last of them is the default.
        """
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.with_cp = with_cp
        self.bias_position = self.bias_fusion = None
        if spatial_bias is not None:
            check_spatial_bias(spatial_bias, positions)
            options = dict(spatial_bias)
            self.bias_position = options.pop('position', positions[-1])
            self.bias_fusion = options.pop('fusion', 'concat')
            beside = self.convs.index(self.bias_position)
            self.spatial_bias = SpatialBias(widths[beside], norm_cfg=norm_cfg, **options)
            if self.bias_fusion == 'concat':  # read as the next convolution reads its input
                num_maps = self.spatial_bias.num_maps
                self.bias_norm = build_norm_layer(norm_for_maps(norm_cfg, num_maps), num_maps)[1]
                padding_mode = getattr(getattr(self, self.convs[beside + 1]), 'padding_mode', 'zeros')
                geometry = dict(geometries[beside + 1], padding_mode=padding_mode)
                self.bias_conv = nn.Conv2d(num_maps, widths[beside + 2], **geometry)

        after = {f'after_{conv}': width for conv, width in zip(self.convs, widths[1:], strict=True)}
        channels = dict(after, after_block=widths[-1])
        self.plugins, self.with_plugins = list(plugins) or None, bool(plugins)
        self.plugin_names: dict[str, list[str]] = {position: [] for position in channels}
        for plugin in plugins:
            check_plugin(plugin, channels)
            self._add_plugin(plugin['position'], dict(plugin['cfg']), channels[plugin['position']])

    def _add_plugin(self, position: str, cfg: dict, in_channels: int) -> None:
        name, layer = build_plugin_layer(cfg, in_channels=in_channels, postfix=cfg.pop('postfix', ''))
        if hasattr(self, name):
            raise ValueError(f'two plugins of one block are named {name!r}: give one of them a postfix')
        self.add_module(name, layer)
        self.plugin_names[position].append(name)

    @property
    def norm1(self) -> nn.Module:
        """The norm behind the first convolution."""
        return self.bn1

    @property
    def norm2(self) -> nn.Module:
        """The norm behind the second convolution."""
        return self.bn2

    @property
    def last_norm(self) -> nn.Module:
        """The norm behind the last convolution."""
        return getattr(self, self.convs[-1].replace('conv', 'bn'))

    def added_parts(self) -> dict[str, nn.Module]:
        """Return by name what a plain ResNet's block lacks: spatial bias, plugins, offsets of a deformable conv2."""
        plugins = [name for names in self.plugin_names.values() for name in names]
        parts = {name: module for name, module in self.named_children() if name in (*BIAS_PARTS, *plugins)}
        offsets = {'conv2.conv_offset': self.conv2.conv_offset} if hasattr(self.conv2, 'conv_offset') else {}
        return parts | offsets

    def zero_bias(self) -> None:
        """Start spatial bias without effect, at weights that it can learn from.

        Raises:
            ValueError: for 'add' without mix, which has no such weights.
        """
        if self.bias_fusion == 'concat':
            nn.init.zeros_(self.bias_conv.weight)
        elif self.bias_fusion == 'add':
            if self.spatial_bias.mix is None:
                raise ValueError(
                    "spatial_bias of fusion='add' with mix=False has no weights to start at zero effect from"
                )
            nn.init.zeros_(self.spatial_bias.mix.weight)
            nn.init.zeros_(self.spatial_bias.mix.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H2, W2).

        Raises:
            ValueError: if a batch norm was folded into a convolution whose output the bias maps are added to.
        """
        if self.with_cp and x.requires_grad and not torch.jit.is_tracing():
            # a compiled graph writes the statistics only once anyway
            options = {} if is_compiling() else dict(context_fn=lambda: (nullcontext(), _KeepStatistics(self)))
            out = checkpoint(self._residual_sum, x, use_reentrant=False, **options)
        else:
            out = self._residual_sum(x)
        return self.refine('after_block', self.relu(out))

    def make_maps(self, beside: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute the bias maps of `x`, if they belong beside the convolution that made `y` of it.

        Returns:
            `y`, to which fusion 'add' has added the maps; and with fusion 'concat' the maps for the next convolution.
        """
        if beside != self.bias_position:
            return y, None
        maps = self.spatial_bias(x, y.shape[-2:])
        if self.bias_fusion == 'add':
            return y + self.sum_maps(maps).to(y.dtype), None
        return y, self.relu(self.bias_norm(maps))

    def conv_with_maps(self, conv: nn.Module, y: Tensor, maps: Tensor | None) -> Tensor:
        """Convolve `y`, or the concatenation of `y` and `maps`."""
        return conv(y) if maps is None else conv_of_concat(conv, self.bias_conv, y, maps)

    def sum_maps(self, maps: Tensor) -> Tensor:
        """Sum the N maps; in a deployed network, scaled for each of the M channels."""
        if hasattr(self, 'bias_conv'):
            return self.bias_conv(maps)
        check_not_folded(getattr(self, self.bias_position))
        return maps.sum(1, keepdim=True)

    def refine(self, position: str, x: Tensor) -> Tensor:
        """Apply the plugins of a position."""
        for name in self.plugin_names[position]:
            x = getattr(self, name)(x)
        return x


class Bottleneck(ResidualBlock):
    """One residual block of three convolutions, with slots.

    Args:
        in_channels: C_in.
        channels: the base width C.
        expansion: C_out / C.
        stride: of the 3x3 convolution ('pytorch' style) or the first 1x1 ('caffe').
        dilation: of the 3x3 convolution.
        groups: of the 3x3 convolution.
        width: M; None: C.
        downsample: module of the shortcut, or None for the identity.
        style: 'pytorch' or 'caffe', see stride.
        spatial_bias: options of SpatialBias and `position` ('conv2' or 'conv1': the convolution that it accompanies)
            and `fusion` ('concat', or 'add': the sum of the N maps is added to every channel). None: no bias.
        conv2: dict with the type of a layer that replaces the 3x3 convolution, built with its arguments. None: none.
        plugins: dicts with `cfg` and `position`, as in the libraries' ResNets.
        conv_cfg: type of the convolutions.
        norm_cfg: type of the norms; None: batch norm.
        with_cp: recompute activations in the backward pass to save memory.
        drop_path_rate: share of samples whose residual branch is dropped in training.

    Raises:
        ValueError: for an unknown option, style or position.
    """

    expansion = 4
    convs = ('conv1', 'conv2', 'conv3')
    norm3_name = 'bn3'

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        expansion: int = expansion,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        width: int | None = None,
        downsample: nn.Module | None = None,
        style: str = 'pytorch',
        spatial_bias: Mapping | None = None,
        conv2: Mapping | None = None,
        plugins: Sequence[Mapping] = (),
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        with_cp: bool = False,
        drop_path_rate: float = 0.0,
        init_cfg: dict | list | None = None,
    ):
        super().__init__(init_cfg)
        choose('style', style, ('pytorch', 'caffe'))
        check_conv2(conv2)
        norm_cfg = dict(type='BN') if norm_cfg is None else norm_cfg
        width = channels if width is None else width
        out_channels = channels * expansion
        stride1, stride2 = (1, stride) if style == 'pytorch' else (stride, 1)
        geometry1 = dict(kernel_size=1, stride=stride1, bias=False)
        geometry2 = dict(kernel_size=3, stride=stride2, padding=dilation, dilation=dilation, bias=False)
        geometry3 = dict(kernel_size=1, bias=False)
        conv2_cfg = conv_cfg if conv2 is None else conv2
        self.in_channels, self.mid_channels, self.out_channels = in_channels, width, out_channels
        self.inplanes, self.planes, self.expansion = in_channels, channels, expansion
        self.stride, self.dilation, self.style = stride, dilation, style
        self.conv1_stride, self.conv2_stride = stride1, stride2
        self.conv_cfg, self.norm_cfg = conv_cfg, norm_cfg
        self.with_dcn = conv2 is not None and conv2['type'] in ('DCN', 'DCNv2')
        self.dcn = conv2 if self.with_dcn else None

        self.conv1 = build_conv_layer(conv_cfg, in_channels, width, **geometry1)
        self.bn1 = build_norm_layer(norm_cfg, width)[1]
        self.conv2 = build_conv_layer(conv2_cfg, width, width, groups=groups, **geometry2)
        self.bn2 = build_norm_layer(norm_cfg, width)[1]
        self.conv3 = build_conv_layer(conv_cfg, width, out_channels, **geometry3)
        self.bn3 = build_norm_layer(norm_cfg, out_channels)[1]
        self.downsample = downsample
        self._add_slots(
            (in_channels, width, width, out_channels),
            (geometry1, geometry2, geometry3),
            # beside conv1 they are read by conv2, and only a plain convolution can
            positions=('conv1', 'conv2') if conv2 is None else ('conv2',),
            spatial_bias=spatial_bias,
            plugins=plugins,
            norm_cfg=norm_cfg,
            with_cp=with_cp,
            drop_path_rate=drop_path_rate,
        )

    @property
    def norm3(self) -> nn.Module:
        """The norm behind the third convolution."""
        return self.bn3

    def _residual_sum(self, x: Tensor) -> Tensor:
        y = self.conv1(x)  # (B, M, H1, W1)
        y, maps = self.make_maps('conv1', x, y)  # maps: (B, N, H1, W1) or None
        y = self.refine('after_conv1', self.relu(self.bn1(y)))

        z = self.conv_with_maps(self.conv2, y, maps)  # (B, M, H2, W2)
        z, maps = self.make_maps('conv2', y, z)  # maps: (B, N, H2, W2) or None
        z = self.refine('after_conv2', self.relu(self.bn2(z)))

        out = self.conv_with_maps(self.conv3, z, maps)  # (B, C_out, H2, W2)
        out = self.refine('after_conv3', self.bn3(out))

        shortcut = x if self.downsample is None else self.downsample(x)  # (B, C_out, H2, W2)
        return shortcut + self.drop_path(out)


class _KeepStatistics:
    """Keeps batch norms from counting a batch twice when checkpointing recomputes it."""

    def __init__(self, module: nn.Module):
        self.norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]

    def __enter__(self) -> None:
        self.buffers = [dict(norm._buffers) for norm in self.norms]
        for norm in self.norms:  # the second pass writes into copies
            norm._buffers.update({name: v if v is None else v.clone() for name, v in norm._buffers.items()})

    def __exit__(self, *_) -> None:
        for norm, kept in zip(self.norms, self.buffers, strict=True):
            norm._buffers.update(kept)


def check_conv2(conv2: Mapping | None) -> None:
    """Check that the replacement of the 3x3 convolution names a type."""
    if conv2 is not None and (not isinstance(conv2, Mapping) or 'type' not in conv2):
        raise ValueError(f'conv2 must be a dict with a type, or None for the 3x3 convolution, got {conv2!r}')


def check_spatial_bias(options: Mapping, positions: Sequence[str] = ('conv1', 'conv2')) -> None:
    """Check the options of spatial bias that are not SpatialBias's own."""
    if not isinstance(options, Mapping):
        raise ValueError(f'spatial_bias must be a dict of options, or None for none, got {options!r}')
    check_keys('spatial_bias', options, BIAS_OPTIONS)
    choose('spatial_bias.position', options.get('position', positions[-1]), positions)
    choose('spatial_bias.fusion', options.get('fusion', 'concat'), ('concat', 'add'))


def check_plugin(plugin: Mapping, positions: Iterable[str] = PLUGIN_POSITIONS) -> None:
    """Check that a plugin has a position and a config."""
    choose('position of a plugin', plugin.get('position'), positions)
    if 'cfg' not in plugin:
        raise ValueError(f'a plugin needs a cfg: dict(cfg=dict(type=...), position=...), got {plugin!r}')
