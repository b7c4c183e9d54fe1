"""The residual block: 1x1, norm, act, 3x3, norm, act, 1x1, norm, plus the shortcut, act; and slots beside them.

Source: He et al., "Deep Residual Learning for Image Recognition", with torchvision's names.

| slot | who fills it | contract |
|---|---|---|
| conv2 | the 3x3 convolution; SK or a deformable one replaces it | (B, C, H, W) -> (B, C, H', W') |
| spatial_bias | SpatialBias, beside conv1 or conv2 | reads that conv's input, adds N maps behind its output |
| after_conv1, after_conv2, after_conv3 | anything shape-preserving (SE, GC, ...) | (B, C, H, W) -> the same |
| after_block | whole blocks (NL, BAT, ...) | (B, 4C, H, W) -> the same |
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from mmcv.cnn import build_conv_layer, build_norm_layer, build_plugin_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmsb.models.spatial_bias import SpatialBias, conv_of_concat, norm_of_maps
from mmsb.options import check_keys, choose

PLUGIN_POSITIONS = ('after_conv1', 'after_conv2', 'after_conv3', 'after_block')
BIAS_PARTS = ('spatial_bias', 'bias_norm', 'bias_conv')
BIAS_OPTIONS = ('num_maps', 'pool_size', 'kernel_size', 'position', 'fusion', 'pool', 'mix')


def _is_compiling() -> bool:
    compiler = torch.compiler if hasattr(torch.compiler, 'is_compiling') else torch._dynamo  # torch < 2.3
    return compiler.is_compiling()


class _StatisticsKept:
    """Keeps batch norms from counting a batch twice when checkpointing computes it again."""

    def __init__(self, module: nn.Module):
        self.norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]

    def __enter__(self) -> None:
        self.buffers = [dict(norm._buffers) for norm in self.norms]
        for norm in self.norms:  # the second pass writes into copies
            norm._buffers.update({name: v if v is None else v.clone() for name, v in norm._buffers.items()})

    def __exit__(self, *_) -> None:
        for norm, kept in zip(self.norms, self.buffers, strict=True):
            norm._buffers.update(kept)


class Bottleneck(BaseModule):
    """One residual block, with slots.

    The weights that read the bias maps are stored apart (`bias_norm`, `bias_conv`): a batch norm and a ReLU act per
    channel and a convolution is linear in its input channels, so every other weight keeps torchvision's name and shape.

    Args:
        in_channels: channels of the input.
        channels: C; the output has 4C channels.
        stride: of the 3x3 convolution ('pytorch' style) or the first 1x1 ('caffe').
        dilation: of the 3x3 convolution.
        groups: of the 3x3 convolution.
        width: channels of the 3x3 convolution; C by default.
        downsample: module of the shortcut, or None for the identity.
        style: 'pytorch' or 'caffe', see stride.
        spatial_bias: options of SpatialBias and `position` ('conv2' or 'conv1': the convolution that it accompanies)
            and `fusion` ('concat', or 'add': the sum of the N maps is added to every channel). None: no bias.
        conv2: dict with the type of a layer in the place of the 3x3 convolution, built with its arguments. None: none.
        plugins: dicts with `cfg` and `position`, as in the libraries' ResNets.
        with_cp: recompute activations in the backward pass to save memory.
        drop_path_rate: share of samples whose residual branch is dropped in training.

    Raises:
        ValueError: for an unknown option, style or position.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        width: int | None = None,
        downsample: nn.Module | None = None,
        style: str = 'pytorch',
        spatial_bias: dict | None = None,
        conv2: dict | None = None,
        plugins: tuple[dict, ...] = (),
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        with_cp: bool = False,
        drop_path_rate: float = 0.0,
        init_cfg: dict | list | None = None,
    ):
        super().__init__(init_cfg)
        norm_cfg = norm_cfg or dict(type='BN')
        width = width or channels
        out_channels = channels * self.expansion
        choose('style', style, ('pytorch', 'caffe'))
        stride1, stride2 = (1, stride) if style == 'pytorch' else (stride, 1)
        geometry2 = dict(kernel_size=3, stride=stride2, padding=dilation, dilation=dilation)

        self.conv1 = build_conv_layer(conv_cfg, in_channels, width, 1, stride=stride1, bias=False)
        self.bn1 = build_norm_layer(norm_cfg, width)[1]
        if conv2 is not None and (not isinstance(conv2, Mapping) or 'type' not in conv2):
            raise ValueError(f'conv2 must be a dict with a type, or None for the 3x3 convolution, got {conv2!r}')
        self.conv2 = build_conv_layer(conv2 or conv_cfg, width, width, groups=groups, bias=False, **geometry2)
        self.bn2 = build_norm_layer(norm_cfg, width)[1]
        self.conv3 = build_conv_layer(conv_cfg, width, out_channels, 1, bias=False)
        self.bn3 = build_norm_layer(norm_cfg, out_channels)[1]
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.with_cp = with_cp

        self.bias_position = self.bias_fusion = None
        if spatial_bias is not None:
            check_keys('spatial_bias', spatial_bias, BIAS_OPTIONS)
            bias_cfg = dict(spatial_bias)
            self.bias_position = choose('spatial_bias.position', bias_cfg.pop('position', 'conv2'), ('conv1', 'conv2'))
            self.bias_fusion = choose('spatial_bias.fusion', bias_cfg.pop('fusion', 'concat'), ('concat', 'add'))
            beside_conv1 = self.bias_position == 'conv1'
            if conv2 is not None:  # maps beside conv1 are read by the convolution that is no longer there
                choose('spatial_bias.position with a conv2 of another type', self.bias_position, ('conv2',))
            self.spatial_bias = SpatialBias(in_channels if beside_conv1 else width, norm_cfg=norm_cfg, **bias_cfg)
            if self.bias_fusion == 'concat':
                num_maps = self.spatial_bias.num_maps
                self.bias_norm = build_norm_layer(norm_of_maps(norm_cfg, num_maps), num_maps)[1]
                self.bias_conv = (
                    nn.Conv2d(num_maps, width, bias=False, **geometry2)
                    if beside_conv1
                    else nn.Conv2d(num_maps, out_channels, 1, bias=False)
                )

        self.plugin_names = {position: [] for position in PLUGIN_POSITIONS}
        for plugin in plugins:
            position = choose('position of a plugin', plugin.get('position'), PLUGIN_POSITIONS)
            if 'cfg' not in plugin:
                raise ValueError(f'a plugin needs a cfg: dict(cfg=dict(type=...), position=...), got {plugin!r}')
            cfg = dict(plugin['cfg'])
            plugin_channels = width if position in ('after_conv1', 'after_conv2') else out_channels
            name, layer = build_plugin_layer(cfg, in_channels=plugin_channels, postfix=cfg.pop('postfix', ''))
            if hasattr(self, name):
                raise ValueError(f'two plugins of one block are named {name!r}: give one of them a postfix')
            self.add_module(name, layer)
            self.plugin_names[position].append(name)

    def bias_modules(self) -> list[nn.Module]:
        """List the modules that a plain ResNet does not have: empty without spatial bias."""
        return [module for name, module in self.named_children() if name in BIAS_PARTS]

    def added_parts(self) -> list[str]:
        """List the names of the bias's modules, of a deformable conv2's offsets and of the plugins."""
        plugins = [name for names in self.plugin_names.values() for name in names]
        parts = [name for name, _ in self.named_children() if name in (*BIAS_PARTS, *plugins)]
        return parts + (['conv2.conv_offset'] if hasattr(self.conv2, 'conv_offset') else [])

    def silence_bias(self) -> None:
        """Let the bias start without effect, and learn from there.

        Raises:
            ValueError: for 'add' without mix, where a start at zero would never leave it.
        """
        if self.bias_fusion == 'concat':
            nn.init.zeros_(self.bias_conv.weight)
        elif self.bias_fusion == 'add':
            if self.spatial_bias.mix is None:
                raise ValueError("spatial_bias of fusion='add' with mix=False cannot start silent from a plain ResNet")
            nn.init.zeros_(self.spatial_bias.mix.weight)
            nn.init.zeros_(self.spatial_bias.mix.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, 4C, H', W').

        Raises:
            ValueError: if a batch norm was folded into a convolution that the bias maps go through.
        """
        if self.with_cp and x.requires_grad:
            # a compiled graph writes the statistics once by itself
            options = {} if _is_compiling() else dict(context_fn=lambda: (nullcontext(), _StatisticsKept(self)))
            out = checkpoint(self._residual_sum, x, use_reentrant=False, **options)
        else:
            out = self._residual_sum(x)
        return self._refine('after_block', self.relu(out))

    def _residual_sum(self, x: Tensor) -> Tensor:
        out, bias = self._fuse('conv1', x, self.conv1)
        out = self._refine('after_conv1', self.relu(self.bn1(out)))

        out, bias = self._fuse('conv2', out, self.conv2, bias)
        out = self._refine('after_conv2', self.relu(self.bn2(out)))

        out = self._refine('after_conv3', self.bn3(self._read(self.conv3, out, bias)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return shortcut + self.drop_path(out)

    def _fuse(
        self, position: str, x: Tensor, conv: nn.Module, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Convolve `x` (and the maps to read beside it); returns the output, and the maps for the next convolution."""
        y = self._read(conv, x, bias)
        if position != self.bias_position:
            return y, None
        maps = self.spatial_bias(x, y.shape[-2:])
        if self.bias_fusion == 'add':
            _refuse_folded(conv)
            return y + maps.sum(1, keepdim=True).to(y.dtype), None
        return y, self.relu(self.bias_norm(maps))

    def _read(self, conv: nn.Module, y: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None:
            return conv(y)
        _refuse_folded(conv)
        return conv_of_concat(conv, self.bias_conv, y, bias)

    def _refine(self, position: str, x: Tensor) -> Tensor:
        for name in self.plugin_names[position]:
            x = getattr(self, name)(x)
        return x


def _refuse_folded(conv: nn.Module) -> None:
    if getattr(conv, 'bias', None) is not None:  # it is built without one
        raise ValueError(
            'a batch norm was folded into a convolution beside spatial bias, whose maps it also normalises: '
            'fuse_conv_bn gives wrong outputs here'
        )


def plugins_of_block(plugins: Sequence[dict], stage: int, block: int, num_stages: int) -> list[dict]:
    """Pick the plugins that one block has; stage and block are indices.

    Raises:
        ValueError: for an unknown key or position, and for `stages` that do not have one entry a stage.
    """
    if isinstance(plugins, Mapping):
        raise ValueError(f'plugins must be a list of dicts, got {plugins!r}')
    chosen = []
    for plugin in plugins:
        check_keys('plugin', plugin, ('cfg', 'position', 'stages', 'blocks'))
        stages = plugin.get('stages')
        if stages is not None and len(stages) != num_stages:
            raise ValueError(f'stages of a plugin must have {num_stages} entries, got {tuple(stages)}')
        choose('position of a plugin', plugin.get('position'), PLUGIN_POSITIONS)
        blocks = plugin.get('blocks')
        if (stages is None or stages[stage]) and (blocks is None or block in blocks):
            chosen.append(plugin)
    return chosen
