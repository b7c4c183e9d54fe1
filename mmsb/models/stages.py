"""From the options of a ResNet to those of its stages and blocks, and checks that none of them is ignored.

`depths` is the number of blocks of each stage; options of blocks are a list of stages of lists of blocks.
"""

import importlib
import itertools
import re
from collections.abc import Mapping, Sequence

from mmengine.registry import DefaultScope

from mmsb.models.bottleneck import check_plugin, check_spatial_bias
from mmsb.options import check_keys, choose, positive_integer

DCN_OPTIONS = ('type', 'deform_groups', 'deformable_groups', 'im2col_step', 'fallback_on_stride')


def library_in_scope() -> str | None:
    """Return the library whose config is being built, for the options whose defaults differ between libraries."""
    scope = DefaultScope.get_current_instance()
    return scope.scope_name if scope else None


def check_per_stage(name: str, values: Sequence, num_stages: int) -> Sequence:
    """Return the values of an option if they are one bool or positive integer for each stage."""
    if not isinstance(values, (tuple, list)) or len(values) != num_stages:
        raise ValueError(f'{name} must have one entry for each of the {num_stages} stages, got {values!r}')
    for value in values:
        if not isinstance(value, bool):
            positive_integer(f'each of {name}', value)
    return values


def check_layer_cfgs(**cfgs: Mapping | None) -> None:
    """Check that the config of a layer is a dict with a type, or None."""
    for name, cfg in cfgs.items():
        if cfg is not None and (not isinstance(cfg, Mapping) or 'type' not in cfg):
            raise ValueError(f'{name} must be a dict with a type, or None for the default, got {cfg!r}')


def choose_base_width(base_width: int | None, width_per_group: int | None, groups: int, base_channels: int) -> int:
    """Choose the channels of a group in the first stage: those given by either name, or the default."""
    if base_width is not None and width_per_group is not None:
        raise ValueError(f'width_per_group is another name of base_width: give one of them, got {width_per_group!r}')
    given = [width for width in (base_width, width_per_group) if width is not None]
    return given[0] if given else base_channels if groups == 1 else 4


def choose_out_indices(out_indices: Sequence[int] | None, num_stages: int, library: str | None) -> tuple[int, ...]:
    """Return the indices of existing stages in ascending order; None: the default of the library."""
    if out_indices is None:
        return tuple(range(num_stages))[-1 if library == 'mmpretrain' else 0 :]
    if isinstance(out_indices, int):
        raise ValueError(f'out_indices must be a tuple of stages, got {out_indices!r}')
    for index in out_indices:
        choose('each of out_indices', index, range(num_stages))
    if not out_indices or list(out_indices) != sorted(set(out_indices)):
        raise ValueError(f'out_indices must be stages in ascending order, at least one, got {tuple(out_indices)}')
    return tuple(out_indices)


def choose_stem_channels(stem_channels: int | None, base_channels: int, library: str | None) -> int:
    """Return the channels of the stem; None: those of the library, of which mmdet's alone follow the first stage's."""
    if stem_channels is not None:
        return stem_channels
    return 64 if library in ('mmpretrain', 'mmseg') else base_channels


def bias_of_stages(
    spatial_bias: Mapping | None, defaults: Mapping, sb_stages: Sequence[bool] | None, stages_default: Sequence[bool]
) -> list[Mapping | None]:
    """Give the stages of `sb_stages` spatial bias; None: those of `stages_default`, which has one bool a stage."""
    num_stages = len(stages_default)
    chosen = stages_default if sb_stages is None else check_per_stage('sb_stages', sb_stages, num_stages)
    if spatial_bias is None:
        return [None] * num_stages
    check_spatial_bias(spatial_bias)
    if not any(chosen):
        raise ValueError(f'spatial_bias has no effect with sb_stages={tuple(chosen)}: None makes a plain ResNet')
    return [{**defaults, **spatial_bias} if here else None for here in chosen]


def dilations_of_blocks(
    depths: Sequence[int], dilations: Sequence[int], multi_grid: Sequence[int] | None, contract: bool
) -> list[list[int]]:
    """Dilate the blocks of a stage alike, but for its first block with `contract` and the last stage with `multi_grid`.

    Raises:
        ValueError: if `dilations` is not one positive integer a stage, and `multi_grid` one a block of the last stage.
    """
    check_per_stage('dilations', dilations, len(depths))
    stages = [[dilation] * depth for depth, dilation in zip(depths, dilations, strict=True)]
    for stage in stages:
        stage[0] //= 2 if contract and stage[0] > 1 else 1
    if multi_grid is not None:
        if not isinstance(multi_grid, (tuple, list)) or len(multi_grid) != depths[-1]:
            raise ValueError(f'multi_grid must have {depths[-1]} entries, got {multi_grid!r}')
        stages[-1] = [positive_integer('each of multi_grid', dilation) for dilation in multi_grid]
    return stages


