"""ResNets with spatial bias: stem, stages, freezing, warm start.

Source: He et al., "Deep Residual Learning for Image Recognition"; Go & Ryu, arXiv:2302.12505. Without spatial bias the
networks are torchvision's, name for name and bit for bit. ImageNet and CIFAR differ in stem and stage table only.
"""

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from mmcv.cnn import build_conv_layer, build_norm_layer
from mmengine.model import BaseModule, Sequential, constant_init
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsb.models.basic_block import BasicBlock
from mmsb.models.bottleneck import BIAS_PARTS, Bottleneck, ResidualBlock
from mmsb.models.stages import (
    bias_of_stages,
    check_layer_cfgs,
    check_per_stage,
    choose_base_width,
    choose_out_indices,
    choose_stem_channels,
    conv2_of_blocks,
    dilations_of_blocks,
    drop_path_rates,
    layer_depth,
    library_in_scope,
    plugins_of_blocks,
)
from mmsb.models.weights import find_new_parts, load_pretrained, split_init_cfg
from mmsb.options import choose, known_options, positive_integer
from mmsb.registry import MODELS

PAPER_BIAS = MappingProxyType({})  # the operator's own defaults
FROM_SCRATCH = (
    dict(type='Kaiming', layer='Conv2d'),
    dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
)


