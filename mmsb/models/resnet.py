"""ResNets with spatial bias: stem, stages, freezing, warm start.

Source: He et al., "Deep Residual Learning for Image Recognition"; Go & Ryu, arXiv:2302.12505. Without spatial bias the
networks are torchvision's, name for name and bit for bit. ImageNet and CIFAR differ in stem and stage table only.
"""

import copy
import importlib
import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from mmcv.cnn import build_conv_layer, build_norm_layer
from mmengine.model import BaseModule, Sequential, constant_init
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsb.models.bottleneck import BIAS_OPTIONS, BIAS_PARTS, Bottleneck, plugins_of_block
from mmsb.models.weights import check_pretrained, is_pretrained, parts_that_are_new, take_over
from mmsb.options import check_keys, choose, known_options
from mmsb.registry import MODELS

PAPER_BIAS = MappingProxyType({})  # the defaults are the operator's own
DCN_OPTIONS = ('type', 'deform_groups', 'deformable_groups', 'im2col_step', 'fallback_on_stride')
PAPER_STAGES = (True, True, True, False)
FRESH_INIT = (
    dict(type='Kaiming', layer='Conv2d'),
    dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
)


def check_dcn(
    dcn: Mapping,
    stage_with_dcn: Sequence[bool],
    num_stages: int,
    *,
    conv2: dict | None,
    conv_cfg: dict | None,
    groups: int,
) -> None:
    """Check the options of deformable convolutions, and register their types.

    Raises:
        ValueError: for an unknown type or option, `stage_with_dcn` without one bool a stage or without effect, and
            other options that cannot be combined with `dcn`.
    """
    if not isinstance(dcn, Mapping):
        raise ValueError(f'dcn must be a dict of options, or None for none, got {dcn!r}')
    check_keys('dcn', dcn, DCN_OPTIONS)
    choose('dcn.type', dcn.get('type'), ('DCN', 'DCNv2'))
    if not isinstance(stage_with_dcn, (tuple, list)) or len(stage_with_dcn) != num_stages:
        raise ValueError(f'stage_with_dcn must have one entry for each of the {num_stages} stages: {stage_with_dcn!r}')
    if not any(stage_with_dcn):
        raise ValueError(f'dcn has no effect with stage_with_dcn={stage_with_dcn!r}: name a stage, or set dcn=None')
    for name, value in dict(conv2=conv2, conv_cfg=conv_cfg).items():
        if value is not None:
            raise ValueError(f'{name} must be None with dcn, got {value!r}')
    if dcn.get('fallback_on_stride') and groups > 1:
        raise ValueError(f'dcn.fallback_on_stride must be False with groups={groups}: mmdet ignores it there')
    importlib.import_module('mmcv.ops')  # registers DCN and DCNv2


