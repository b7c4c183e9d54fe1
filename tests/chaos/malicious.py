"""Checkpoints that try to run code, write files, or corrupt or exhaust memory: one file for each attack.

The code in them would create the file `canary`.
"""

import argparse
import functools
import importlib
import json
import operator
import os
import pathlib
import pickle
import runpy
import struct
import subprocess
import timeit
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from .forge import (
    Call,
    Storage,
    archive,
    array,
    hidden_objects,
    name,
    old,
    os_system,
    pickled,
    raw,
    tar,
    tensor,
    torchscript,
    two_pickles,
    whole_checkpoint,
)

REFUSED, DATA, WASTE = 'refused', 'data', 'waste'
WASTEFUL = {'slow codec'}  # only waste time or memory: refusing and loading are both right
DUNDERS = (
    *('__init__', '__new__', '__class__', '__subclasses__', '__mro__', '__bases__', '__reduce__', '__reduce_ex__'),
    *(
        '__getattribute__',
        '__setattr__',
        '__dict__',
        '__globals__',
        '__getstate__',
        '__setstate__',
        '__init_subclass__',
    ),
    *('mean.__globals__', 'mean.__code__', '_statistics_methods', 'register_statistics', 'statistics', 'mro'),
)


def _safetensors(header: bytes, length: int | None = None, content: bytes = bytes(8)) -> bytes:
    return struct.pack('<Q', len(header) if length is None else length) + header + content


def _weight(offsets: list[int], shape: list[int]) -> bytes:
    return json.dumps({'conv1.weight': dict(dtype='F32', shape=shape, data_offsets=offsets)}).encode()


_HISTORY = ('mmengine.logging.history_buffer', 'HistoryBuffer')
_CYCLE = ('mmengine.optim.scheduler.param_scheduler', 'OneCycleParamScheduler')


def _history(**more) -> bytes:
    state = dict(max_length=9, _log_history=np.zeros(1), _count_history=np.ones(1), statistics_methods={})
    return raw(name(*_HISTORY), b')\x81', {**state, **more}, b'b')


def _calls(canary: str) -> dict[str, Call]:
    """List calls of callables in the standard library, NumPy and torch that would run code."""
    code = f'open({canary!r}, "w")'
    shell = f'touch {canary}'
    return {
        'os.system': Call(os.system, shell),
        'subprocess.Popen': Call(subprocess.Popen, ['touch', canary]),
        'subprocess.check_output': Call(subprocess.check_output, ['touch', canary]),
        'eval': Call(eval, code),
        'exec': Call(exec, code),
        'open': Call(open, canary, 'w'),
        'getattr of a module': Call(Call(getattr, Call(__import__, 'os'), 'system'), shell),
        'importlib': Call(Call(getattr, Call(importlib.import_module, 'os'), 'system'), shell),
        'pathlib': Call(pathlib.Path.touch, Call(pathlib.Path, canary)),
        'functools.partial': Call(Call(functools.partial, os.system), shell),
        'functools.reduce': Call(functools.reduce, os.system, [shell]),
        'operator.attrgetter': Call(Call(operator.attrgetter, 'system'), Call(__import__, 'os')),
        'operator.methodcaller': Call(Call(operator.methodcaller, 'touch'), Call(pathlib.Path, canary)),
        'map': Call(list, Call(map, os.system, [shell])),
        'timeit': Call(timeit.timeit, code, 'pass', timeit.default_timer, 1),
        'runpy': Call(runpy.run_path, canary),
        'nested pickle': Call(pickle.loads, os_system(canary)),
        'numpy runstring': Call(importlib.import_module('numpy.testing').runstring, code, {}),
        'numpy.load': Call(np.load, canary, None, True),
        'torch.load': Call(torch.load, canary),
        'torch.jit.load': Call(torch.jit.load, canary),
        'torch.hub.load': Call(torch.hub.load, canary, 'model', 'local'),
        'os.rename by setstate': Call(OrderedDict, state=dict(items=Call(os.mkdir, canary))),
        'class with setstate': Call(HistoryBuffer, state=Call(os.system, shell)),
        'arguments with setstate': Call(argparse.Namespace, state=Call(os.system, shell)),
        'arguments without names': Call(argparse.Namespace, state=[canary]),
        'set attributes': Call(setattr, HistoryBuffer, 'mean', os.system),
        'defaultdict': Call(importlib.import_module('collections').defaultdict, os.system),
    }


