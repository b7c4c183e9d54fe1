"""A process for each row, forked from one that has imported the libraries: a crash or a hang is a reason."""

import contextlib
import logging
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

import torch


def run_all(function: Callable[..., dict], tasks: list[tuple], jobs: int, limit_s: float) -> Iterator[tuple]:
    """Call `function(*task)` for each task, each in its own process, and yield task and result as they come.

    Args:
        function: returns a dict of plain values.
        tasks: its arguments.
        jobs: number of processes at a time.
        limit_s: seconds after which a process is killed.

    Yields:
        the task, and the result with `seconds` added; that of a process that died has only these and `reason`.
    """
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = {pool.submit(_run_one, function, task, limit_s): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _run_one(function: Callable[..., dict], task: tuple, limit_s: float) -> dict:
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(function, task, sender), daemon=True)
    start = time.monotonic()
    process.start()
    sender.close()
    result = None
    if receiver.poll(limit_s):
        with contextlib.suppress(EOFError):
            result = receiver.recv()
        process.join(10)
    else:
        result = dict(reason=f'not done after {limit_s:.0f} s')
    if process.is_alive():
        process.kill()
        process.join()
    if result is None:
        result = dict(reason=f'the process ended with exit code {process.exitcode}')
    return {**result, 'seconds': round(time.monotonic() - start, 1)}


def _child(function: Callable[..., dict], task: tuple, sender) -> None:
    torch.set_num_threads(1)
    logging.disable()
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    socket.socket.connect = _refuse
    # Self-supervised networks gather from all processes: there is one.
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    sender.send(function(*task))
    sender.close()
    os._exit(0)  # a library that hangs in its own clean-up has done its work


def _refuse(*_) -> None:
    raise OSError('it wants to download something')
