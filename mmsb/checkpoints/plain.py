"""What a training saves, as containers, numbers, text and tensors alone: any safe reader takes that for data.

MMEngine's checkpoints hold objects beside: a `HistoryBuffer` for each value of the log, NumPy scalars, functions of
schedulers. Stock MMEngine reads the plain form too: it finds no histories, which only smooth its log.
"""

import types
from collections import OrderedDict

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

HISTORIES = 'log_histories'  # the key of a checkpoint that holds the histories of its message hub
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def make_plain(checkpoint: dict) -> None:
    """Replace, in place, what is more than data in a checkpoint that is about to be saved."""
    hub = checkpoint['message_hub']
    histories = {key: value for key, value in hub['log_scalars'].items() if isinstance(value, HistoryBuffer)}
    checkpoint['message_hub'] = dict(
        log_scalars={key: value for key, value in hub['log_scalars'].items() if key not in histories},
        runtime_info=hub['runtime_info'],
        resumed_keys={key: value for key, value in hub['resumed_keys'].items() if key not in histories},
    )
    checkpoint[HISTORIES] = {
        key: dict(
            values=torch.from_numpy(history.data[0]),
            counts=torch.from_numpy(history.data[1]),
            max_length=history.max_length,
        )
        for key, history in histories.items()
    }
    for key, value in checkpoint.items():
        checkpoint[key] = _plain(value)


def restore(checkpoint: dict) -> dict:
    """Put back, in place, what `make_plain` has replaced and a runner needs; return the checkpoint."""
    for key, history in checkpoint.pop(HISTORIES, {}).items():
        values, counts = history['values'].numpy(), history['counts'].numpy()
        hub = checkpoint['message_hub']
        hub['log_scalars'][key] = HistoryBuffer(values, counts, history['max_length'])
        hub['resumed_keys'][key] = True
    return checkpoint


def _plain(value):
    """Return a value as plain data; the value itself where it is plain already, with its attributes.

    A function is left out of its dict: no reader takes it for data, and its owner makes it anew.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        plain = {key: _plain(part) for key, part in value.items() if not isinstance(part, _FUNCTIONS)}
        same = len(plain) == len(value) and all(plain[key] is value[key] for key in plain)
    elif type(value) in (list, tuple):
        plain = type(value)(map(_plain, value))
        same = all(one is other for one, other in zip(plain, value, strict=True))
    else:
        return value
    return value if same and type(value) in (dict, OrderedDict, list, tuple) else plain
