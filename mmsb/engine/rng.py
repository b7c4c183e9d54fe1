"""Saves, restores and isolates the random generators of a process: Python, NumPy, PyTorch and its GPU."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def get_state() -> dict:
    """Return the states as tensors and numbers, which load as plain data."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    assert (version, name) == (3, 'MT19937')
    state = dict(
        python=torch.tensor(words, dtype=torch.int64),
        python_gauss=gauss,
        numpy=torch.from_numpy(keys.astype(np.int64)),
        numpy_rest=[int(position), int(has_gauss), float(cached)],
        torch=torch.get_rng_state(),
    )
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_state(state: dict) -> None:
    """Restore states that `get_state` returned, in this process or an earlier one."""
    random.setstate((3, tuple(state['python'].tolist()), state['python_gauss']))
    np.random.set_state(('MT19937', state['numpy'].numpy().astype(np.uint32), *state['numpy_rest']))
    torch.set_rng_state(state['torch'])
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'])


def _on_cpu() -> tuple:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _put_on_cpu(state: tuple) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Restore the CPU generators after the block to their states before it."""
    before = _on_cpu()
    try:
        yield
    finally:
        _put_on_cpu(before)


def seed_by(*key: int) -> None:
    """Seed the CPU generators from a tuple of numbers; different tuples give independent streams."""
    a, b, c = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(a))
    np.random.seed(int(b))
    torch.default_generator.manual_seed(int(c))  # torch.manual_seed would queue a call on an unused GPU


class Stream:
    """A separate random stream for a part of the program, active only inside `with stream:`."""

    def __init__(self, *key: int) -> None:
        with untouched():
            seed_by(*key)
            self._state = _on_cpu()

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_) -> None:
        self._swap()

    def _swap(self) -> None:
        now = _on_cpu()
        _put_on_cpu(self._state)
        self._state = now
