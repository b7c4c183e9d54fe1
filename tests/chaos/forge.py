"""Forge files of torch.save: archives and pickles that torch and pickle would not write.

Used by `malicious.py` and the tests. Creating the files runs none of their code.
"""

import io
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import torch

_LEGACY = (0x1950A86A20F9469CFC6C, 1001, dict(protocol_version=1001, little_endian=True, type_sizes={}))


class Call:
    """An object whose pickle calls `function(*args)` and then passes `state` to the result."""

    def __init__(self, function, *args, state=None) -> None:
        self.parts = (function, args) if state is None else (function, args, state)

    def __call__(self) -> None:
        """Do nothing: pickle requires a function to be callable, even if it is the result of a call."""

    def __reduce__(self) -> tuple:
        return self.parts


class Storage:
    """Represents a tensor's memory in a pickle."""

    def __init__(self, count: int, key: str = '0', kind=torch.FloatStorage) -> None:
        self.id = ('storage', kind, key, 'cpu', count)


class _Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.id if isinstance(value, Storage) else None


def pickled(value, protocol: int = 2) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol).dump(value)
    return file.getvalue()


def name(module: str, what: str) -> bytes:
    return f'c{module}\n{what}\n'.encode()


def raw(*parts) -> bytes:
    """Write a pickle from opcodes (bytes) and values."""
    body = (part if isinstance(part, bytes) else pickled(part)[2:-1] for part in parts)
    return b'\x80\x02' + b''.join(body) + b'.'


def archive(data_pkl: bytes, records: dict[str, bytes] | None = None, root: str = 'archive', **options) -> bytes:
    """Write the zip of torch.save."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', **options) as out:
        for path, content in {
            'data.pkl': data_pkl,
            'byteorder': b'little',
            'version': b'3\n',
            **(records or {}),
        }.items():
            out.writestr(path if path.startswith(('/', '.')) else f'{root}/{path}', content)
    return file.getvalue()


def old(position: int, value) -> bytes:
    """Write the format of torch < 1.6, five consecutive pickles, with `value` in place of one."""
    parts = [*_LEGACY, dict(), []]
    parts[position] = value
    return b''.join(part if isinstance(part, bytes) else pickled(part) for part in parts)


def tensor(*args) -> Call:
    return Call(torch._utils._rebuild_tensor_v2, *args)


def whole_checkpoint(**more) -> bytes:
    weights = {'conv1.weight': tensor(Storage(2), 0, (2,), (1,), False, OrderedDict())}
    return archive(pickled(dict(state_dict=weights, **more)), {'data/0': bytes(8)})


def two_pickles(canary: str) -> bytes:
    content = io.BytesIO(whole_checkpoint())
    with zipfile.ZipFile(content, 'a') as out:
        out.NameToInfo.clear()  # avoids a warning
        out.writestr('archive/data.pkl', pickled(Call(os.system, f'touch {canary}')))
    return content.getvalue()


class _WritesWhenLoaded(torch.nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path, self.training = state
        torch.save(torch.zeros(1), state[0])


def torchscript(canary: str) -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(_WritesWhenLoaded(canary)), file)
    return file.getvalue()


def tar(canary: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as out:
        for member, content in dict(storages=pickled(0), tensors=pickled(0), pickle=os_system(canary)).items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return file.getvalue()


def os_system(canary: str) -> bytes:
    return pickled(Call(os.system, f'touch {canary}'))


def hidden_objects() -> Call:
    """Make an array whose bytes are treated as addresses of objects, although its dtype declares no objects."""
    state = (3, '|', None, ('a',), {'a': (Call(np.dtype, 'O'), 0)}, 8, 1, 0)
    kind = Call(np.dtype, 'f8', False, True, state=state)
    return Call(np.empty(0).__reduce__()[0], np.ndarray, (0,), b'b', state=(1, (1,), kind, False, b'\x41' * 8))


def array(dtype, shape: tuple, content) -> Call:
    return Call(np.empty(0).__reduce__()[0], np.ndarray, (0,), b'b', state=(1, shape, dtype, False, content))
