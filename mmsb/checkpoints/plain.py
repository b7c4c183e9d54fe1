"""Convert training checkpoints to containers, numbers, text and tensors, which any safe reader loads as data.

MMEngine's checkpoints also hold objects: a `HistoryBuffer` for each logged value, NumPy scalars, and functions of
schedulers. Stock MMEngine can load the plain form, but without the histories, which only smooth its log.
"""

import types
from collections import OrderedDict

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

HISTORIES = 'log_histories'  # checkpoint key for the histories of the message hub
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def make_plain(checkpoint: dict) -> None:
    """Replace, in place, the objects in a checkpoint that is about to be saved with plain data."""
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
    """Restore, in place, the objects that `make_plain` replaced and a runner needs; return the checkpoint."""
    for key, history in checkpoint.pop(HISTORIES, {}).items():
        values, counts = history['values'].numpy(), history['counts'].numpy()
        hub = checkpoint['message_hub']
        hub['log_scalars'][key] = HistoryBuffer(values, counts, history['max_length'])
        hub['resumed_keys'][key] = True
    return checkpoint


def _plain(value):
    """Convert a value to plain data; if it is plain already, return the value itself, with its attributes.

    Functions are dropped from dicts: no safe reader loads them as data, and their owners create them again.
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
