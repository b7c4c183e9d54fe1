"""Reading a checkpoint as data: nothing in a file is run, and nothing is tried a second time with less care."""

import os
from collections.abc import Mapping

import torch
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import _process_mmcls_checkpoint
from torch import Tensor

from mmsb.checkpoints import data_file, download

_CONTAINERS = ('state_dict', 'model', 'model_state', 'module')


def local_path(path: str | os.PathLike) -> str | None:
    """Expand a path of a checkpoint; None for a URL."""
    path = os.fspath(path)
    return None if '://' in path else os.path.expanduser(path)


def load_checkpoint(path: str | os.PathLike, *, trust: bool = False):
    """Load all that a checkpoint holds, onto the CPU, without running code from it.

    Args:
        path: file (.pth of any library, .safetensors), URL, or 'torchvision://resnet50' and the like; these two are
            downloaded first (`download.fetch`).
        trust: whether a file that is more than data may run its code.

    Raises:
        FileNotFoundError: if a local file is missing.
        ValueError: if the file cannot be downloaded or read, or holds something that is not data.
    """
    path = os.fspath(path)
    require_file(path)
    file = local_path(path) or download.fetch(path)
    try:
        if trust and not file.endswith('.safetensors'):
            return torch.load(file, map_location='cpu', weights_only=False)
        return _load_data_only(file)
    except Exception as error:  # a file that is no checkpoint raises anything
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f'checkpoint {path!r} cannot be read as data: {said}') from error


def load_state_dict(path: str | os.PathLike, *, trust: bool = False) -> dict:
    """Load the weights of a checkpoint, onto the CPU, without running code from it.

    Args:
        path: see `load_checkpoint`.
        trust: likewise.

    Raises:
        FileNotFoundError: if a local file is missing.
        ValueError: if the file holds no state dict, or something that is not data.
    """
    checkpoint = load_checkpoint(path, trust=trust)
    for name in _CONTAINERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(name), Mapping):
            checkpoint = checkpoint[name]
    if not isinstance(checkpoint, Mapping) or not any(isinstance(value, Tensor) for value in checkpoint.values()):
        containers = f'names and tensors, or these under {_CONTAINERS}'
        raise ValueError(f'checkpoint {os.fspath(path)!r} holds no state dict: {containers}')
    return {key.removeprefix('module.'): value for key, value in checkpoint.items() if isinstance(value, Tensor)}


def drop_config_text(checkpoint):
    """Take out the text that mmengine runs as a config when it resumes, only to compare numbers of GPUs."""
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get('meta'), dict):
        checkpoint['meta'].pop('config', None)
    return checkpoint


def replace_readers_of_mmengine(*, trust: bool = False) -> None:
    """Have mmengine read every checkpoint as data: that of any part's `init_cfg`, of a hook, of a stock runner.

    Args:
        trust: see `load_checkpoint`.
    """

    def load_as_data(filename: str, map_location=None):  # mmengine takes the name of the reader for its log
        checkpoint = drop_config_text(load_checkpoint(filename, trust=trust))
        return _process_mmcls_checkpoint(checkpoint) if filename.startswith('mmcls://') else checkpoint

    CheckpointLoader.register_scheme(list(CheckpointLoader._schemes), load_as_data, force=True)


def require_file(path: str | os.PathLike) -> None:
    """Check that a checkpoint is there, unless it is a URL.

    Raises:
        FileNotFoundError: if it is not, or is a folder.
    """
    file = local_path(path)
    if file is not None and not os.path.isfile(file):
        what = 'is a folder: name the file in it' if os.path.isdir(file) else 'does not exist'
        raise FileNotFoundError(f'checkpoint {os.fspath(path)!r} {what}')


def _load_data_only(path: str):
    if path.endswith('.safetensors'):
        from safetensors.torch import load_file

        return load_file(path)
    return data_file.read(path)
