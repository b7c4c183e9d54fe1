"""Isolates a rehearsal from everything global, and silences it."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from unittest.mock import patch

from mmengine.registry import DefaultScope
from mmengine.utils import ManagerMixin

from .. import rng


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Be alone and print nothing; restore the random generators and mmengine's global objects afterwards."""
    state = rng.get_state()
    before = [(manager, dict(manager._instance_dict)) for manager in managers()]
    for manager, _ in before:
        if not issubclass(manager, DefaultScope):
            manager._instance_dict.clear()
    silence = io.StringIO()
    alone = patch('torch.distributed.is_initialized', lambda: False)  # the other processes wait, and answer nobody
    try:
        with alone, contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for manager in managers():
            manager._instance_dict.clear()
        for manager, instances in before:
            manager._instance_dict.update(instances)
        rng.set_state(state)


def managers(kind: type = ManagerMixin) -> list[type]:
    """List the classes by which mmengine keeps global objects: loggers, message hubs, visualizers, default scopes."""
    return [kind, *(one for child in kind.__subclasses__() for one in managers(child))]
