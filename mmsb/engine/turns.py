"""Checkpoints that a hook saves while hooks are being called: at that moment some have had their turn, others not.

A step whose schedules, averages or counts are still to come would be saved without them, and a resumed run would never
catch up. So the hooks that change these have their turn before the checkpoint is written, and none later in that call.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mmengine.hooks import EarlyStoppingHook, EMAHook, Hook, ParamSchedulerHook, SyncBuffersHook
from mmengine.runner import Runner

_CHANGING = (EMAHook, SyncBuffersHook, ParamSchedulerHook, EarlyStoppingHook)  # what a checkpoint holds
_SWAP, _SWAP_BACK = 'before_val_epoch', 'after_val_epoch'  # the weights and their averages
_METHODS = ('before_run', 'before_train', 'after_train_iter', 'after_train_epoch', _SWAP, _SWAP_BACK)


def averages(runner: Runner) -> list[EMAHook]:
    """List the hooks that put averages in the place of the weights for a validation."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    return [hook for hook in hooks if getattr(hook, 'evaluate_on_ema', True)]  # an option of mmpretrain's


@dataclass
class _Call:
    name: str
    arguments: dict
    done: list[Hook] = field(default_factory=list)  # those of `_CHANGING` that have had their turn


class Turns:
    """The calls of hooks that are under way in a runner."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._swapped: list[EMAHook] = []

    @property
    def names(self) -> list[str]:
        """Names of the methods being called, the innermost last."""
        return [call.name for call in self._calls]

    @contextlib.contextmanager
    def call(self, name: str, arguments: dict) -> Iterator[None]:
        """Within the block, a method of all hooks is called with these arguments and the runner."""
        self._calls.append(_Call(name, arguments))
        try:
            yield
        finally:
            self._calls.pop()

    def watch(self, runner: Runner) -> None:
        """Give the hooks that change what a checkpoint holds one turn in each call; watches each hook once."""
        for hook in runner.hooks:
            for name in _METHODS if isinstance(hook, _CHANGING) else ():
                if name not in vars(hook):
                    setattr(hook, name, functools.partial(self._called, hook, name, getattr(hook, name)))

    def _called(self, hook: Hook, name: str, method: Callable, runner: Runner, **arguments) -> None:
        call = next((call for call in reversed(self._calls) if call.name == name), None)
        if call is None:
            method(runner, **arguments)
        elif hook not in call.done:
            call.done.append(hook)
            method(runner, **arguments)
            if name in (_SWAP, _SWAP_BACK) and hook in averages(runner):
                self._swapped = [one for one in self._swapped if one is not hook] + [hook] * (name == _SWAP)

    @contextlib.contextmanager
    def settled(self, runner: Runner) -> Iterator[None]:
        """Within the block, weights, averages, schedules and counts are as after the calls that are under way."""
        back: list[EMAHook] = []
        for call in reversed(self._calls):
            if call.name != _SWAP_BACK:
                back += self._swap_back()
            if call.name in _METHODS and call.name != _SWAP:
                for hook in runner.hooks:
                    if isinstance(hook, _CHANGING):
                        getattr(hook, call.name)(runner, **call.arguments)
        try:
            yield
        finally:
            for hook in back:
                hook._swap_ema_parameters()
            self._swapped += back

    def _swap_back(self) -> list[EMAHook]:
        hooks, self._swapped = self._swapped, []
        for hook in hooks:
            hook._swap_ema_parameters()
        return hooks
