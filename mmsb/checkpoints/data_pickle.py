"""An unpickler for data: what a checkpoint holds is built, and nothing is called, imported or set.

A pickle is a program on a stack. Of its operations those are known that build containers, numbers and strings; what it
can call are the functions of `data_values.py`, which check their arguments; and an object is given a state by code that
knows its class. Time is bounded by a number of operations, memory by the size of the file.
"""

import gc
import math
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from mmengine.logging import HistoryBuffer

from mmsb.checkpoints.data_values import (
    DTYPES,
    KINDS,
    KNOWN,
    ArrayType,
    Function,
    NotDataError,
    Storage,
    StorageType,
    are_sizes,
    checked_key,
    require,
)

MAX_OPERATIONS = 4_000_000  # a checkpoint of ResNet-152 with its optimizer has some 40,000
MEMORY_PER_BYTE, MEMORY_BYTES = 16, 2**20  # that copies may take: for each byte of the file, and beside that
_HISTORY_STATE = {'max_length', '_log_history', '_count_history', 'statistics_methods'}
_OPERATIONS = (
    *('PROTO', 'FRAME', 'STOP', 'MARK', 'NONE', 'NEWTRUE', 'NEWFALSE', 'BININT', 'BININT1', 'BININT2', 'LONG1'),
    *('BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8', 'BINSTRING', 'SHORT_BINSTRING', 'BINBYTES'),
    *('SHORT_BINBYTES', 'BINBYTES8', 'TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3', 'EMPTY_TUPLE', 'EMPTY_LIST', 'EMPTY_DICT'),
    *('EMPTY_SET', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE', 'BINGET', 'LONG_BINGET', 'GLOBAL', 'STACK_GLOBAL'),
)


class _Limited:
    """The operations of one pickle: as many as are left."""

    def __init__(self) -> None:
        self.left = MAX_OPERATIONS

    def __getitem__(self, code: int) -> Callable:
        self.left -= 1
        if self.left < 0:
            raise NotDataError(f'more than {MAX_OPERATIONS:,} operations')
        if code not in _HANDLERS:
            raise NotDataError(f'operation {bytes([code])!r}')
        return _HANDLERS[code]


class DataUnpickler(pickle._Unpickler):
    """Python's own unpickler without what calls, imports or sets anything.

    Args:
        record: returns the bytes of a storage by its key and its size in bytes.
        size: of the file in bytes.
    """

    def __init__(self, file: BinaryIO, record: Callable, size: int) -> None:
        super().__init__(file, encoding='utf-8')
        self.dispatch = _Limited()
        self.record = record
        self.memory = MEMORY_PER_BYTE * size + MEMORY_BYTES

    def spend(self, count: int, item_bytes: int = 1) -> None:
        self.memory -= count * item_bytes
        require(self.memory >= 0, 'copies that take far more memory than the file')

    def load(self):
        collecting = gc.isenabled()
        gc.disable()  # it would walk again and again over millions of new objects
        try:
            return super().load()
        except NotDataError:
            raise
        except Exception as error:  # the stack is not what an operation needs
            raise NotDataError(f'damaged pickle ({type(error).__name__}: {error})') from error
        finally:
            if collecting:
                gc.enable()

    def find_class(self, module: str, name: str):
        path = f'{module}.{name}'.replace('__builtin__.', 'builtins.').replace('numpy._core.', 'numpy.core.')
        if re.fullmatch(r'torch\.(cuda\.|storage\.)?\w+Storage', path):
            kind = name.removesuffix('Storage')
            require(kind in KINDS, path)
            return StorageType(DTYPES[f'torch.{KINDS[kind]}'])
        if path in DTYPES:
            return DTYPES[path]
        if path not in KNOWN:
            raise NotDataError(f'Unsupported class {path}')
        return KNOWN[path]

    def call(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        require(type(args) is tuple and type(function) is Function, 'a call of what is no function')
        self.append(function.make(self, *args))

    def new(self) -> None:
        args, cls = self.stack.pop(), self.stack.pop()
        require(cls is HistoryBuffer and args == (), 'an object of another class')
        self.append(HistoryBuffer())

    def build(self) -> None:
        state, owner = self.stack.pop(), self.stack[-1]
        if type(owner) is ArrayType:
            owner.set_state(state)
        elif type(owner) is np.ndarray:
            require(type(state) is tuple and len(state) == 5 and type(state[2]) is ArrayType, 'array state')
            _, shape, kind, fortran, content = state
            require(type(content) is bytes and type(fortran) is bool and are_sizes(shape), 'array state')
            require(math.prod(shape) * kind.dtype.itemsize == len(content), 'array of another number of bytes')
            self.spend(len(content))
            owner.__setstate__((1, shape, kind.dtype, fortran, content))
        elif type(owner) is HistoryBuffer:
            require(type(state) is dict and set(state) == _HISTORY_STATE, 'history state')
            known = dict(HistoryBuffer._statistics_methods)
            require(type(state['statistics_methods']) is dict, 'history state')
            methods = state['statistics_methods'].items()
            require(all(known.get(name) is method for name, method in methods), 'methods of a history')
            require(type(state['max_length']) is int, 'history state')
            for name in ('_log_history', '_count_history'):
                require(type(state[name]) is np.ndarray and state[name].ndim == 1, 'history state')
            owner.__dict__.update({name: value for name, value in state.items() if name != 'statistics_methods'})
        elif type(owner) is OrderedDict:
            require(type(state) is dict and set(state) <= {'_metadata'}, 'attributes of a dict')
            owner.__dict__.update(state)
        else:
            raise NotDataError(f'a state of a {type(owner).__name__}')

    def storage(self) -> None:
        identity = self.stack.pop()
        require(type(identity) is tuple and 5 <= len(identity) <= 6 and identity[0] == 'storage', 'persistent id')
        _, kind, key, _, count, *view = identity
        require(type(kind) is StorageType and type(key) is str and are_sizes((count,)), 'persistent id')
        item_size = kind.dtype.itemsize
        extra = (item_size, *view) if view else ()
        self.append(Storage(self.record(key, count * item_size, *extra), kind.dtype))

    def add_item(self) -> None:
        item = self.stack.pop()
        require(type(self.stack[-1]) is list, 'an item of what is no list')
        self.stack[-1].append(item)

    def add_items(self) -> None:
        items = self.pop_mark()
        owner = self.stack[-1]
        require(type(owner) in (list, set), 'items of what is no list')
        if type(owner) is set:
            owner.update(map(checked_key, items))
        else:
            owner.extend(items)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(key, value)

    def set_items(self) -> None:
        items = self.pop_mark()
        require(len(items) % 2 == 0, 'a key without value')
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._set(key, value)

    def _set(self, key, value) -> None:
        require(type(self.stack[-1]) in (dict, OrderedDict, Counter), 'a key of what is no dict')
        self.stack[-1][checked_key(key)] = value


_HANDLERS = {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _OPERATIONS} | {
    pickle.REDUCE[0]: DataUnpickler.call,
    pickle.NEWOBJ[0]: DataUnpickler.new,
    pickle.BUILD[0]: DataUnpickler.build,
    pickle.BINPERSID[0]: DataUnpickler.storage,
    pickle.APPEND[0]: DataUnpickler.add_item,
    pickle.APPENDS[0]: DataUnpickler.add_items,
    pickle.ADDITEMS[0]: DataUnpickler.add_items,
    pickle.SETITEM[0]: DataUnpickler.set_item,
    pickle.SETITEMS[0]: DataUnpickler.set_items,
}
