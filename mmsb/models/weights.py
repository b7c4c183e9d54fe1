"""Taking over the weights of a checkpoint: of a plain ResNet (warm start) or of an SBResNet.

Names are torchvision's; timm's and the OpenMMLab libraries' are the same, the latter under the prefix `backbone.`.
"""

import codecs
import os
import pickle
import re
from collections.abc import Mapping

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

_BIAS = re.compile(r'\.(spatial_bias|bias_norm|bias_conv)\.')
_BACKBONE = re.compile(r'^(stem|conv1|bn1|layer\d+)\.')
_CONTAINERS = ('state_dict', 'model', 'model_state', 'module')


def load_state_dict(path: str) -> dict:
    """Load the weights of a checkpoint, onto the CPU, without running code from a local file.

    Args:
        path: local file (.pth of any library, .safetensors), URL, or 'torchvision://resnet50' and the like.

    Raises:
        FileNotFoundError: if a local file is missing.
        ValueError: if the file holds no state dict, or something that is not data.
    """
    if '://' in path:
        checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    elif not os.path.isfile(path):
        raise FileNotFoundError(f'checkpoint {path!r} does not exist')
    else:
        try:
            checkpoint = _load_data_only(path)
        except Exception as error:  # a file that is no checkpoint raises anything
            said = str(error.__context__ or error).strip() or type(error).__name__  # the cause, without torch's advice
            raise ValueError(f'checkpoint {path!r} cannot be read as data: {said.splitlines()[0]}') from error
    for name in _CONTAINERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(name), Mapping):
            checkpoint = checkpoint[name]
    if not isinstance(checkpoint, Mapping) or not any(isinstance(value, Tensor) for value in checkpoint.values()):
        raise ValueError(f'checkpoint {path!r} holds no state dict: names and tensors, or these under {_CONTAINERS}')
    return {key.removeprefix('module.'): value for key, value in checkpoint.items() if isinstance(value, Tensor)}


def _load_data_only(path: str):
    if path.endswith('.safetensors'):
        from safetensors.torch import load_file

        return load_file(path)
    if not hasattr(torch.serialization, 'safe_globals'):  # torch < 2.5
        return torch.load(path, map_location='cpu', weights_only=False, pickle_module=_DataPickle)
    with torch.serialization.safe_globals(_mmengine_globals()):
        return torch.load(path, map_location='cpu', weights_only=True)


def _mmengine_globals() -> list:
    """List what mmengine's checkpoints hold beside tensors: its log history, which is NumPy arrays and four methods."""
    reconstruct = np.empty(0).__reduce__()[0]  # its module is numpy.core or numpy._core
    dtypes = [type(np.dtype(kind)) for kind in ('float32', 'float64', 'int64', 'uint32')]
    return [
        HistoryBuffer,
        (_history_method, 'builtins.getattr'),
        *((reconstruct, f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),
        np.ndarray,
        np.dtype,
        *dtypes,
    ]


class _DataPickle:
    """Stands for the module pickle where torch (< 2.5) can't be told more data types: finds these and nothing else."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str):
            known = {**torch._weights_only_unpickler._get_allowed_globals(), '_codecs.encode': codecs.encode}
            for entry in _mmengine_globals():
                value, full_name = (
                    entry if isinstance(entry, tuple) else (entry, f'{entry.__module__}.{entry.__name__}')
                )
                known[full_name] = value
            full_name = f'{module}.{name}'.replace('__builtin__.', 'builtins.')
            if full_name not in known:
                raise pickle.UnpicklingError(f'Unsupported class {full_name}')
            return known[full_name]

    @classmethod
    def load(cls, file, **options):
        return cls.Unpickler(file, **options).load()


def _history_method(owner: type, name: str):
    # Pickle writes a class method as getattr(owner, name). The real getattr would reach any code.
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not part of a log history')
    return getattr(HistoryBuffer, name)


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
    backbone = {key: value for key, value in state.items() if _BACKBONE.match(key)}
    if not backbone:
        where = f' under the prefix {prefix!r}' if prefix else ''
        raise ValueError(f'checkpoint {path!r} has no ResNet weights{where}: conv1.weight, layer1.0.conv1.weight, ...')
    return backbone


def holds_spatial_bias(pretrained: Mapping) -> bool:
    """Tell whether the local file of a `Pretrained` init_cfg has trained spatial bias; False if it is no local file.

    Asked when the network is built: what is frozen must be known before it is wrapped for distributed training.
    """
    path = pretrained['checkpoint']
    return os.path.isfile(path) and any(map(_BIAS.search, read_backbone(path, pretrained.get('prefix'))))


def take_over(backbone: nn.Module, pretrained: Mapping) -> None:
    """Copy the weights of the checkpoint of a `Pretrained` init_cfg into an SBResNet.

    From a plain ResNet (warm start) the shared weights are copied and the spatial bias starts silent: the network
    computes the plain ResNet's function and learns the bias from there. From an SBResNet everything is copied.

    Raises:
        ValueError: if the checkpoint does not fit: a shape, a missing or an unknown weight.
        FileNotFoundError: if it does not exist.
    """
    path = pretrained['checkpoint']
    theirs = read_backbone(path, pretrained.get('prefix'))
    stages = tuple(f'layer{i}.' for i in range(backbone.num_stages + 1, 5))
    theirs = {key: value for key, value in theirs.items() if not key.startswith(stages)}
    ours = backbone.state_dict()
    for key, value in theirs.items():
        if key in ours and ours[key].shape != value.shape:
            shapes = f'{tuple(value.shape)}, needs {tuple(ours[key].shape)}'
            raise ValueError(f'checkpoint {path!r} does not fit: {key} has shape {shapes}')
    unknown = [key for key in theirs if key not in ours]
    if unknown:
        raise ValueError(f'checkpoint {path!r} does not fit: the network has no {_names(unknown)}')

    trained_bias = any(map(_BIAS.search, theirs))
    if trained_bias and backbone.bias_is_new:
        raise ValueError(
            f'checkpoint {path!r} has trained spatial bias, known only now that it is downloaded: give the local file'
        )
    plugins = _plugin_prefixes(backbone)
    missing = [
        key
        for key in ours
        if key not in theirs
        and not key.endswith('.num_batches_tracked')
        and not key.startswith(plugins)
        and (trained_bias or not _BIAS.search(key))
    ]
    if missing:
        raise ValueError(f'checkpoint {path!r} does not fit: it has no {_names(missing)}')

    backbone.load_state_dict(theirs, strict=False)
    new = [key for key, _ in backbone.named_parameters() if key not in theirs]
    if backbone.bias_modules() and not trained_bias:
        for block in backbone.modules():
            if hasattr(block, 'silence_bias'):
                block.silence_bias()
        start = '; spatial bias starts silent'
    else:
        start = ''
    print_log(f'took over {len(theirs)} tensors of {path!r}; {len(new)} parameters are new{start}', logger='current')


def _plugin_prefixes(backbone: nn.Module) -> tuple[str, ...]:
    return tuple(
        f'{block_name}.{name}.'
        for block_name, block in backbone.named_modules()
        for names in getattr(block, 'plugin_names', {}).values()
        for name in names
    )


def _names(keys: list[str]) -> str:
    return keys[0] + (f' and {len(keys) - 1} more' if len(keys) > 1 else '')
