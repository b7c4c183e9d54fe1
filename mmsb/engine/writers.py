"""Lets no writer but that of checkpoints end a training: what can't be logged is counted, and reported once.

Covers the log file and the console, and the backends of the visualizer (scalars.json, TensorBoard, ...).
"""

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Callable

from mmengine.logging import MMLogger
from mmengine.visualization import LocalVisBackend, Visualizer

from mmsb.options import one_line

_BACKEND_METHODS = ('add_config', 'add_graph', 'add_image', 'add_scalar', 'add_scalars', 'close')


class Lost:
    """Counts what a run could not write."""

    def __init__(self) -> None:
        self.count = 0
        self._handlers: set[logging.Handler] = set()
        self._not_started: set[int] = set()  # ids of backends

    def guard_logger(self, logger: MMLogger) -> None:
        """Count the lines that the handlers of a logger can't write, instead of printing a traceback for each."""
        for handler in logger.handlers:
            handler.handleError = functools.partial(self._lose_line, handler, handler.handleError)

    def guard_visualizer(self, visualizer: Visualizer) -> None:
        """Count what the backends of a visualizer can't write; a line of scalars is written whole or not at all.

        Trackers such as W&B raise errors of their own. One that can't be started is not tried again, since each try may
        wait for the network.
        """
        for backend in getattr(visualizer, '_vis_backends', {}).values():
            errors = OSError if isinstance(backend, LocalVisBackend) else Exception
            for name in _BACKEND_METHODS:
                setattr(backend, name, self._tolerant(getattr(backend, name), backend, errors))

    def report(self) -> None:
        """Report how much was lost; to be called at the end of the run, since it also gives up the unwritten rest."""
        if not self.count:
            return
        for handler in self._handlers:
            self._give_up(handler)
        _say(f'{self.count} log entries could not be written')

    def _lose_line(self, handler: logging.Handler, otherwise: Callable, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._handlers.add(handler)
            self.note('the log', error)
        else:
            otherwise(record)

    def _tolerant(self, function: Callable, owner, errors: type[Exception]) -> Callable:
        @functools.wraps(function)
        def call(*args, **kwargs):
            if id(owner) in self._not_started:
                self.count += 1
                return None
            scalars = getattr(owner, '_scalar_save_file', None)
            before = os.path.getsize(scalars) if scalars and os.path.exists(scalars) else 0
            try:
                return function(*args, **kwargs)
            except errors as error:
                if before:
                    with contextlib.suppress(OSError):
                        os.truncate(scalars, before)
                if errors is Exception and not getattr(owner, '_env_initialized', False):
                    self._not_started.add(id(owner))
                self.note(f'what {type(owner).__name__} writes', error)
                return None

        return call

    def note(self, what: str, error: Exception) -> None:
        """Count something that could not be written; report the first one."""
        self.count += 1
        if self.count == 1:
            _say(f'{what} could not be written: {one_line(error)}; the run goes on')

    @staticmethod
    def _give_up(handler: logging.Handler) -> None:
        """Discard what a handler still has to write, or Python would try again when it ends, with a traceback."""
        try:
            handler.flush()
        except OSError:
            empty = os.open(os.devnull, os.O_WRONLY)
            os.dup2(empty, handler.stream.fileno())
            os.close(empty)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the console may be a file on the same disk
        print(text, file=sys.stderr, flush=True)
