"""Read pickled annotations as data, in the place of mmengine's handler for `.pkl` files.

The reader is the standard library's. The only names that it accepts are those by which containers, bytes and NumPy
arrays are pickled, and it gives them the stand-ins of `stand_ins.py`.
"""

import pickle
from collections.abc import Callable

import numpy as np
from mmengine.fileio import PickleHandler, register_handler

from mmsb.checkpoints import stand_ins
from mmsb.options import one_line


def _encoded(text: str, codec: str = 'latin1') -> bytes:
    stand_ins.require(type(text) is str and codec == 'latin1', f'text in {str(codec)[:20]!r} instead of bytes')
    return text.encode(codec)


def _array(content: bytes | bytearray, dtype, shape: tuple, order: str) -> np.ndarray:
    plain = type(dtype) is stand_ins.NAMES['numpy.dtype'] and type(content) in (bytes, bytearray)
    stand_ins.require(plain, 'an array that holds neither numbers nor text')
    return np.frombuffer(content, dtype.value).reshape(shape, order=order)


_BUILTIN = {'set': set, 'frozenset': frozenset, 'bytes': stand_ins.NAMES['builtins.bytes']}
_NAMES = {
    **{name: stand_in for name, stand_in in stand_ins.NAMES.items() if name.startswith('numpy.')},
    **{f'numpy.{core}.numeric._frombuffer': _array for core in ('core', '_core')},
    'collections.OrderedDict': dict,
    '_codecs.encode': _encoded,  # how the older protocols write bytes
    **{f'{module}.{name}': one for module in ('builtins', '__builtin__') for name, one in _BUILTIN.items()},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable:
        found = _NAMES.get(f'{module}.{name}')
        stand_ins.require(found is not None, f'Unsupported class {module}.{name}')
        if isinstance(found, type) and issubclass(found, stand_ins.StandIn):
            return found
        return lambda *args: found(*args)  # a file may set attributes of what it is given


class DataHandler(PickleHandler):
    """MMEngine's handler of pickles, except that no code in a file runs."""

    def load_from_fileobj(self, file, **kwargs):
        """Load a pickle that holds only containers, numbers, text, bytes and arrays of numbers or text.

        Raises:
            ValueError: it holds something else, or is damaged.
        """
        try:
            return stand_ins.replace(_Unpickler(file, **kwargs).load())
        except Exception as error:  # an invalid file can raise any exception
            raise ValueError(
                f'a pickled file cannot be read as data: {one_line(error)}; '
                'if it is your own, allow it with --trust-checkpoint, or save it as JSON'
            ) from error


def install_handler(*, trust: bool = False) -> None:
    """Make `mmengine.load` read every pickle as data, or with `trust` as mmengine does."""
    register_handler(['pickle', 'pkl'])(PickleHandler if trust else DataHandler)