def conv2_of_blocks(
    depths: Sequence[int],
    conv2: Mapping | None,
    dcn: Mapping | None,
    stage_with_dcn: Sequence[bool],
    conv_cfg: Mapping | None,
    groups: int,
) -> list[list[Mapping | None]]:
    """Choose what replaces the 3x3 convolutions: `conv2` everywhere, or `dcn` in its stages; None: nothing.

    Raises:
        ValueError: for an unknown type or option of `dcn`, no stage to be used in, and options that do not go with it.
    """
    if dcn is None:
        return [[conv2] * depth for depth in depths]
    if not isinstance(dcn, Mapping):
        raise ValueError(f'dcn must be a dict of options, or None for none, got {dcn!r}')
    check_keys('dcn', dcn, DCN_OPTIONS)
    choose('dcn.type', dcn.get('type'), ('DCN', 'DCNv2'))
    if not any(check_per_stage('stage_with_dcn', stage_with_dcn, len(depths))):
        raise ValueError(
            f'dcn has no effect with stage_with_dcn={tuple(stage_with_dcn)}: name a stage, or set dcn=None'
        )
    for name, value in dict(conv2=conv2, conv_cfg=conv_cfg).items():
        if value is not None:
            raise ValueError(f'{name} must be None with dcn, got {value!r}')
    if dcn.get('fallback_on_stride') and groups > 1:
        raise ValueError(f'dcn.fallback_on_stride must be False with groups={groups}: mmdet ignores it there')
    importlib.import_module('mmcv.ops')  # registers DCN and DCNv2
    layer = {key: value for key, value in dcn.items() if key != 'fallback_on_stride'}
    stages = [[layer if chosen else None] * depth for depth, chosen in zip(depths, stage_with_dcn, strict=True)]
    if dcn.get('fallback_on_stride'):  # mmdet's first block pops the option from the dict that all blocks share
        next(stage for stage in stages if stage[0])[0] = None
    return stages


def plugins_of_blocks(depths: Sequence[int], plugins: Sequence[Mapping] | None) -> list[list[list[Mapping]]]:
    """List the plugins of each block.

    Raises:
        ValueError: for an unknown key or position, `stages` without one entry a stage, and a plugin or an entry of its
            `blocks` that no block has.
    """
    stages: list[list[list[Mapping]]] = [[[] for _ in range(depth)] for depth in depths]
    if not isinstance(plugins, (tuple, list, type(None))) or not all(isinstance(p, Mapping) for p in plugins or ()):
        raise ValueError(f'plugins must be a list of dicts, got {plugins!r}')
    for plugin in plugins or ():
        check_keys('plugin', plugin, ('cfg', 'position', 'stages', 'blocks'))
        check_plugin(plugin)
        chosen = [True] * len(depths) if plugin.get('stages') is None else plugin['stages']
        if len(chosen) != len(depths):
            raise ValueError(f'stages of a plugin must have {len(depths)} entries, got {tuple(chosen)}')
        depth = max((depth for depth, here in zip(depths, chosen, strict=True) if here), default=0)
        blocks = tuple(range(depth)) if plugin.get('blocks') is None else plugin['blocks']
        if not isinstance(blocks, (tuple, list)) or not blocks or not set(blocks) <= set(range(depth)):
            where = f'stages={tuple(chosen)}, which have at most {depth} blocks'
            raise ValueError(f'blocks of a plugin must be indices of blocks of {where}, got {blocks!r}')
        for stage, here in zip(stages, chosen, strict=True):
            for j, block in enumerate(stage):
                if here and j in blocks:
                    block.append(plugin)
    return stages


def drop_path_rates(depths: Sequence[int], last: float) -> list[list[float]]:
    """Let the rate rise from 0 in the first block to `last` in the last one.

    Raises:
        ValueError: for a rate that is not in [0, 1).
    """
    if not isinstance(last, (int, float)) or not 0 <= last < 1:
        raise ValueError(f'drop_path_rate must be at least 0 and below 1, got {last!r}')
    rates = [last * k / max(1, sum(depths) - 1) for k in range(sum(depths))]
    return [[rates.pop(0) for _ in range(depth)] for depth in depths]


def layer_depth(depths: Sequence[int], layer: str | None) -> tuple[int, int]:
    """Number a layer of a ResNet for layer-wise learning rates: two to four blocks of a middle stage share a number.

    Args:
        layer: name of a parameter; None: one of another part of the model, behind the ResNet.

    Returns:
        the number, from 0 for the stem, and how many numbers there are.
    """
    middle = (4, 4) if len(depths) > 1 and depths[1] >= 8 else (2, 3)
    sizes = (depths[0], *middle, depths[-1])[: len(depths)]
    first = list(itertools.accumulate((-(-n // size) for n, size in zip(depths, sizes, strict=True)), initial=1))
    found = re.match(r'layer(\d+)\.(\d+)\.', layer or '')
    if found:
        stage, block = int(found[1]) - 1, int(found[2])
        return first[stage] + block // sizes[stage], first[-1] + 1
    return (first[-1] if layer is None else 0), first[-1] + 1