def _shaped(canary: str) -> dict[str, bytes]:
    """List pickles that abuse allowed names through their arguments and states."""
    kind, scalar = np.dtype('f8'), np.float64(0).__reduce__()[0]
    weight, hooks = Storage(2), OrderedDict()
    pickles = {
        'sizes beyond the storage': tensor(weight, 0, (10**6,), (1,), False, hooks),
        'offset beyond the storage': tensor(weight, 10**12, (2,), (1,), False, hooks),
        'negative offset': tensor(weight, -(10**6), (2,), (1,), False, hooks),
        'negative stride': tensor(weight, 0, (2,), (-(2**40),), False, hooks),
        'overflowing stride': tensor(weight, 0, (2**33, 2**33), (2**33, 2**33), False, hooks),
        'no storage': tensor('storage', 0, (2,), (1,), False, hooks),
        'hooks that are called': tensor(weight, 0, (2,), (1,), True, OrderedDict({0: os.system})),
        'storage longer than its record': tensor(Storage(10**9), 0, (10**9,), (1,), False, hooks),
        'storage of another name': tensor(Storage(2, '../version'), 0, (2,), (1,), False, hooks),
        'tensor of a terabyte': Call(torch.Tensor, 10**6, 10**6),
        'type and state': Call(torch._tensor._rebuild_from_type_v2, HistoryBuffer, HistoryBuffer, (), {}),
        'parameter with state': Call(
            torch._utils._rebuild_parameter_with_state, 0, False, hooks, dict(__class__=HistoryBuffer)
        ),
        'array with hidden objects': hidden_objects(),
        'array of objects': array(Call(np.dtype, 'O'), (1,), [Call(os.system, f'touch {canary}')]),
        'array of a terabyte': Call(np.ndarray, (10**12,)),
        'array of other bytes': array(kind, (2**40,), bytes(8)),
        'array of another class': Call(np.empty(0).__reduce__()[0], HistoryBuffer, (0,), b'b', state=dict(a=1)),
        'scalar of an object': Call(scalar, Call(np.dtype, 'O'), b'\x41' * 8),
        'scalar that is too short': Call(scalar, kind, b''),
        'bytes of a terabyte': Call(bytearray, 10**12),
        'slow codec': Call(__import__('_codecs').encode, 'é' * 200_000, 'punycode'),
        'codec that is a module': Call(__import__('_codecs').encode, 'a', 'aliases'),
        'shadowed methods': Call(OrderedDict, state=dict(items=OrderedDict, __class__=Counter)),
        'shadowed methods of a counter': Call(Counter, state=dict(elements=OrderedDict)),
    }  # fmt: skip
    return {what: pickled(value) for what, value in pickles.items()}


def _opcodes(canary: str) -> dict[str, bytes]:
    """List pickles that no pickler would write."""
    shell = f'touch {canary}'
    return {
        'INST': raw(b'(', shell, b'iposix\nsystem\n'),
        'OBJ': raw(b'(', name('posix', 'system'), shell, b'o'),
        'names of Python 2': raw(name('__builtin__', 'eval'), f'open({canary!r}, "w")', b'\x85R'),
        'STACK_GLOBAL': raw('posix', 'system', b'\x93', shell, b'\x85R').replace(b'\x80\x02', b'\x80\x04', 1),
        'dotted name': raw('mmengine', 'logging.history_buffer.np', b'\x93').replace(b'\x80\x02', b'\x80\x04', 1),
        'NEWOBJ_EX': raw(name('subprocess', 'Popen'), (['touch', canary],), {}, b'\x92'),
        'EXT1': raw(b'\x82\x01'),
        'EXT4': raw(b'\x84\x01\x00\x00\x00'),
        'text PERSID': raw(b'Pstorage\n'),
        'other persistent id': raw(('module', HistoryBuffer, 'a.py', 'text'), b'Q'),
        'copyreg': raw(name('copy_reg', '_reconstructor'), name(*_HISTORY), name(*_HISTORY), None, b'\x87R'),
        'BUILD of a class': raw(name(*_HISTORY), (None, dict(mean='evil')), b'b'),
        'BUILD of a function': raw(name('torch._utils', '_rebuild_tensor_v2'), (None, dict(evil=1)), b'b'),
        'BUILD of a shared dtype': raw(
            name('numpy', 'dtype'), ('f8',), b'R', (3, '>', None, None, None, 4, 4, 0), b'b'
        ),
        'history with methods of its own': _history(statistics_methods=dict(mean=OrderedDict)),
        'history with shadowed methods': _history(mean=OrderedDict),
        'items of a class': raw(name(*_HISTORY), 'mean', 1, b's'),
        'empty stack': raw(b'R'),
        'no such memo': raw(b'h\x07'),
        'string of 2 GB': b'\x80\x02X' + struct.pack('<I', 2**31) + b'a.',
        'bytes of an exabyte': b'\x80\x04\x8e' + struct.pack('<Q', 2**60) + b'a.',
        **{f'getattr(HistoryBuffer, {one})': raw(name('builtins', 'getattr'), name(*_HISTORY), one, b'\x86R')
           for one in DUNDERS},
        'getattr(OneCycle, __init__)': raw(name('builtins', 'getattr'), name(*_CYCLE), '__init__', b'\x86R'),
        'getattr of a tensor type': raw(name('builtins', 'getattr'), name('torch', 'Tensor'), 'tofile', b'\x86R'),
    }  # fmt: skip


