"""Loading the weights of a checkpoint: of a plain ResNet (warm start) or of an SBResNet.

Names are torchvision's; timm's and the OpenMMLab libraries' are the same, the latter under the prefix `backbone.`, but
for the deep stem, whose names here are mmdet's and mmseg's, and for group norms in mmdet. `authors.py` translates those
of the method's authors.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence

from mmengine.logging import print_log
from torch import Tensor, nn

from mmsb.checkpoints.load import load_state_dict
from mmsb.models.authors import our_weights
from mmsb.options import check_keys

_BIAS = re.compile(r'\.(spatial_bias|bias_norm|bias_conv)\.')
_HEAD = re.compile(r'^(head\.)?fc\.')
_TIMM_STEM = re.compile(r'^conv1\.\d\.')
_MODULE_OF_STEM = re.compile(r'^stem\.(\d)\.(conv|bn)\.')
_BACKBONE = re.compile(r'^(stem|conv1|bn1|gn1|layer\d+)\.')


def is_pretrained(cfg: Mapping) -> bool:
    """Tell whether an init_cfg is mmengine's `Pretrained`, in any of its spellings."""
    kind = cfg.get('type')
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.split('.')[-1] in ('Pretrained', 'PretrainedInit')


def split_init_cfg(init_cfg: Mapping | Sequence[Mapping] | None, pretrained) -> tuple[list[Mapping], Mapping | None]:
    """Separate the `Pretrained` init_cfg, or what `pretrained` is short for, from the other ones.

    Raises:
        ValueError: for what is not an init_cfg, an unknown key of `Pretrained`, no checkpoint, and two of them.
    """
    cfgs = list(init_cfg or ()) if isinstance(init_cfg, (list, tuple, type(None))) else [init_cfg]
    if not all(isinstance(cfg, Mapping) and 'type' in cfg for cfg in cfgs):
        raise ValueError(f'init_cfg must be a dict with a type, or a list of such dicts, got {init_cfg!r}')
    found = [cfg for cfg in cfgs if is_pretrained(cfg)]
    others = [cfg for cfg in cfgs if not is_pretrained(cfg)]
    if pretrained is not None:
        found.append(dict(type='Pretrained', checkpoint=pretrained))
    for cfg in found:
        check_keys('init_cfg of type Pretrained', cfg, ('type', 'checkpoint', 'prefix', 'map_location'))
        if not isinstance(cfg.get('checkpoint'), (str, os.PathLike)):
            got = cfg.get('checkpoint')
            raise ValueError(f'init_cfg of type Pretrained needs a checkpoint: a path or a URL, got {got!r}')
    if len(found) > 1:
        paths = ' and '.join(repr(cfg['checkpoint']) for cfg in found)
        raise ValueError(f'init_cfg and pretrained must name one checkpoint in all, got {paths}')
    return others, found[0] if found else None


def read_backbone(path: str, prefix: str | None = None) -> dict[str, Tensor]:
    """Read the weights of a backbone, without heads and necks.

    Args:
        path: see `load_state_dict`.
        prefix: name of the backbone in a whole model; None: 'backbone', if there is one.

    Raises:
        ValueError: if the checkpoint has no such part, or nothing that a ResNet has.
    """
    return backbone_of(load_state_dict(path), path, prefix)


def backbone_of(state: Mapping[str, Tensor], path: str, prefix: str | None = None) -> dict[str, Tensor]:
    """Return the weights of the backbone in those of a checkpoint; see `read_backbone`."""
    if prefix is None and any(key.startswith('backbone.') for key in state):
        prefix = 'backbone'
    if prefix:
        prefix = prefix.removesuffix('.') + '.'
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    backbone = {name: state[key] for key, name in _our_names(filter(_BACKBONE.match, state)).items()}
    backbone = our_weights(backbone)
    backbone.pop(
        'conv1.bias', None
    )  # Caffe's ResNets have one before their first batch norm; the libraries drop it, too
    if not backbone:
        where = f' under the prefix {prefix!r}' if prefix else ''
        raise ValueError(f'checkpoint {path!r} has no ResNet weights{where}: conv1.weight, layer1.0.conv1.weight, ...')
    return backbone


def _our_names(keys: Iterable[str]) -> dict[str, str]:
    """Translate the names of another library's backbone: group norms, deep stems, shortcuts with a pool."""
    ours = {key: re.sub(r'(^|\.)gn(?=\d\.)', r'\1bn', key) for key in keys}  # mmdet's norms are called gn1, gn2, ...
    if any(map(_TIMM_STEM.match, ours)):  # timm's deep stem is called conv1, without its last norm
        ours = {key: re.sub(r'^conv1\.', 'stem.', re.sub(r'^bn1\.', 'stem.7.', name)) for key, name in ours.items()}
    # mmpretrain's deep stem is three ConvModules, and its average pool is not there in a shortcut of stride 1
    ours = {key: _MODULE_OF_STEM.sub(_layer_of_stem, name) for key, name in ours.items()}
    if 'layer2.0.downsample.1.weight' in ours and 'layer2.0.downsample.0.weight' not in ours:
        first = 'layer1.0.downsample.'
        if f'{first}0.weight' in ours:
            ours = {key: re.sub(rf'^{first}(\d)', lambda m: f'{first}{int(m[1]) + 1}', n) for key, n in ours.items()}
    return ours


def _layer_of_stem(found: re.Match) -> str:
    return f'stem.{3 * int(found[1]) + (found[2] == "bn")}.'


