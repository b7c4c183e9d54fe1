"""What the data of a checkpoint are built with: tensors, arrays, numbers and containers, out of checked arguments.

`KNOWN` is all that a pickle may name, and `data_pickle.py` the reader that builds with it. Nothing here calls,
imports or sets what a file names, and nothing takes more memory than the file can account for.
"""

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from torch import Tensor, nn

MAX_DIMENSIONS = 64  # of PyTorch and of NumPy
ENTRY_BYTES = 100  # of a dict or a set
KINDS = {'Double': 'float64', 'Float': 'float32', 'Half': 'float16', 'Long': 'int64', 'Int': 'int32', 'Short': 'int16',
          'Char': 'int8', 'Byte': 'uint8', 'Bool': 'bool', 'BFloat16': 'bfloat16', 'ComplexFloat': 'complex64',
          'ComplexDouble': 'complex128', 'Untyped': 'uint8'}  # fmt: skip
DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_METHODS = {
    HistoryBuffer: ('min', 'max', 'current', 'mean'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}
_SCALARS = (str, bytes, bool, int, float, type(None), torch.dtype, torch.device)


class NotDataError(ValueError):
    """A file holds what is not data, or less than it says."""


@dataclass(frozen=True)
class StorageType:
    dtype: torch.dtype


@dataclass(frozen=True)
class Storage:
    content: Tensor  # bytes
    dtype: torch.dtype


@dataclass
class ArrayType:
    dtype: np.dtype

    def set_state(self, state) -> None:
        """Take the byte order; fields, sizes and flags of its own could make addresses out of numbers."""
        require(type(state) is tuple and len(state) == 8 and state[1] in ('<', '>', '|', '='), 'dtype state')
        sizes = (-1, -1) if self.dtype.kind not in 'SU' else state[5:7]
        require(state[2:5] == (None, None, None) and state[5:7] == sizes, 'dtype state')
        self.dtype = self.dtype.newbyteorder(state[1])


def require(condition: bool, what: str) -> None:
    """Check a property of a file.

    Raises:
        NotDataError: it has it not; names what is wrong.
    """
    if not condition:
        raise NotDataError(what)


def are_sizes(value) -> bool:
    few = isinstance(value, tuple) and len(value) <= MAX_DIMENSIONS
    return few and all(type(size) is int and 0 <= size < 2**62 for size in value)


def checked_key(value):
    """Check a key: of tuples in tuples the hash can take forever."""
    parts = value if type(value) is tuple else (value,)
    require(all(type(part) in _SCALARS for part in parts), 'a key that is neither number nor text')
    return value


@dataclass(frozen=True)
class Function:
    make: Callable  # of the unpickler and the arguments in the file


def _tensor(unpickler, storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None, *, dtype=None):
    ints = are_sizes((offset,)) and are_sizes(size) and are_sizes(stride) and len(size) == len(stride)
    require(type(storage) is Storage and ints and type(requires_grad) is bool, 'arguments of a tensor')
    values = storage.content.view(dtype or storage.dtype)
    if 0 not in size:
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        require(last < len(values), f'a tensor of shape {size} beyond its storage of {len(values):,}')
    unpickler.spend(math.prod(size), values.element_size())
    tensor = values.as_strided(size, stride, values.storage_offset() + offset)
    return tensor.requires_grad_() if requires_grad else tensor


def _tensor_of_dtype(unpickler, storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None):
    require(type(dtype) is torch.dtype, 'arguments of a tensor')
    return _tensor(unpickler, storage, offset, size, stride, requires_grad, dtype=dtype)


def _parameter(unpickler, data, requires_grad, hooks, state=None):
    require(isinstance(data, Tensor) and type(requires_grad) is bool, 'arguments of a parameter')
    return nn.Parameter(data, requires_grad)


def _of_type(unpickler, function, kind, args, state):
    require(type(function) is Function and function.make in (_tensor, _tensor_of_dtype), 'a tensor of another class')
    require(kind in (Tensor, nn.Parameter) and type(args) is tuple, 'a tensor of another class')
    tensor = function.make(unpickler, *args)
    return nn.Parameter(tensor.detach(), tensor.requires_grad) if kind is nn.Parameter else tensor


def _ordered_dict(unpickler, items=()):
    require(type(items) in (tuple, list) and all(len(item) == 2 for item in items), 'items of a dict')
    unpickler.spend(len(items), ENTRY_BYTES)
    return OrderedDict((checked_key(key), value) for key, value in items)


def _counter(unpickler, items=None):
    require(type(items) in (dict, type(None)), 'items of a counter')
    unpickler.spend(len(items or ()), ENTRY_BYTES)
    return Counter(items)


def _set(unpickler, items=()):
    require(type(items) in (tuple, list), 'items of a set')
    unpickler.spend(len(items), ENTRY_BYTES)
    return set(map(checked_key, items))


def _size(unpickler, sizes=()):
    require(are_sizes(sizes), 'a size')
    unpickler.spend(len(sizes), 8)
    return torch.Size(sizes)


def _device(unpickler, *args):
    require(all(type(arg) in (str, int) for arg in args), 'a device')
    return torch.device(*args)


def _bytes(unpickler, text, encoding):
    """Make bytes: before protocol 3 they are written as text."""
    require(type(text) is str and encoding in ('latin1', 'latin-1'), 'bytes of another encoding')
    unpickler.spend(len(text))
    return text.encode('latin1')


def _no_bytes(unpickler):
    return b''


def _array(unpickler, cls, shape, code):
    require(cls is np.ndarray, 'an array of another class')
    return np.empty(0)


def _array_type(unpickler, name, align=False, copy=True):
    plain = type(name) is str and re.fullmatch(r'[|<>=]?([biufc]\d{1,2}|[SU]\d{1,9}|\?)', name)
    require(bool(plain), f'an array of {str(name)[:20]!r}' if type(name) is str else 'an array of no numbers')
    return ArrayType(np.dtype(name))


def _number(unpickler, kind, content):
    fits = type(kind) is ArrayType and type(content) is bytes and 0 < kind.dtype.itemsize == len(content)
    require(fits, 'a number of another number of bytes')
    return np.frombuffer(content, kind.dtype)[0]


def _method(unpickler, owner, name):
    """Find a method of a class, which pickle writes as getattr(owner, name). The real getattr would reach any code."""
    plain = isinstance(owner, type) and type(name) is str
    what = f'getattr({owner.__name__}, {name[:40]!r})' if plain else 'getattr'
    require(plain and name in _METHODS.get(owner, ()), f'{what} is not data')
    return getattr(owner, name)


FUNCTIONS = {
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor_of_dtype,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_parameter_with_state': _parameter,
    'torch._tensor._rebuild_from_type_v2': _of_type,
    'torch.Size': _size,
    'torch.device': _device,
    'collections.OrderedDict': _ordered_dict,
    'collections.Counter': _counter,
    'builtins.set': _set,
    'builtins.bytes': _no_bytes,
    'builtins.getattr': _method,
    '_codecs.encode': _bytes,
    'numpy.dtype': _array_type,
    'numpy.core.multiarray._reconstruct': _array,
    'numpy.core.multiarray.scalar': _number,
}
_CLASSES = (Tensor, nn.Parameter, np.ndarray, *_METHODS)
KNOWN = {f'{cls.__module__}.{cls.__name__}': cls for cls in _CLASSES} | {
    name: Function(make) for name, make in FUNCTIONS.items()
}
