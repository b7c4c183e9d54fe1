"""How the processes of a tool exit: a failure is one line, reported once, and no process waits for another."""

import atexit
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from datetime import timedelta
from typing import NoReturn

from mmengine.logging import MMLogger
from torch.distributed import distributed_c10d

from mmsb.options import one_line

from .processes import rank, world_size
from .rank import rank_in_environment
from .stops import EXIT_PREEMPTED, SIGNALS, RunStopped

STORE_S = 5  # how long the store of the run may take to answer
PARTING_S = 1  # how long the first process keeps the store for others that end at the same time


def end(error: BaseException) -> NoReturn:
    """Report a failure of a tool, and end the process with its exit code."""
    if not distributed_c10d.is_initialized():
        if isinstance(error, SystemExit):  # of the parser, for example
            raise error
        sys.exit(_report(error))
    if threading.current_thread() is threading.main_thread():
        for name in SIGNALS:  # an agent signals the others as soon as one process has ended
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if not isinstance(error, SystemExit):
        _leave(_report(error))
    if not isinstance(error.code, (int, type(None))):
        print(error.code, file=sys.stderr)
    _leave(error.code if isinstance(error.code, int) else int(error.code is not None))


def _report(error: BaseException) -> int:
    """Report an error, unless another process has reported what it follows from; return the exit code."""
    stopped = isinstance(error, RunStopped)
    code = error.exit_code if stopped else 1
    first, code_of_first = ends_first(code)
    lost = _is_loss_of_a_process(error)
    who = f' (process {rank()})' if rank() else ''
    if isinstance(error, KeyboardInterrupt):
        line = 'interrupted'
    elif stopped:
        line = str(error) if code == EXIT_PREEMPTED else f'error: {error}'
    else:
        log = _log_traceback() if (first or not rank()) and not lost else None
        if os.environ.get('MMSB_TRACEBACK') or (first and rank() and not log and not lost):
            traceback.print_exc()
        reason = 'another process of the run has ended' if lost else one_line(error)
        line = f'error{who}: {reason}' + (f' (traceback in {log})' if log else '')
    if first:
        print(line, file=sys.stderr)
    return code_of_first if lost else code


def _is_loss_of_a_process(error: BaseException) -> bool:
    """Return whether an error says no more than that another process does not answer any more."""
    text = str(error) if isinstance(error, RuntimeError) else ''
    lost = 'gloo/transport' in text and any(name in text for name in ('Connection', 'Broken pipe', 'Socket'))
    return lost or 'remote process exited' in text  # the latter by NCCL


def _log_traceback() -> str | None:
    """Write the current traceback to the run's log file and return its path, or None if there is no log file yet."""
    loggers = list(MMLogger._instance_dict.values())
    for handler in loggers[-1].handlers if loggers else []:
        if isinstance(handler, logging.FileHandler):
            try:
                with open(handler.baseFilename, 'a') as file:
                    file.write(traceback.format_exc())
            except OSError:  # the disk is full, for example
                return None
            return handler.baseFilename
    return None


def _leave(code: int) -> NoReturn:
    """End this process as the interpreter does, but for the process group.

    To destroy a group of NCCL may wait for other processes, which may wait for this one.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    wait_for_others()
    if multiprocessing.parent_process() is None:  # else they are the functions of the parent
        atexit._run_exitfuncs()
    os._exit(code)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what this process writes to stderr, also from C++."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def ends_first(code: int) -> tuple[bool, int]:
    """Note in the store of the run that this process ends, which needs no answer of the other processes.

    Args:
        code: the exit code of this process.

    Returns:
        Whether no other process has noted its end before, and so whether this one reports why; and the exit code of the
        one that was the first. Before there is a store, or if it is gone with its process, each speaks for itself.
    """
    if not distributed_c10d.is_initialized():
        return rank_in_environment() == 0, code
    mine = f'{rank()} {code}'
    try:
        with _silent_stderr():  # PyTorch prints the stack of its C++ code if the store is gone
            store = distributed_c10d._get_default_store()
            store.set_timeout(timedelta(seconds=STORE_S))
            first = store.compare_set('mmsb/end', '', mine).decode()
    except (RuntimeError, OSError):
        return True, code
    of_rank, code = first.split()
    return int(of_rank) == rank(), int(code)


def wait_for_others() -> None:
    """Keep the store, which goes with the first process, for others that end at the same time; call it at the end."""
    if not distributed_c10d.is_initialized():
        return
    store, until = distributed_c10d._get_default_store(), time.monotonic() + PARTING_S
    with contextlib.suppress(RuntimeError, OSError), _silent_stderr():  # of torchrun, which may be gone
        ended = store.add('mmsb/ended', 1)
        while rank() == 0 and ended < world_size() and time.monotonic() < until:
            time.sleep(0.02)
            ended = store.add('mmsb/ended', 0)
