"""Stand-ins for the classes and functions in MMEngine's and timm's checkpoints, for `torch.load(weights_only=True)`.

That reader calls a function named in a file only if it is on a list: torch's own functions, and these stand-ins, which
check their arguments and build plain data. The real functions would give the file control: NumPy turns numbers into
addresses if the file declares them objects, `HistoryBuffer` accepts methods from the file, and `getattr` reaches
anything.
"""

import contextlib
import re
import threading
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

_STATISTICS = ('min', 'max', 'current', 'mean')  # HistoryBuffer's own methods
_lock = threading.Lock()  # torch shares one list among all threads


class NotDataError(ValueError):
    """A file holds something other than data, or less data than it declares."""


def require(condition: bool, what: str) -> None:
    """Raise an error unless a condition on a file holds.

    Raises:
        NotDataError: the condition does not hold.
    """
    if not condition:
        raise NotDataError(what)


class StandIn:
    """Placeholder for an object in the file; `value` is that object once the stand-in has received its state."""

    value = None

    def __setstate__(self, state) -> None:
        raise NotDataError('an object of another class')


class _DType(StandIn):
    def __init__(self, name: str, align: bool = False, copy: bool = True) -> None:
        plain = type(name) is str and re.fullmatch(r'[|<>=]?([biufc]\d{1,2}|\?|[SU]\d{1,6})', name)
        require(bool(plain), 'an array that holds neither numbers nor text')
        self.value = np.dtype(name)

    def __setstate__(self, state) -> None:
        """Set the byte order only; fields, sizes or flags from the file could turn numbers into addresses."""
        plain = self.value.__reduce__()[2]
        require(type(state) is tuple and state[:1] + state[2:] == plain[:1] + plain[2:], 'a forged dtype')
        self.value = self.value.newbyteorder(state[1])


class _Array(StandIn):
    def __setstate__(self, state) -> None:
        _, shape, dtype, fortran, content = state
        require(type(dtype) is _DType and type(content) is bytes, 'an array that holds neither numbers nor text')
        values = np.ndarray(shape, dtype.value, content, order='F' if fortran else 'C')
        require(values.nbytes == len(content), 'an array that is smaller than its content')
        self.value = values.astype(values.dtype.newbyteorder('='))  # as NumPy itself loads it


class _History(StandIn):
    def __setstate__(self, state) -> None:
        known = {'max_length', '_log_history', '_count_history', 'statistics_methods'}
        require(type(state) is dict and set(state) == known, 'a forged HistoryBuffer')
        logs, counts, methods = (state[key] for key in ('_log_history', '_count_history', 'statistics_methods'))
        require(type(logs) is type(counts) is _Array and type(state['max_length']) is int, 'a forged HistoryBuffer')
        own = {name: getattr(HistoryBuffer, name) for name in _STATISTICS}
        require(all(own.get(name) is method for name, method in methods.items()), 'methods of a HistoryBuffer')
        self.value = HistoryBuffer(logs.value, counts.value, state['max_length'])


class _Namespace(StandIn):
    """The arguments that timm's train.py saves; they become a dict."""

    def __setstate__(self, state) -> None:
        require(type(state) is dict, 'a forged Namespace')
        self.value = replace(state)


def _empty_array(cls, shape, code) -> _Array:
    require(cls is _Array, 'an array of another class')
    return _Array()


def _scalar(dtype, content):
    require(type(dtype) is _DType and type(content) is bytes, 'a scalar that is neither number nor text')
    require(0 < dtype.value.itemsize == len(content), 'a scalar of the wrong length')
    return np.frombuffer(content, dtype.value)[0]


def _no_bytes() -> bytes:
    return b''


def _scheduler(*_) -> None:
    raise NotDataError('an object of another class')


_METHODS = {
    _History: (HistoryBuffer, _STATISTICS),
    _scheduler: (OneCycleParamScheduler, ('_annealing_cos', '_annealing_linear')),
}


def _method(owner, name):
    """Find a method of a class; pickle stores it as `getattr(owner, name)`."""
    real, names = _METHODS.get(owner, (None, ()))
    require(name in names, f'getattr({getattr(real, "__name__", "...")}, {str(name)[:40]!r})')
    return getattr(real, name)


NAMES = {
    'mmengine.logging.history_buffer.HistoryBuffer': _History,
    'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler': _scheduler,
    'argparse.Namespace': _Namespace,
    'builtins.getattr': _method,
    'builtins.bytes': _no_bytes,
    'numpy.ndarray': _Array,
    'numpy.dtype': _DType,
    **{f'numpy.{core}.multiarray._reconstruct': _empty_array for core in ('core', '_core')},
    **{f'numpy.{core}.multiarray.scalar': _scalar for core in ('core', '_core')},
}


@contextlib.contextmanager
def allowed() -> Iterator[None]:
    """Let the reader call only the stand-ins and torch's own functions; suppress warnings."""
    serialization = torch.serialization
    with _lock, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        others = serialization.get_safe_globals()
        serialization.clear_safe_globals()
        serialization.add_safe_globals([(stand_in, name) for name, stand_in in NAMES.items()])
        try:
            yield
        finally:
            serialization.clear_safe_globals()
            serialization.add_safe_globals(others)


def replace(value, seen: set | None = None):
    """Replace, in place, the stand-ins in the containers returned by the reader with their values.

    Raises:
        NotDataError: a stand-in received no state, or a dict has attributes that would shadow its methods.
    """
    seen = set() if seen is None else seen
    if isinstance(value, StandIn):
        require(value.value is not None, 'an object without content')
        return value.value
    if type(value) is tuple:
        return tuple(replace(part, seen) for part in value)
    if id(value) in seen or not isinstance(value, (list, dict)):
        return value
    seen.add(id(value))
    if getattr(value, '__dict__', None):
        require(set(vars(value)) == {'_metadata'}, 'attributes of a dict')
        replace(vars(value), seen)
    for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
        value[key] = replace(part, seen)
    return value