@MODELS.register_module()
class SBResNet(BaseModule):
    """ResNet of bottlenecks with spatial bias: replaces `ResNet` in a config of any of the libraries.

    Freezing (`frozen_stages`, `norm_eval`) is about weights that have been trained. A spatial bias or a plugin that a
    warm start from a plain ResNet left untrained is spared by both: it learns, and its batch norms gather statistics,
    in frozen stages too. What came with the checkpoint is frozen like everything else.

    Args:
        depth: 50, 101 or 152.
        spatial_bias: what differs from the paper's operator: num_maps (3), pool_size (10), kernel_size (3), position
            ('conv2' or 'conv1'), fusion ('concat' or 'add'), pool ('avg' or 'max'), mix (True). None: a plain ResNet.
        sb_stages: which stages have it; one bool a stage.
        plugins: dicts with `cfg`, `position` ('after_conv1', 'after_conv2', 'after_conv3', 'after_block') and,
            optionally, `stages` (one bool a stage) and `blocks` (indices of the blocks in each of these stages).
        conv2: dict with the type of a layer in the place of each 3x3 convolution: mmsb.SK. None: none.
        dcn: deformable 3x3 convolutions, as in mmdet: dict(type='DCN' or 'DCNv2', deform_groups=1,
            fallback_on_stride=False). The last option keeps the plain convolution in the first deformable block, which
            is what mmdet makes of it. Offsets start at zero. None: none.
        stage_with_dcn: which stages have them; one bool a stage.
        groups: of the 3x3 convolutions, as in ResNeXt.
        base_width: channels a group at 64 base channels; used if groups > 1.
        in_channels: channels of the image.
        stem_channels: channels of the stem; `base_channels` by default.
        base_channels: C of the first stage.
        num_stages: number of stages, 1 to 4.
        strides: stride of each stage.
        dilations: dilation of each stage.
        out_indices: stages whose output is returned; None: all.
        style: 'pytorch' (stride in the 3x3 convolution) or 'caffe' (in the first 1x1).
        deep_stem: three 3x3 convolutions instead of one 7x7.
        avg_down: average pool before the 1x1 convolution of a strided shortcut.
        frozen_stages: stages to freeze, with the stem: 0 the stem alone, -1 nothing.
        conv_cfg: convolution type.
        norm_cfg: norm type.
        norm_eval: keep batch norms at their running statistics in training.
        with_cp: recompute activations in the backward pass to save memory.
        multi_grid: dilations of the blocks of the last stage (segmentation).
        contract_dilation: halve the dilation of the first block of a dilated stage (segmentation).
        zero_init_residual: start each residual branch at zero.
        drop_path_rate: share of samples whose residual branch is dropped in training, in the last block; it rises
            from 0 in the first.
        pretrained: short for `init_cfg=dict(type='Pretrained', checkpoint=...)` (segmentation).
        init_cfg: initialisation; `Pretrained` takes a checkpoint of a plain ResNet or of an SBResNet: local file, URL,
            'torchvision://resnet50'; of the backbone or of a whole model (`prefix` names the part; 'backbone' is
            found by itself).

    Raises:
        ValueError: for an unknown option or value, and for tuples that do not have one entry a stage.
    """

    stage_table: Mapping[int, tuple[int, ...]] = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
    bias_defaults: Mapping = PAPER_BIAS

    @known_options
    def __init__(
        self,
        depth: int = 50,
        spatial_bias: Mapping | None = PAPER_BIAS,
        sb_stages: Sequence[bool] = PAPER_STAGES,
        plugins: Sequence[dict] | None = None,
        *,
        conv2: dict | None = None,
        dcn: dict | None = None,
        stage_with_dcn: Sequence[bool] = (False, False, False, False),
        groups: int = 1,
        base_width: int = 4,
        in_channels: int = 3,
        stem_channels: int | None = None,
        base_channels: int = 64,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] | None = None,
        style: str = 'pytorch',
        deep_stem: bool = False,
        avg_down: bool = False,
        frozen_stages: int = -1,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        multi_grid: Sequence[int] | None = None,
        contract_dilation: bool = False,
        zero_init_residual: bool = True,
        drop_path_rate: float = 0.0,
        pretrained: str | None = None,
        init_cfg: dict | list | None = None,
    ):
        init_cfgs = [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg or ())
        if not all(isinstance(cfg, dict) and 'type' in cfg for cfg in init_cfgs):
            raise ValueError(f'init_cfg must be a dict with a type, or a list of such dicts, got {init_cfg!r}')
        if pretrained is not None:
            init_cfgs.append(dict(type='Pretrained', checkpoint=pretrained))
        checkpoints = [cfg for cfg in init_cfgs if is_pretrained(cfg)]
        for cfg in checkpoints:
            check_pretrained(cfg)
        super().__init__([cfg for cfg in init_cfgs if cfg not in checkpoints] or list(FRESH_INIT))

        blocks = self.blocks_per_stage(depth)[: choose('num_stages', num_stages, range(1, 5))]
        if sb_stages is PAPER_STAGES:
            sb_stages = sb_stages[:num_stages]  # a ResNet without its last stage: a C4 detector
        for name, values in dict(sb_stages=sb_stages, strides=strides, dilations=dilations).items():
            if not isinstance(values, (tuple, list)) or len(values) != num_stages:
                raise ValueError(f'{name} must have one entry for each of the {num_stages} stages, got {values!r}')
        if dcn is not None:
            check_dcn(dcn, stage_with_dcn, num_stages, conv2=conv2, conv_cfg=conv_cfg, groups=groups)
        if multi_grid is not None and len(multi_grid) != blocks[-1]:
            raise ValueError(f'multi_grid must have {blocks[-1]} entries, got {tuple(multi_grid)}')
        if spatial_bias is not None:
            if not isinstance(spatial_bias, Mapping):
                raise ValueError(f'spatial_bias must be a dict of options, or None for none, got {spatial_bias!r}')
            check_keys('spatial_bias', spatial_bias, BIAS_OPTIONS)
            spatial_bias = {**self.bias_defaults, **spatial_bias}
        if isinstance(out_indices, int):
            raise ValueError(f'out_indices must be a tuple of stages, got {out_indices!r}')
        self.out_indices = tuple(range(num_stages) if out_indices is None else out_indices)
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must be at least 0 and below 1, got {drop_path_rate!r}')
        for index in self.out_indices:
            choose('each of out_indices', index, range(num_stages))
        self.frozen_stages = choose('frozen_stages', frozen_stages, range(-1, num_stages + 1))
        self.depth = depth
        self.conv_cfg = conv_cfg
        self.norm_cfg = norm_cfg or dict(type='BN', requires_grad=True)
        self.norm_eval = norm_eval
        self.avg_down = avg_down
        self.zero_init_residual = zero_init_residual

        in_channels = self._make_stem(in_channels, stem_channels or base_channels, deep_stem)
        depth_rates = iter(drop_path_rate * k / max(1, sum(blocks) - 1) for k in range(sum(blocks)))
        for i in range(num_stages):
            grid = [dilations[i]] * blocks[i]
            if multi_grid is not None and i == num_stages - 1:
                grid = multi_grid
            elif contract_dilation and dilations[i] > 1:
                grid[0] = dilations[i] // 2
            conv2s = [conv2] * blocks[i]
            if dcn is not None and stage_with_dcn[i]:
                conv2s = [{key: dcn[key] for key in dcn if key != 'fallback_on_stride'}] * blocks[i]
                if dcn.get('fallback_on_stride') and not any(stage_with_dcn[:i]):
                    conv2s[0] = None  # mmdet's first block pops the option from the dict that it shares with the others
            channels = base_channels * 2**i
            stage = self._make_stage(
                in_channels,
                channels,
                stride=strides[i],
                dilations=grid,
                plugins=[plugins_of_block(plugins or (), i, j, num_stages) for j in range(blocks[i])],
                conv2s=conv2s,
                groups=groups,
                width=int(channels * base_width / base_channels) * groups if groups > 1 else channels,
                style=style,
                spatial_bias=spatial_bias if sb_stages[i] else None,
                with_cp=with_cp,
                drop_path_rates=list(itertools.islice(depth_rates, blocks[i])),
            )
            self.add_module(f'layer{i + 1}', stage)
            in_channels = channels * Bottleneck.expansion
        self.num_stages = num_stages

        self.checkpoint = checkpoints[-1] if checkpoints else None
        self.new_parts = parts_that_are_new(self.added_parts(), self.checkpoint) if checkpoints else []
        self._freeze()
        self.train()

    @classmethod
    def blocks_per_stage(cls, depth: int) -> tuple[int, ...]:
        return cls.stage_table[choose('depth', depth, cls.stage_table)]

    def _make_stem(self, in_channels: int, channels: int, deep: bool) -> int:
        def conv(c_in: int, c_out: int, kernel_size: int, stride: int = 1) -> nn.Module:
            padding = kernel_size // 2
            return build_conv_layer(self.conv_cfg, c_in, c_out, kernel_size, stride=stride, padding=padding, bias=False)

        if deep:
            widths = (channels // 2, channels // 2, channels)
            layers: list[nn.Module] = []
            for width, stride in zip(widths, (2, 1, 1), strict=True):
                norm = build_norm_layer(self.norm_cfg, width)[1]
                layers += [conv(in_channels, width, 3, stride), norm, nn.ReLU(inplace=True)]
                in_channels = width
            self.stem = nn.Sequential(*layers)
        else:
            self.conv1 = conv(in_channels, channels, 7, stride=2)
            self.bn1 = build_norm_layer(self.norm_cfg, channels)[1]
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        return channels

    def _make_stage(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        dilations: Sequence[int],
        plugins: list[list[dict]],
        conv2s: list[dict | None],
        drop_path_rates: list[float],
        **block,
    ) -> Sequential:
        out_channels = channels * Bottleneck.expansion
        downsample = None
        if stride != 1 or in_channels != out_channels:
            pool = [nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)]
            conv_stride = 1 if self.avg_down else stride
            downsample = nn.Sequential(
                *(pool if self.avg_down else []),
                build_conv_layer(self.conv_cfg, in_channels, out_channels, 1, stride=conv_stride, bias=False),
                build_norm_layer(self.norm_cfg, out_channels)[1],
            )
        block.update(conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg)
        blocks = [
            Bottleneck(
                in_channels if j == 0 else out_channels,
                channels,
                stride=stride if j == 0 else 1,
                dilation=dilation,
                downsample=downsample if j == 0 else None,
                plugins=plugins[j],
                conv2=conv2s[j],
                drop_path_rate=drop_path_rates[j],
                **block,
            )
            for j, dilation in enumerate(dilations)
        ]
        return Sequential(*blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images, (B, in_channels, H, W), to one feature map for each of `out_indices`."""
        x = self.stem(x) if hasattr(self, 'stem') else self.relu(self.bn1(self.conv1(x)))
        x = self.maxpool(x)
        outs = []
        for i in range(self.num_stages):
            x = getattr(self, f'layer{i + 1}')(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def bias_modules(self) -> list[nn.Module]:
        """List the modules that a plain ResNet does not have: empty without spatial bias."""
        return [part for block in self.modules() if isinstance(block, Bottleneck) for part in block.bias_modules()]

    def added_parts(self) -> list[str]:
        """List the names of the parts that a plain ResNet does not have: spatial bias and plugins."""
        blocks = [(name, block) for name, block in self.named_modules() if isinstance(block, Bottleneck)]
        return [f'{name}.{part}' for name, block in blocks for part in block.added_parts()]

    def init_weights(self) -> None:
        """Initialise, then take over the checkpoint of a `Pretrained` init_cfg, if there is one.

        Raises:
            ValueError: if the checkpoint does not fit.
            FileNotFoundError: if it does not exist.
        """
        if self.is_init:
            return
        blocks = [module for module in self.modules() if isinstance(module, Bottleneck)]
        # Plugins and offsets of deformable convolutions without init_weights keep what they were built with.
        added = [self.get_submodule(name) for name in self.added_parts() if name.split('.')[-1] not in BIAS_PARTS]
        added = [layer for layer in added if not hasattr(layer, 'init_weights')]
        built = [copy.deepcopy(layer.state_dict()) for layer in added]
        super().init_weights()
        for layer, state in zip(added, built, strict=True):
            layer.load_state_dict(state)
        if self.zero_init_residual:
            for block in blocks:
                constant_init(block.bn3, 0)
        if self.checkpoint is not None:
            take_over(self, self.checkpoint)

    def _frozen_parts(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        stem = [part for name, part in self.named_children() if name in ('stem', 'conv1', 'bn1')]
        return stem + [getattr(self, f'layer{i + 1}') for i in range(self.frozen_stages)]

    def _freeze(self) -> None:
        for part in self._frozen_parts():
            part.requires_grad_(False)
        for part in self.new_parts:
            self.get_submodule(part).requires_grad_(True)

    def train(self, mode: bool = True) -> 'SBResNet':
        """Switch to training or evaluation; what is frozen stays in evaluation."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        for part in self.new_parts:
            self.get_submodule(part).train(mode)
        return self


@MODELS.register_module()
class SBResNetCifar(SBResNet):
    """ResNet of bottlenecks for small images: 3x3 stem with 16 channels, three stages, no max pool (paper, table 1).

    Args:
        depth: 9n + 2: 38, 65, 110 in the paper, n blocks a stage.
        spatial_bias: as in SBResNet; pool_size is 6 by default.
        sb_stages: as in SBResNet; the first two by default.
        plugins: as in SBResNet.
        options: all of SBResNet's, but for deep_stem.

    Raises:
        ValueError: as SBResNet, and for a depth that is not 9n + 2.
    """

    bias_defaults = MappingProxyType(dict(pool_size=6))

    def __init__(
        self,
        depth: int = 38,
        spatial_bias: Mapping | None = PAPER_BIAS,
        sb_stages: Sequence[bool] = (True, True, False),
        plugins: Sequence[dict] | None = None,
        *,
        base_channels: int = 16,
        num_stages: int = 3,
        strides: Sequence[int] = (1, 2, 2),
        dilations: Sequence[int] = (1, 1, 1),
        **options,
    ):
        shape = dict(base_channels=base_channels, num_stages=num_stages, strides=strides, dilations=dilations)
        super().__init__(depth, spatial_bias, sb_stages, plugins, **shape, **options)

    @classmethod
    def blocks_per_stage(cls, depth: int) -> tuple[int, ...]:
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 11 or (depth - 2) % 9:
            raise ValueError(f'depth must be 9n + 2 (11, 20, ..., 38, ..., 65, ..., 110), got {depth!r}')
        return ((depth - 2) // 9,) * 4

    def _make_stem(self, in_channels: int, channels: int, deep: bool) -> int:
        if deep:
            raise ValueError('deep_stem=True: the stem of SBResNetCifar is one 3x3 convolution, valid: False')
        self.conv1 = build_conv_layer(self.conv_cfg, in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = build_norm_layer(self.norm_cfg, channels)[1]
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity()
        return channels
