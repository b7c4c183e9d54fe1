"""Taking over the weights of a checkpoint: of a plain ResNet (warm start) or of an SBResNet.

Names are torchvision's; timm's and the OpenMMLab libraries' are the same, the latter under the prefix `backbone.`.
"""

import logging
import os
import re
from collections.abc import Mapping

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
    elif path.endswith('.safetensors'):
        from safetensors.torch import load_file

        checkpoint = load_file(path)
    else:
        checkpoint = _load_data_only(path)
    for name in _CONTAINERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(name), Mapping):
            checkpoint = checkpoint[name]
    if not isinstance(checkpoint, Mapping) or not any(isinstance(value, Tensor) for value in checkpoint.values()):
        raise ValueError(f'checkpoint {path!r} holds no state dict: names and tensors, or these under {_CONTAINERS}')
    return {key.removeprefix('module.'): value for key, value in checkpoint.items() if isinstance(value, Tensor)}


def _load_data_only(path: str):
    # What mmengine itself puts into a checkpoint beside tensors; everything else stays refused.
    allowed = [HistoryBuffer, *_numpy_globals()]
    if not hasattr(torch.serialization, 'safe_globals'):  # torch < 2.5
        return torch.load(path, map_location='cpu', weights_only=True)
    with torch.serialization.safe_globals(allowed):
        try:
            return torch.load(path, map_location='cpu', weights_only=True)
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f'checkpoint {path!r} cannot be read as data: {reason}') from error
