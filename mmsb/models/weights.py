"""Taking over the weights of a checkpoint: of a plain ResNet (warm start) or of an SBResNet.

Names are torchvision's; timm's and the OpenMMLab libraries' are the same, the latter under the prefix `backbone.`.
"""

import os
import re
from collections.abc import Mapping

from mmengine.logging import print_log
from torch import Tensor, nn

from mmsb.checkpoints.load import load_state_dict, local_path
from mmsb.options import check_keys

_BIAS = re.compile(r'\.(spatial_bias|bias_norm|bias_conv)\.')
_HEAD = re.compile(r'^(head\.)?fc\.')
_BACKBONE = re.compile(r'^(stem|conv1|bn1|gn1|layer\d+)\.')


def is_pretrained(cfg: Mapping) -> bool:
    """Tell whether an init_cfg is mmengine's `Pretrained`, in any of its spellings."""
    kind = cfg.get('type')
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.split('.')[-1] in ('Pretrained', 'PretrainedInit')


def check_pretrained(cfg: Mapping) -> None:
    """Check the keys of a `Pretrained` init_cfg.

    Raises:
        ValueError: for an unknown key, or without a checkpoint.
    """
    check_keys('init_cfg of type Pretrained', cfg, ('type', 'checkpoint', 'prefix', 'map_location'))
    if not isinstance(cfg.get('checkpoint'), (str, os.PathLike)):
        raise ValueError(
            f'init_cfg of type Pretrained needs a checkpoint: a path or a URL, got {cfg.get("checkpoint")!r}'
        )


def read_backbone(path: str, prefix: str | None = None) -> dict[str, Tensor]:
    """Read the weights of a backbone; heads and necks are left out.

    Args:
        path: see `load_state_dict`.
        prefix: name of the part of a whole model that is the backbone; found by itself if it is 'backbone'.

    Raises:
        ValueError: if the checkpoint has no such part, or nothing that a ResNet has.
    """
    state = load_state_dict(path)
    if prefix is None and any(key.startswith('backbone.') for key in state):
        prefix = 'backbone'
    if prefix:
        prefix = prefix.removesuffix('.') + '.'
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    # mmdet calls group norms gn1, gn2, ...
    backbone = {re.sub(r'(^|\.)gn(?=\d\.)', r'\1bn', k): value for k, value in state.items() if _BACKBONE.match(k)}
    if not backbone:
        where = f' under the prefix {prefix!r}' if prefix else ''
        raise ValueError(f'checkpoint {path!r} has no ResNet weights{where}: conv1.weight, layer1.0.conv1.weight, ...')
    return backbone


def parts_that_are_new(parts: list[str], pretrained: Mapping) -> list[str]:
    """List those of the parts of a network that the checkpoint of a `Pretrained` init_cfg has no weight of.

    Asked when the network is built: what is frozen must be known before it is wrapped for distributed training. A file
    that is not there yet is taken for a plain ResNet's.
    """
    path = local_path(pretrained['checkpoint'])
    if not parts or path is None or not os.path.isfile(path):
        return parts
    return _absent(parts, read_backbone(path, pretrained.get('prefix')))


def _absent(parts: list[str], state: Mapping[str, Tensor]) -> list[str]:
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


def take_over(backbone: nn.Module, pretrained: Mapping) -> None:
    """Copy the weights of the checkpoint of a `Pretrained` init_cfg into an SBResNet.

    From a plain ResNet (warm start) the shared weights are copied and the spatial bias starts silent: the network
    computes the plain ResNet's function and learns the bias from there. From an SBResNet everything is copied. A plugin
    that the checkpoint has nothing of keeps its initial values.

    Raises:
        ValueError: if the checkpoint does not fit: a shape, a missing or an unknown weight, 3x3 convolutions where the
            network has another layer.
        FileNotFoundError: if it does not exist.
    """
    path = pretrained['checkpoint']
    theirs = read_backbone(path, pretrained.get('prefix'))
    stages = tuple(f'layer{i}.' for i in range(backbone.num_stages + 1, 5))
    theirs = {key: value for key, value in theirs.items() if not key.startswith(stages)}
    if theirs.pop('conv1.bias', None) is not None:  # Caffe's ResNets have one before their first batch norm
        print_log(f'conv1.bias of {path!r} is left out, as the libraries do', logger='current')
    trained_bias = any(map(_BIAS.search, theirs))
    new = _absent(backbone.added_parts(), theirs)
    late = [part for part in backbone.new_parts if part not in new]
    if late:
        raise ValueError(
            f'checkpoint {path!r} has trained {_names(late)}, known only now that it is downloaded: give the local file'
        )
    ours = backbone.state_dict()
    if 'layer1.0.conv2.weight' in theirs and 'layer1.0.conv2.weight' not in ours:
        kind = type(backbone.layer1[0].conv2).__name__
        raise ValueError(
            f'checkpoint {path!r} does not fit: it has 3x3 convolutions where the network has {kind}, which has no use '
            f'for their weights: train from scratch, or start from a checkpoint with {kind}'
        )
    # a plugin is new as a whole or not at all, the bias in the whole network
    new = tuple(f'{part}.' for part in new if not (trained_bias and _BIAS.search(f'{part}.')))
    check_fit(path, {key: value for key, value in ours.items() if key in theirs or not key.startswith(new)}, theirs)

    backbone.load_state_dict(theirs, strict=False)
    fresh = [key for key, _ in backbone.named_parameters() if key not in theirs]
    if backbone.bias_modules() and not trained_bias:
        for block in backbone.modules():
            if hasattr(block, 'silence_bias'):
                block.silence_bias()
        start = '; spatial bias starts silent'
    else:
        start = ''
    print_log(f'took over {len(theirs)} tensors of {path!r}; {len(fresh)} parameters are new{start}', logger='current')


def take_over_classifier(model: nn.Module, path: str) -> None:
    """Copy a whole plain classifier, backbone and head, into an `ImageClassifier` with an SBResNet and a linear head.

    Args:
        model: its backbone warm-started from the same checkpoint by `init_weights`.
        path: see `load_state_dict`; the head is called `fc` (torchvision, timm) or `head.fc` (MMPretrain).

    Raises:
        ValueError: if the head is not in the checkpoint or has another shape.
    """
    theirs = load_state_dict(path)
    head = {key.removeprefix('head.'): value for key, value in theirs.items() if _HEAD.match(key)}
    check_fit(path, model.head.state_dict(), head)
    model.head.load_state_dict(head)


def _names(keys: list[str]) -> str:
    return keys[0] + (f' and {len(keys) - 1} more' if len(keys) > 1 else '')
