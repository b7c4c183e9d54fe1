"""Load a checkpoint as data: no code in a file runs, and a failed load is never retried less strictly.

The reader is `torch.load(weights_only=True)`, with checks before it (`archive.py`) and stand-ins for the objects other
than tensors in MMEngine's checkpoints (`stand_ins.py`).
"""

import contextlib
import functools
import json
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
_kept: dict[tuple, object] = {}  # at most one checkpoint, by the version of its file
_CONTAINERS = ('state_dict', 'model', 'model_state', 'module')


def local_path(path: str | os.PathLike) -> str | None:
    """Expand the path of a checkpoint; return None for a URL."""
    path = os.fspath(path)
    return None if '://' in path else os.path.expanduser(path)


def load_checkpoint(
    path: str | os.PathLike, *, own: bool = False, trust: bool | None = None, header: bool = False, keep: bool = False
):
    """Load everything in a checkpoint onto the CPU without running code from it.

    Args:
        path: file (.pth of any library, .safetensors), or a URL or name such as 'torchvision://resnet50', which is
            downloaded first (`download.fetch`).
        own: whether the caller wrote the file itself. Such a file is trusted below torch 2.6, which cannot load pickles
            as data.
        trust: whether the file may run its code; None uses the setting of `install_reader`.
        header: whether to leave the tensors on the disk, and their checksums unchecked: for a look at the rest.
        keep: whether to keep the content, so that this process need not read the unchanged file again, until `forget`.

    Raises:
        FileNotFoundError: if a local file is missing.
        ValueError: if the file cannot be downloaded or read, or holds something that is not data.
    """
    path = os.fspath(path)
    require_file(path)
    file = local_path(path) or download.fetch(path)
    version = _version_of(file)
    if version in _kept:
        return _kept[version]
    content = _read(path, file, own=own, trust=trust, header=header)
    if keep:
        forget()
        _kept[version] = content
    return content


def forget() -> None:
    """Drop the checkpoint that `load_checkpoint` keeps."""
    _kept.clear()


def _version_of(file: str) -> tuple:
    state = os.stat(file)
    return os.path.realpath(file), state.st_ino, state.st_size, state.st_mtime_ns


def _read(path: str, file: str, *, own: bool, trust: bool | None, header: bool):
    try:
        if file.endswith('.safetensors'):
            return _load_safetensors(file)
        own = torch.__version__ < DATA_FROM and (own or _is_in(file, _trusted['folders']))
        if own or (_trusted['everything'] if trust is None else trust):
            archive.check(file)
            with _running_code():
                return torch.load(file, map_location='cpu', weights_only=False)
        return _load_as_data(file, header=header)
    except Exception as error:  # an invalid file can raise any exception
        raise ValueError(f'checkpoint {path!r} cannot be read as data: {_reason(error)}') from error


def load_state_dict(
    path: str | os.PathLike, *, own: bool = False, trust: bool | None = None, keep: bool = False
) -> dict:
    """Load the weights of a checkpoint onto the CPU without running code from it.

    Args:
        path: see `load_checkpoint`.
        own: see `load_checkpoint`.
        trust: see `load_checkpoint`.
        keep: see `load_checkpoint`.

    Raises:
        FileNotFoundError: if a local file is missing.
        ValueError: if the file holds no state dict, or something that is not data.
    """
    checkpoint = load_checkpoint(path, own=own, trust=trust, keep=keep)
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


def install_reader(*, trust: bool = False, own: Iterable[str] = (), everywhere: bool = False) -> None:
    """Make mmengine load every checkpoint as data, whether for an `init_cfg`, a hook or a stock runner.

    The same holds for `mmengine.load` of pickled annotations (`pickles.py`).

    Args:
        trust: whether checkpoints may run their code.
        own: folders that this run writes; files in them count as its own.
        everywhere: whether the same is to hold for every `torch.load` in this process and its workers, even one with
            `weights_only=False`; a tool wants that, a program that imports mmsb may not.
    """
    _trusted.clear()
    _trusted.update(everything=trust, folders=[Path(folder).resolve() for folder in own])

    def load_as_data(filename: str, map_location=None):  # mmengine logs the name of this function
        checkpoint = drop_config_text(load_checkpoint(filename))
        forget()
        return _process_mmcls_checkpoint(checkpoint) if filename.startswith('mmcls://') else checkpoint

    CheckpointLoader.register_scheme(list(CheckpointLoader._schemes), load_as_data, force=True)
    pickles.install_handler(trust=trust)
    if everywhere:
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


def _load_safetensors(file: str) -> dict:
    """Load the tensors of a file; with the names of the classes, if mmsb has published it with them."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    state = load_file(file)
    with safe_open(file, 'pt') as opened, contextlib.suppress(ValueError):  # another program's texts are no JSON
        classes = json.loads((opened.metadata() or {}).get('dataset_meta', ''))
        return dict(meta=dict(dataset_meta=classes), state_dict=state)
    return state


def _load_as_data(file: str, *, header: bool):
    version = torch.__version__
    if version < DATA_FROM:
        raise stand_ins.NotDataError(
            f'PyTorch {version} runs code in pickles: use a .safetensors file or PyTorch >= 2.6, or allow it '
            'for a file of your own with --trust-checkpoint'
        )
    if version < SOUND_FROM:
        _warn_once(f"PyTorch {version}'s reader of checkpoints has known security holes; 2.10 closes them")
    zipped = archive.check(file, checksums=not header)
    with stand_ins.allowed():
        content = torch.load(file, map_location='cpu', weights_only=True, mmap=header and zipped)
    return stand_ins.replace(content)


@functools.cache
def _warn_once(text: str) -> None:
    print_log(text, logger='current', level=logging.WARNING)


def _reason(error: Exception) -> str:
    """Describe in one line why a file is not data; torch hides the reason behind advice to trust the file."""
    text = one_line(error.__context__ if isinstance(error, pickle.UnpicklingError) and error.__context__ else error)
    named = re.search(r'GLOBAL (\S+)', text)
    return f'Unsupported class {named[1]}' if named else text
