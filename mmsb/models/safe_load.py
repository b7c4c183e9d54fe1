"""Reading a checkpoint as data: nothing in a file is run.

torch's own reader of weights is told what mmengine's checkpoints hold beside tensors; everything else is refused.
"""

import codecs
import os
import pickle
from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader
from torch import Tensor

_CONTAINERS = ('state_dict', 'model', 'model_state', 'module')
_METHODS = {
    HistoryBuffer: ('min', 'max', 'current', 'mean'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


def local_path(path: str | os.PathLike) -> str | None:
    """Expand a path of a checkpoint; None for a URL."""
    path = os.fspath(path)
    return None if '://' in path else os.path.expanduser(path)


def load_checkpoint(path: str | os.PathLike, *, trust: bool = False):
    """Load all that a checkpoint holds, onto the CPU, without running code from a local file.

    Args:
        path: local file (.pth of any library, .safetensors), URL, or 'torchvision://resnet50' and the like.
        trust: whether a local file that is more than data may run its code.

    Raises:
        FileNotFoundError: if a local file is missing.
        ValueError: if a local file cannot be read, or holds something that is not data.
    """
    path = os.fspath(path)
    file = local_path(path)
    if file is None:
        return CheckpointLoader.load_checkpoint(path, map_location='cpu')
    require_file(path)
    try:
        if trust and not file.endswith('.safetensors'):
            return torch.load(file, map_location='cpu', weights_only=False)
        return _load_data_only(file)
    except Exception as error:  # a file that is no checkpoint raises anything
        said = str(error.__context__ or error).strip() or type(error).__name__  # the cause, without torch's advice
        raise ValueError(f'checkpoint {path!r} cannot be read as data: {said.splitlines()[0]}') from error


def load_state_dict(path: str | os.PathLike) -> dict:
    """Load the weights of a checkpoint, onto the CPU, without running code from a local file.

    Args:
        path: see `load_checkpoint`.

    Raises:
        FileNotFoundError: if a local file is missing.
        ValueError: if the file holds no state dict, or something that is not data.
    """
    checkpoint = load_checkpoint(path)
    for name in _CONTAINERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(name), Mapping):
            checkpoint = checkpoint[name]
    if not isinstance(checkpoint, Mapping) or not any(isinstance(value, Tensor) for value in checkpoint.values()):
        containers = f'names and tensors, or these under {_CONTAINERS}'
        raise ValueError(f'checkpoint {os.fspath(path)!r} holds no state dict: {containers}')
    return {key.removeprefix('module.'): value for key, value in checkpoint.items() if isinstance(value, Tensor)}


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
    if not hasattr(torch.serialization, 'safe_globals'):  # torch < 2.5
        return torch.load(path, map_location='cpu', weights_only=False, pickle_module=_DataPickle)
    with torch.serialization.safe_globals(_mmengine_globals()):
        return torch.load(path, map_location='cpu', weights_only=True)


def _mmengine_globals() -> list:
    """List what mmengine's checkpoints hold beside tensors: NumPy values, counters, the log history, and a method."""
    functions = [np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]]  # of numpy.core, or of numpy._core
    names = [f'numpy.{core}.multiarray.{f.__name__}' for core in ('core', '_core') for f in functions]
    return [
        *_METHODS,
        (_method_of_data, 'builtins.getattr'),
        *zip(functions * 2, names, strict=True),
        Counter,
        np.ndarray,
        np.dtype,
        *(type(np.dtype(kind)) for kind in ('float32', 'float64', 'int64', 'uint32')),
    ]


class _DataPickle:
    """Stands for the module pickle where torch (< 2.5) can't be told more data types: finds these and nothing else."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str):
            known = {**torch._weights_only_unpickler._get_allowed_globals(), '_codecs.encode': codecs.encode}
            for entry in _mmengine_globals():
                named = entry if isinstance(entry, tuple) else (entry, f'{entry.__module__}.{entry.__name__}')
                known[named[1]] = named[0]
            full_name = f'{module}.{name}'.replace('__builtin__.', 'builtins.')
            if full_name not in known:
                raise pickle.UnpicklingError(f'Unsupported class {full_name}')
            return known[full_name]

    @classmethod
    def load(cls, file, **options):
        return cls.Unpickler(file, **options).load()


def _method_of_data(owner: type, name: str):
    # Pickle writes a method of a class as getattr(owner, name). The real getattr would reach any code.
    if name not in _METHODS.get(owner, ()):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not data')
    return getattr(owner, name)