@MODELS.register_module()
class SBResNet(BaseModule):
    """ResNet with spatial bias: replaces `ResNet` in a config of any of the libraries.

    Freezing (`frozen_stages`, `norm_eval`) is for weights that have been trained. It spares what the checkpoint of a
    warm start lacks, be it spatial bias, a plugin or the offsets of a deformable convolution: these learn, and their
    batch norms gather statistics, in frozen stages too. To tell which these are before the network is wrapped for
    distributed training, the constructor reads the checkpoint (not on the meta device), and downloads it if need be.

    Args:
        depth: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks). Options of the 3x3 convolution in a bottleneck
            (conv2, dcn, groups, base_width, expansion, style) are for bottlenecks only.
        spatial_bias: what differs from the paper's operator: num_maps (3), pool_size (10), kernel_size (3), position
            ('conv2' or 'conv1'; in basic blocks always 'conv1'), fusion ('concat' or 'add'), pool ('avg' or 'max'),
            mix (True). None: a plain ResNet.
        sb_stages: which stages have it, one bool a stage; None: all but the fourth.
        plugins: dicts with `cfg`, `position` ('after_conv1', 'after_conv2', 'after_conv3', 'after_block') and,
            optionally, `stages` (one bool a stage) and `blocks` (indices of the blocks in each of these stages).
        conv2: dict with the type of a layer that replaces each 3x3 convolution: mmsb.SK. None: none.
        dcn: deformable 3x3 convolutions, as in mmdet: dict(type='DCN' or 'DCNv2', deform_groups=1,
            fallback_on_stride=False). As in mmdet, fallback_on_stride=True means no more than that the first of these
            blocks keeps a plain convolution. None: none.
        stage_with_dcn: which stages have them, one bool a stage.
        groups: of the 3x3 convolutions, as in ResNeXt.
        base_width: channels a group of the first stage's 3x3 convolutions; it doubles with each stage. None: 4 with
            groups, else `base_channels`. Wide-ResNet-50-2 has 128 and no groups.
        width_per_group: mmpretrain's name of base_width.
        expansion: channels of a block's output over those of its 3x3 convolution (mmpretrain); None: 4, and 1 with
            basic blocks.
        in_channels: channels of the image.
        stem_channels: channels of the stem; None: `base_channels`, but 64 in the scope of mmpretrain and mmseg, as in
            their ResNets.
        base_channels: C of the first stage; it doubles with each stage.
        num_stages: number of stages, 1 to 4.
        strides: stride of each stage.
        dilations: dilation of each stage.
        out_indices: stages whose output is returned, in ascending order; None: all, but only the last in the scope of
            mmpretrain, as of its ResNet.
        style: 'pytorch' (stride in the 3x3 convolution) or 'caffe' (in the first 1x1).
        deep_stem: three 3x3 convolutions instead of one 7x7.
        avg_down: average pool before the 1x1 convolution of a strided shortcut.
        frozen_stages: number of stages to freeze, with the stem: 0 the stem alone, -1 nothing.
        conv_cfg: convolution type.
        norm_cfg: norm type; None: batch norm.
        norm_eval: keep batch norms at their running statistics in training; None: only in the scope of mmdet, whose
            ResNet does.
        with_cp: recompute activations in the backward pass to save memory.
        multi_grid: dilations of the blocks of the last stage, instead of its entry in `dilations` (segmentation).
        contract_dilation: halve the dilation of the first block of a dilated stage (segmentation). Without such a
            stage it does nothing, as in mmseg, whose base configs set it everywhere.
        zero_init_residual: start each residual branch at zero. In the scope of mmdet and mmseg, an `init_cfg` of one's
            own replaces this, as in their ResNets.
        drop_path_rate: share of samples whose residual branch is dropped in training, in the last block; it rises
            from 0 in the first.
        pretrained: short for `init_cfg=dict(type='Pretrained', checkpoint=...)` (segmentation).
        init_cfg: initialisation; `Pretrained` takes a checkpoint of a plain ResNet or of an SBResNet: local file, URL,
            'torchvision://resnet50'; of the backbone or of a whole model (`prefix` names the part; 'backbone' needs no
            prefix).

    Raises:
        ValueError: for an unknown option or value, one that would have no effect, and tuples without one entry a stage.
        FileNotFoundError: if the checkpoint that decides what is frozen does not exist.
    """

    stage_table: Mapping[int, tuple[int, ...]] = {
        18: (2, 2, 2, 2),
        34: (3, 4, 6, 3),
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
    }
    bias_defaults: Mapping = PAPER_BIAS
    sb_stages_default: tuple[bool, ...] = (True, True, True, False)
    defaults_of_library = True  # whether the library in scope decides the defaults that differ between libraries
    norm1_name = 'bn1'

    @known_options
    def __init__(
        self,
        depth: int = 50,
        spatial_bias: Mapping | None = PAPER_BIAS,
        sb_stages: Sequence[bool] | None = None,
        plugins: Sequence[Mapping] | None = None,
        *,
        conv2: dict | None = None,
        dcn: dict | None = None,
        stage_with_dcn: Sequence[bool] = (False, False, False, False),
        groups: int = 1,
        base_width: int | None = None,
        width_per_group: int | None = None,
        expansion: int | None = None,
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
        norm_eval: bool | None = None,
        with_cp: bool = False,
        multi_grid: Sequence[int] | None = None,
        contract_dilation: bool = False,
        zero_init_residual: bool = True,
        drop_path_rate: float = 0.0,
        pretrained: str | None = None,
        init_cfg: dict | list | None = None,
    ):
        init_cfgs, warm_start = split_init_cfg(init_cfg, pretrained)
        own_init = bool(init_cfgs) or init_cfg == []  # an empty list leaves PyTorch's values
        super().__init__(init_cfgs if own_init else list(FROM_SCRATCH))
        depths = self.blocks_per_stage(depth)[: choose('num_stages', num_stages, range(1, 5))]
        self.block_type = self.block = BasicBlock if depth in (18, 34) else Bottleneck
        library = library_in_scope() if self.defaults_of_library else None
        expansion = self.block_type.expansion if expansion is None else expansion
        stem_channels = choose_stem_channels(stem_channels, base_channels, library)
        base_width = choose_base_width(base_width, width_per_group, groups, base_channels)
        sizes = dict(in_channels=in_channels, base_channels=base_channels, stem_channels=stem_channels)
        for name, size in dict(sizes, groups=groups, base_width=base_width, expansion=expansion).items():
            positive_integer(name, size)
        if deep_stem and stem_channels < 2:
            raise ValueError(f'stem_channels must be at least 2 with deep_stem=True, got {stem_channels}')
        check_layer_cfgs(conv_cfg=conv_cfg, norm_cfg=norm_cfg)
        self.warm_start = warm_start  # timm's networks have a `pretrained_cfg`, which is another thing
        self.depth = depth
        self.num_stages = num_stages
        self.out_indices = choose_out_indices(out_indices, num_stages, library)
        self.frozen_stages = choose('frozen_stages', frozen_stages, range(-1, num_stages + 1))
        self.conv_cfg = conv_cfg
        self.norm_cfg = dict(type='BN', requires_grad=True) if norm_cfg is None else norm_cfg
        self.norm_eval = library == 'mmdet' if norm_eval is None else norm_eval
        self.zero_init_residual = zero_init_residual
        self.zeroes_last_norms = zero_init_residual and not (own_init and library in ('mmdet', 'mmseg'))
        self.stem_channels, self.base_channels, self.expansion = stem_channels, base_channels, expansion
        self.stage_blocks, self.strides, self.dilations = depths, strides, dilations
        self.style, self.deep_stem, self.avg_down, self.with_cp = style, deep_stem, avg_down, with_cp
        self.dcn, self.stage_with_dcn, self.plugins = dcn, stage_with_dcn, plugins
        self.multi_grid, self.contract_dilation, self.pretrained = multi_grid, contract_dilation, pretrained

        stages = dict(  # one entry a stage
            stride=check_per_stage('strides', strides, num_stages),
            channels=[base_channels * 2**i for i in range(num_stages)],
            width=[groups * base_width * 2**i for i in range(num_stages)],
            spatial_bias=bias_of_stages(
                spatial_bias, self.bias_defaults, sb_stages, self.sb_stages_default[:num_stages]
            ),
        )
        blocks = dict(  # one entry a block of a stage
            dilation=dilations_of_blocks(depths, dilations, multi_grid, contract_dilation),
            conv2=conv2_of_blocks(depths, conv2, dcn, stage_with_dcn, conv_cfg, groups),
            plugins=plugins_of_blocks(depths, plugins),
            drop_path_rate=drop_path_rates(depths, drop_path_rate),
        )
        common = dict(expansion=expansion, groups=groups, style=style, with_cp=with_cp)
        channels_in = self._make_stem(in_channels, stem_channels, deep_stem)
        for i in range(num_stages):
            of_stage = {name: values[i] for name, values in stages.items()}
            of_blocks = [{name: values[i][j] for name, values in blocks.items()} for j in range(depths[i])]
            self.add_module(f'layer{i + 1}', self._make_stage(channels_in, of_blocks, **of_stage, **common))
            channels_in = of_stage['channels'] * expansion
        self.res_layers = [f'layer{i + 1}' for i in range(num_stages)]
        self.feat_dim = self.inplanes = channels_in

        self.new_parts: list[str] = []  # those that freezing spares
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if self.warm_start is not None and self.freezes() and not next(self.parameters()).is_meta:
            self.spare(find_new_parts(list(self.added_parts()), self.warm_start))
        self.train()

    @property
    def norm1(self) -> nn.Module:
        """The norm of the stem; a deep stem has three, in `stem`."""
        return self.bn1

    @classmethod
    def blocks_per_stage(cls, depth: int) -> tuple[int, ...]:
        return cls.stage_table[choose('depth', depth, cls.stage_table)]

    def _conv(self, in_channels: int, channels: int, kernel_size: int, stride: int = 1) -> nn.Module:
        geometry = dict(stride=stride, padding=kernel_size // 2, bias=False)
        return build_conv_layer(self.conv_cfg, in_channels, channels, kernel_size, **geometry)

    def _norm(self, channels: int) -> nn.Module:
        return build_norm_layer(self.norm_cfg, channels)[1]

    def _make_stem(self, in_channels: int, channels: int, deep: bool) -> int:
        if deep:
            layers: list[nn.Module] = []
            for width, stride in ((channels // 2, 2), (channels // 2, 1), (channels, 1)):
                layers += [self._conv(in_channels, width, 3, stride), self._norm(width), nn.ReLU(inplace=True)]
                in_channels = width
            self.stem = nn.Sequential(*layers)
        else:
            self.conv1 = self._conv(in_channels, channels, 7, stride=2)
            self.bn1 = self._norm(channels)
        self.relu = nn.ReLU(inplace=True)  # the children are in the order of the data, which timm's features_only needs
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        return channels

    def _make_stage(
        self, in_channels: int, blocks: list[dict], *, channels: int, expansion: int, stride: int, **common
    ) -> Sequential:
        out_channels = channels * expansion
        common.update(expansion=expansion, conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg)
        downsample = None
        if stride != 1 or in_channels != out_channels:
            pool = [nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)] if self.avg_down else []
            conv = self._conv(in_channels, out_channels, 1, stride=1 if self.avg_down else stride)
            downsample = nn.Sequential(*pool, conv, self._norm(out_channels))
        first = self.block_type(in_channels, channels, stride=stride, downsample=downsample, **blocks[0], **common)
        return Sequential(first, *(self.block_type(out_channels, channels, **block, **common) for block in blocks[1:]))

    def forward_stem(self, x: Tensor) -> Tensor:
        """Map images to what the max pool reads, (B, stem_channels, H / 2, W / 2)."""
        return self.stem(x) if hasattr(self, 'stem') else self.relu(self.bn1(self.conv1(x)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images, (B, in_channels, H, W), to one feature map for each of `out_indices`."""
        x = self.maxpool(self.forward_stem(x))
        outs = []
        for i in range(self.num_stages):
            x = getattr(self, f'layer{i + 1}')(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def added_parts(self) -> dict[str, nn.Module]:
        """Return by name what a plain ResNet lacks: spatial bias, plugins, offsets of deformable convolutions."""
        blocks = [(name, block) for name, block in self.named_modules() if isinstance(block, ResidualBlock)]
        return {f'{name}.{part}': module for name, block in blocks for part, module in block.added_parts().items()}

    def bias_modules(self) -> list[nn.Module]:
        """List the modules of spatial bias: none in a plain ResNet."""
        return [module for name, module in self.added_parts().items() if name.split('.')[-1] in BIAS_PARTS]

    def init_weights(self) -> None:
        """Initialise; with a `Pretrained` init_cfg, load its checkpoint then.

        Raises:
            ValueError: if the checkpoint does not fit.
            FileNotFoundError: if it does not exist.
        """
        if self.is_init:
            return
        # Plugins and offsets without init_weights keep the values that they were built with.
        bias = self.bias_modules()
        others = [
            part for part in self.added_parts().values() if part not in bias and not hasattr(part, 'init_weights')
        ]
        built = [copy.deepcopy(part.state_dict()) for part in others]
        super().init_weights()
        for part, state in zip(others, built, strict=True):
            part.load_state_dict(state)
        if self.zeroes_last_norms:
            for block in self.modules():
                if isinstance(block, ResidualBlock):
                    constant_init(block.last_norm, 0)
        if self.warm_start is not None:
            new_parts = load_pretrained(self, self.warm_start)
            if self.freezes() and new_parts != self.new_parts:  # built on the meta device
                self.spare(new_parts)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Number a parameter's layer for learning rates that decay layer by layer, as mmpretrain's ResNet does.

        Returns:
            the number, 0 for the stem and 1 after the last block's for what is not under `prefix`; how many there are.
        """
        layer = param_name.removeprefix(prefix) if param_name.startswith(prefix) else None
        return layer_depth([len(getattr(self, f'layer{i + 1}')) for i in range(self.num_stages)], layer)

    def spare(self, parts: Sequence[str]) -> None:
        """Exempt parts from freezing: those of `added_parts` that have not been trained.

        Who resumes a training without its warm-start checkpoint builds the network without `init_cfg`, and passes here
        the `new_parts` of the network that was trained, before it is wrapped for distributed training.
        """
        self.new_parts = list(parts)
        for part in self.new_parts:
            self.get_submodule(part).requires_grad_(True).train(self.training)

    def freezes(self) -> bool:
        """Tell whether anything is frozen, of which an untrained part would have to be spared."""
        return self.frozen_stages > 0 or self.norm_eval or not self.norm_cfg.get('requires_grad', True)

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        stem = [module for name, module in self.named_children() if name in ('stem', 'conv1', 'bn1')]
        return stem + [getattr(self, f'layer{i + 1}') for i in range(self.frozen_stages)]

    def train(self, mode: bool = True) -> 'SBResNet':
        """Switch to training or evaluation; what is frozen stays in evaluation."""
        super().train(mode)
        norms = [module for module in self.modules() if isinstance(module, _BatchNorm)] if self.norm_eval else []
        for module in [*self._frozen_modules(), *norms]:
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
        sb_stages: as in SBResNet; None: the first two.
        plugins: as in SBResNet.
        options: all of SBResNet's, but for deep_stem.

    Raises:
        ValueError: as SBResNet, and for a depth that is not 9n + 2.
    """

    bias_defaults = MappingProxyType(dict(pool_size=6))
    sb_stages_default = (True, True, False, False)

    def __init__(
        self,
        depth: int = 38,
        spatial_bias: Mapping | None = PAPER_BIAS,
        sb_stages: Sequence[bool] | None = None,
        plugins: Sequence[Mapping] | None = None,
        *,
        stem_channels: int | None = None,
        base_channels: int = 16,
        num_stages: int = 3,
        strides: Sequence[int] = (1, 2, 2),
        dilations: Sequence[int] = (1, 1, 1),
        **options,
    ):
        stem_channels = base_channels if stem_channels is None else stem_channels  # in every library's scope
        shape = dict(num_stages=num_stages, strides=strides, dilations=dilations)
        shape |= dict(base_channels=base_channels, stem_channels=stem_channels)
        super().__init__(depth, spatial_bias, sb_stages, plugins, **shape, **options)

    @classmethod
    def blocks_per_stage(cls, depth: int) -> tuple[int, ...]:
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 11 or (depth - 2) % 9:
            raise ValueError(f'depth must be 9n + 2 (11, 20, ..., 38, ..., 65, ..., 110), got {depth!r}')
        return ((depth - 2) // 9,) * 4

    def _make_stem(self, in_channels: int, channels: int, deep: bool) -> int:
        if deep:
            raise ValueError('deep_stem=True: the stem of SBResNetCifar is one 3x3 convolution, valid: False')
        self.conv1 = self._conv(in_channels, channels, 3)
        self.bn1 = self._norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity()
        return channels