def find_new_parts(parts: Sequence[str], pretrained: Mapping) -> list[str]:
    """List those of the parts of a network of which the checkpoint of a `Pretrained` init_cfg has no weight.

    Raises:
        FileNotFoundError: if the checkpoint does not exist.
        ValueError: if it cannot be downloaded or read.
    """
    return _absent(parts, read_backbone(pretrained['checkpoint'], pretrained.get('prefix'))) if parts else []


def _absent(parts: Sequence[str], state: Mapping[str, Tensor]) -> list[str]:
    return [part for part in parts if not any(key.startswith(f'{part}.') for key in state)]


def check_fit(path: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Check that the weights `theirs` of the checkpoint `path` are those that a network needs, `ours`, name and shape.

    Raises:
        ValueError: for the first weight of another shape, else the first unknown or missing one.
    """
    for key, value in theirs.items():
        if key in ours and ours[key].shape != value.shape:
            shapes = f'{tuple(value.shape)}, needs {tuple(ours[key].shape)}'
            raise ValueError(f'checkpoint {path!r} does not fit: {key} has shape {shapes}')
    unknown = [key for key in theirs if key not in ours]
    if unknown:
        hint = ' (did you mean deep_stem=True?)' if unknown[0].startswith('stem.') else ''
        raise ValueError(f'checkpoint {path!r} does not fit: the network has no {_names(unknown)}{hint}')
    missing = [key for key in ours if key not in theirs and not key.endswith('num_batches_tracked')]
    if missing:
        raise ValueError(f'checkpoint {path!r} does not fit: it has no {_names(missing)}')


def check_pretrained(backbone: nn.Module, pretrained: Mapping) -> None:
    """Check that the checkpoint of a `Pretrained` init_cfg fits an SBResNet.

    Raises:
        ValueError: if it does not: a shape, a missing or an unknown weight, 3x3 convolutions where the network has
            another layer.
        FileNotFoundError: if it does not exist.
    """
    _read_fitting(backbone, pretrained)


def load_pretrained(backbone: nn.Module, pretrained: Mapping) -> list[str]:
    """Load the checkpoint of a `Pretrained` init_cfg into an SBResNet.

    A plain ResNet's (warm start) has the shared weights. Spatial bias then starts at zero effect: the network computes
    the plain ResNet's function, and learns the bias from there. An SBResNet's has all. Plugins and offsets of
    deformable convolutions that the checkpoint lacks keep their initial values.

    Returns:
        names of the parts that the checkpoint lacks.

    Raises:
        ValueError, FileNotFoundError: see `check_pretrained`.
    """
    path = pretrained['checkpoint']
    theirs, new_parts = _read_fitting(backbone, pretrained)
    backbone.load_state_dict(theirs, strict=False)
    count = sum(key not in theirs for key, _ in backbone.named_parameters())
    start = '; spatial bias starts at zero effect' if start_bias(backbone, new_parts) else ''
    print_log(f'loaded {len(theirs)} tensors of {path!r}; {count} parameters are new{start}', logger='current')
    return new_parts


def _read_fitting(backbone: nn.Module, pretrained: Mapping) -> tuple[dict[str, Tensor], list[str]]:
    """Read the weights for a backbone, and the names of its parts that the checkpoint lacks."""
    path = pretrained['checkpoint']
    theirs = read_backbone(path, pretrained.get('prefix'))
    further_stages = tuple(f'layer{i}.' for i in range(backbone.num_stages + 1, 5))
    theirs = {key: value for key, value in theirs.items() if not key.startswith(further_stages)}
    ours = backbone.state_dict()
    if 'layer1.0.conv2.weight' in theirs and 'layer1.0.conv2.weight' not in ours:
        kind = type(backbone.layer1[0].conv2).__name__
        raise ValueError(
            f'checkpoint {path!r} does not fit: it has 3x3 convolutions where the network has {kind}, which has no use '
            f'for their weights: train from scratch, or start from a checkpoint with {kind}'
        )
    new_parts = parts_to_add(backbone, theirs)
    may_miss = tuple(f'{part}.' for part in new_parts)
    check_fit(
        path, {key: value for key, value in ours.items() if key in theirs or not key.startswith(may_miss)}, theirs
    )
    return theirs, new_parts


def parts_to_add(backbone: nn.Module, theirs: Mapping[str, Tensor]) -> list[str]:
    """List the parts of an SBResNet that weights may lack: any plugin as a whole, spatial bias only everywhere."""
    has_bias = any(map(_BIAS.search, theirs))
    absent = _absent(list(backbone.added_parts()), theirs)
    return [part for part in absent if not (has_bias and _BIAS.search(f'{part}.'))]


def start_bias(backbone: nn.Module, new_parts: Sequence[str]) -> bool:
    """Start spatial bias at zero effect if it is among the new parts of an SBResNet; return whether it is."""
    is_new = any(_BIAS.search(f'{part}.') for part in new_parts)
    for block in backbone.modules():
        if is_new and hasattr(block, 'zero_bias'):
            block.zero_bias()
    return is_new


def load_head(model: nn.Module, path: str) -> None:
    """Load the head of a plain classifier into an `ImageClassifier` with a linear head.

    Args:
        model: its head is loaded only.
        path: see `load_state_dict`; the head is called `fc` (torchvision, timm) or `head.fc` (MMPretrain).

    Raises:
        ValueError: if the head is not in the checkpoint or has another shape.
    """
    head = split_head(load_state_dict(path))
    check_fit(path, model.head.state_dict(), head)
    model.head.load_state_dict(head)


def split_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a linear head, as `fc.weight` and `fc.bias`."""
    return {key.removeprefix('head.'): value for key, value in state.items() if _HEAD.match(key)}


def _names(keys: list[str]) -> str:
    return keys[0] + (f' and {len(keys) - 1} more' if len(keys) > 1 else '')
