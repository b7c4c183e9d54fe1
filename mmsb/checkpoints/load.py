"""Load a checkpoint as data: no code in a file runs, and a failed load is never retried less strictly.

The reader is `torch.load(weights_only=True)`, with checks before it (`archive.py`) and stand-ins for the objects other
than tensors in MMEngine's checkpoints (`stand_ins.py`).
"""

import contextlib
import functools
import logging
import os
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import _process_mmcls_checkpoint
from torch import Tensor

from mmsb.checkpoints import archive, download, pickles, stand_ins
from mmsb.options import one_line

DATA_FROM, SOUND_FROM = (2, 6), (2, 10)  # torch: `weights_only` runs no code; its known holes are closed
_AS_DATA = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'  # environment variable that torch.load obeys
_trusted = dict(everything=False, folders=[])  # for this process; see `install_reader`
_CONTAINERS = ('state_dict', 'model', 'model_state', 'module')


def local_path(path: str | os.PathLike) -> str | None:
    """Expand the path of a checkpoint; return None for a URL."""
    path = os.fspath(path)
    return None if '://' in path else os.path.expanduser(path)


def load_checkpoint(path: str | os.PathLike, *, own: bool = False, trust: bool | None = None):
    """Load everything in a checkpoint onto the CPU without running code from it.

    Args:
        path: file (.pth of any library, .safetensors), or a URL or name such as 'torchvision://resnet50', which is
            downloaded first (`download.fetch`).
        own: whether the caller wrote the file itself. Such a file is trusted below torch 2.6, which cannot load pickles
            as data.
        trust: whether the file may run its code; None uses the setting of `install_reader`.

    Raises:
        FileNotFoundError: if a local file is missing.
        ValueError: if the file cannot be downloaded or read, or holds something that is not data.
    """
    path = os.fspath(path)
    require_file(path)
    file = local_path(path) or download.fetch(path)
    try:
        if file.endswith('.safetensors'):
            from safetensors.torch import load_file

            return load_file(file)
        own = torch.__version__ < DATA_FROM and (own or _is_in(file, _trusted['folders']))
        if own or (_trusted['everything'] if trust is None else trust):
            archive.check(file, work=False)
            with _running_code():
                return torch.load(file, map_location='cpu', weights_only=False)
        return _load_as_data(file)
    except Exception as error:  # an invalid file can raise any exception
        raise ValueError(f'checkpoint {path!r} cannot be read as data: {_reason(error)}') from error


def load_state_dict(path: str | os.PathLike, *, own: bool = False, trust: bool | None = None) -> dict:
    """Load the weights of a checkpoint onto the CPU without running code from it.

    Args:
        path: see `load_checkpoint`.
        own: see `load_checkpoint`.
        trust: see `load_checkpoint`.

    Raises:
        FileNotFoundError: if a local file is missing.
        ValueError: if the file holds no state dict, or something that is not data.
    """
    checkpoint = load_checkpoint(path, own=own, trust=trust)
    for name in _CONTAINERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(name), Mapping):
            checkpoint = checkpoint[name]
    if not isinstance(checkpoint, Mapping) or not any(isinstance(value, Tensor) for value in checkpoint.values()):
        containers = f'names and tensors, or these under {_CONTAINERS}'
        raise ValueError(f'checkpoint {os.fspath(path)!r} holds no state dict: {containers}')
    return {key.removeprefix('module.'): value for key, value in checkpoint.items() if isinstance(value, Tensor)}


def drop_config_text(checkpoint):
    """Remove the config text, which mmengine executes when it resumes, only to compare the numbers of GPUs."""
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get('meta'), dict):
        checkpoint['meta'].pop('config', None)
    return checkpoint


def install_reader(*, trust: bool = False, own: Iterable[str] = ()) -> None:
    """Make mmengine load every checkpoint as data, whether for an `init_cfg`, a hook or a stock runner.

    The same holds for `mmengine.load` of pickled annotations (`pickles.py`), and for every `torch.load` in this process
    and its workers, even one with `weights_only=False`.

    Args:
        trust: whether checkpoints may run their code.
        own: folders that this run writes; files in them count as its own.
    """
    _trusted.clear()
    _trusted.update(everything=trust, folders=[Path(folder).resolve() for folder in own])

    def load_as_data(filename: str, map_location=None):  # mmengine logs the name of this function
        checkpoint = drop_config_text(load_checkpoint(filename))
        return _process_mmcls_checkpoint(checkpoint) if filename.startswith('mmcls://') else checkpoint

    CheckpointLoader.register_scheme(list(CheckpointLoader._schemes), load_as_data, force=True)
    pickles.install_handler(trust=trust)
    os.environ[_AS_DATA] = '0' if trust else '1'


def require_file(path: str | os.PathLike) -> None:
    """Check that a checkpoint exists, unless it is a URL.

    Raises:
        FileNotFoundError: if the file does not exist or is a folder.
    """
    file = local_path(path)
    if file is not None and not os.path.isfile(file):
        what = 'is a folder: name a file in it' if os.path.isdir(file) else 'does not exist'
        raise FileNotFoundError(f'checkpoint {os.fspath(path)!r} {what}')


@contextlib.contextmanager
def _running_code() -> Iterator[None]:
    """Let `torch.load` run the code of a trusted file."""
    before = os.environ.pop(_AS_DATA, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[_AS_DATA] = before


def _is_in(file: str, folders: list[Path]) -> bool:
    return any(Path(file).resolve().is_relative_to(folder) for folder in folders)


def _load_as_data(file: str):
    version = torch.__version__
    if version < DATA_FROM:
        raise stand_ins.NotDataError(
            f'PyTorch {version} runs code in pickles: use a .safetensors file or PyTorch >= 2.6, or allow it '
            'for a file of your own with --trust-checkpoint'
        )
    if version < SOUND_FROM:
        _warn_once(f"PyTorch {version}'s reader of checkpoints has known security holes; 2.10 closes them")
    archive.check(file)
    with stand_ins.allowed():
        content = torch.load(file, map_location='cpu', weights_only=True)
    return stand_ins.replace(content)


@functools.cache
def _warn_once(text: str) -> None:
    print_log(text, logger='current', level=logging.WARNING)


def _reason(error: Exception) -> str:
    """Describe in one line why a file is not data; torch hides the reason behind advice to trust the file."""
    text = one_line(error.__context__ if isinstance(error, pickle.UnpicklingError) and error.__context__ else error)
    named = re.search(r'GLOBAL (\S+)', text)
    return f'Unsupported class {named[1]}' if named else text
