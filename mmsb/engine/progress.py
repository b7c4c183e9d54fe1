"""Progress bars for long tasks: what is done, the time elapsed, and the time remaining."""

import atexit
import contextlib
import sys
from collections.abc import Callable, Iterator

from mmengine.hooks import Hook
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mmsb.registry import HOOKS


def _make_bar(*columns: ProgressColumn) -> Progress:
    return Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *columns,
        console=Console(stderr=True),
        transient=True,
    )


@contextlib.contextmanager
def progress_of(verb: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function of (part, done, total) that updates a progress bar; it shows nothing without a terminal."""
    with _make_bar() if sys.stderr.isatty() else contextlib.nullcontext() as bar:
        tasks = {}

        def show(part: str, done: int, total: int) -> None:
            if bar is not None:
                if part not in tasks:
                    tasks[part] = bar.add_task(f'{verb} {part}', total=total)
                bar.update(tasks[part], completed=done, total=total)

        yield show


@HOOKS.register_module()
class ProgressHook(Hook):
    """Show a progress bar of training and evaluation on a terminal; elsewhere there are only the log lines.

    In a distributed run only the first process shows it.
    """

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._tasks: dict[str, int] = {}

    def before_run(self, runner) -> None:
        if runner.rank == 0 and sys.stderr.isatty():
            self._bar = _make_bar(TextColumn('{task.fields[loss]}'))
            self._tasks = {}
            self._bar.start()
            atexit.register(self._bar.stop)  # restores the terminal's cursor however the run ends

    def after_run(self, runner) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self._bar is not None:  # checked first, since reading the loss waits for the GPU
            loss = (outputs or {}).get('loss')
            self._show('train', runner.iter + 1, runner.max_iters, '' if loss is None else f'loss {float(loss):.3f}')

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._show('val', batch_idx + 1, len(runner.val_dataloader))

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._show('test', batch_idx + 1, len(runner.test_dataloader))

    def _show(self, phase: str, done: int, total: int, loss: str = '') -> None:
        if self._bar is None:
            return
        if phase not in self._tasks:
            self._tasks[phase] = self._bar.add_task(phase, total=total, loss=loss)
        self._bar.update(self._tasks[phase], completed=done, loss=loss)