def _files(canary: str) -> dict[str, bytes]:
    """List whole files whose format or metadata is deceptive."""
    good = pickled(dict(a=tensor(Storage(2), 0, (2,), (1,), False, OrderedDict())))
    zipped = dict(compression=zipfile.ZIP_DEFLATED)
    return {
        'zip bomb': archive(good, {'data/0': bytes(2**26)}, **zipped),
        'zip with a path outside': archive(good, {'data/0': bytes(8), '../../evil': b'a'}),
        'zip with an absolute path': archive(good, {'data/0': bytes(8), '/tmp/evil': b'a'}),
        'zip of two pickles': two_pickles(canary),
        'zip without pickle': archive(good).replace(b'data.pkl', b'atad.pkl'),
        'record of other bytes': archive(good, {'data/0': b'\x07' * 8}).replace(b'\x07' * 8, b'\x01' * 8),
        'TorchScript': torchscript(canary),
        'tar': tar(canary),
        **{f'old format, pickle {i}': old(i, Call(os.system, f'touch {canary}')) for i in range(5)},
        'old format, source code': old(3, raw(('module', HistoryBuffer, 'a.py', 'text'), b'Q')),
        'old format, terabyte': old(3, pickled(dict(a=tensor(_old_storage(2**38), 0, (2,), (1,), False, {})))),
        'bare pickle': os_system(canary),
    }


def _old_storage(count: int) -> Storage:
    storage = Storage(count)
    storage.id = (*storage.id, None)
    return storage


def checkpoints(canary: str) -> dict[str, tuple[str, bytes, str]]:
    """Make all malicious checkpoints.

    Args:
        canary: path of a file that the code in them would create.

    Returns:
        for each attack, by name: the file name, its content, and the right outcome: 'refused'; 'data' if the file is
        valid data as long as nobody runs its text; 'waste' if either will do because it only wastes time or memory.
    """
    calls = {f'call of {what}': pickled(call) for what, call in _calls(canary).items()}
    pickles = {**calls, **_shaped(canary), **_opcodes(canary)}
    files = {what: archive(content, {'data/0': bytes(8)}) for what, content in pickles.items()} | _files(canary)
    found = {what: ('attack.pth', content, WASTE if what in WASTEFUL else REFUSED) for what, content in files.items()}
    lying = {
        'length': _safetensors(b'{}', 2**63),
        'offsets': _safetensors(_weight([0, 2**40], [2**38])),
        'shape': _safetensors(_weight([0, 8], [2**40])),
        'pickle': os_system(canary),
        'no json': _safetensors(b'\xff' * 8),
    }
    found |= {f'safetensors, {what}': ('attack.safetensors', content, REFUSED) for what, content in lying.items()}
    code = f'import os\nos.system("touch {canary}")'
    for what, text in (('code', code), ('code with a base', f'{code}\n_base_ = "/tmp/evil.py"')):
        for key in ('cfg', 'config'):
            found[f'{what} in meta.{key}'] = ('attack.pth', whole_checkpoint(meta={key: text}), DATA)
    return found
