"""Faults that `campaign.py` and the tests inject into a victim: at an iteration, or at a disk operation of a save.

The operations are open(..., 'w'), each write (twice: before it, and half-way through it) and os.remove; mmsb also uses
os.open, os.fsync, os.replace and os.unlink.
"""

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path

import mmengine.hooks
from mmengine.runner import Runner

SAVE_AT = 4  # the second save of a victim with an interval of 2
ERRORS = {'ENOSPC': errno.ENOSPC, 'EIO': errno.EIO, 'EROFS': errno.EROFS}


def at_iteration(iteration: int, act: Callable[[Runner], None], hook: str = 'before_train_iter') -> None:
    """Call `act` when `hook` is called after `iteration` iterations; call this in the victim."""
    upstream = Runner.call_hook

    def call_hook(self, name: str, **kwargs) -> None:
        if name == hook and self.iter == iteration:
            act(self)
        upstream(self, name, **kwargs)

    Runner.call_hook = call_hook


def log_progress(path: Path) -> None:
    """Record in a file the iteration at which training started, and the iterations done; call this in the victim."""
    upstream = Runner.call_hook
    handle = os.open(path, os.O_WRONLY | os.O_CREAT)

    def call_hook(self, name: str, **kwargs) -> None:
        upstream(self, name, **kwargs)
        if name == 'before_train':
            os.pwrite(handle, f'{self.iter:6d} {self.iter:6d}'.encode(), 0)
        if name == 'after_train_iter':
            os.pwrite(handle, f'{self.iter + 1:6d}'.encode(), 7)

    Runner.call_hook = call_hook


def die(*_) -> None:
    """Die as in a power failure, except that the system keeps its caches."""
    os.kill(os.getpid(), signal.SIGKILL)


def raising(number: int) -> Callable:
    """Make a function that raises an OSError."""

    def fail(*_) -> None:
        raise OSError(number, os.strerror(number))

    return fail


class InSaves:
    """Counts the disk operations of the save at iteration 4 and acts at one of them; call install() in the victim.

    Args:
        target: number of the operation, counted from 0.
        act: function to call there.
        lasting: whether to call it at all later operations of saves too.
        count_to: file to write the number of operations to.
    """

    def __init__(
        self, target: int, act: Callable = die, *, lasting: bool = False, count_to: Path | None = None
    ) -> None:
        self.target, self.act, self.lasting, self.count_to = target, act, lasting, count_to
        self.count = 0
        self.counting = self.saving = False

    def install(self) -> None:
        upstream = mmengine.hooks.CheckpointHook._save_checkpoint

        def save(hook, runner) -> None:
            self.saving = True
            self.counting = runner.iter + 1 == SAVE_AT
            try:
                upstream(hook, runner)
            finally:
                if self.counting and self.count_to:
                    self.count_to.write_text(str(self.count))
                self.counting = self.saving = False

        mmengine.hooks.CheckpointHook._save_checkpoint = save
        for name in ('open', 'fsync', 'replace', 'unlink', 'remove'):
            setattr(os, name, self._with_point(getattr(os, name)))
        builtins.open = io.open = self._watched_open(open)  # pathlib uses the latter

    def _point(self) -> None:
        if self.counting:
            self.count += 1
            if self.count - 1 == self.target:
                self.act()
        if self.lasting and self.saving and self.count > self.target:
            self.act()

    def _with_point(self, operation: Callable) -> Callable:
        def watched(*args, **kwargs):
            self._point()
            return operation(*args, **kwargs)

        return watched

    def _watched_open(self, open_file: Callable) -> Callable:
        def watched(file, mode='r', *args, **kwargs):
            if 'w' not in mode or not self.saving:
                return open_file(file, mode, *args, **kwargs)
            self._point()
            stream = open_file(file, mode, *args, **kwargs)
            return Stream(stream, self._point)

        return watched


class Stream:
    """A file open for writing, with two fault points in each write."""

    def __init__(self, stream, point: Callable[..., None]) -> None:
        self._stream, self._point = stream, point

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._stream.close()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, content) -> int:
        self._point()
        half = len(content) // 2
        self._stream.write(content[:half])
        self._stream.flush()
        self._point()
        return half + self._stream.write(content[half:])
