"""Two processes without an agent: each learns of the end of the other by itself, or not at all.

The trainings are those of `toy`, in children forked from a process that has imported everything.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config

from chaos import toy
from chaos.inject import at_iteration
from chaos.victim import Victim
from mmsb.engine.launcher import run_tool
from mmsb.engine.processes import start_processes

GONE = 'another process of the run has ended'
SAVE_EVERY, VALIDATE_EVERY, ITERATIONS = 5, 6, 12
MOMENTS = {  # batches per step, the iteration, and the call of hooks before which something happens
    'ordinary': (1, 7, 'before_train_iter'),
    'accumulating': (4, 6, 'before_train_iter'),
    'saving': (1, 9, 'after_train_iter'),
    'validating': (1, 6, 'after_val_iter'),
    'before the first': (1, 0, 'before_run'),
}
PATIENCE_S = 60  # on a busy machine; the timeout of the communication is longer
TIMEOUT_S = 600


def _spoil(change: Callable) -> Callable:
    """Make a fault that changes the losses of this process from now on."""

    def spoil(runner) -> None:
        forward = runner.model.forward

        def spoilt(*args, mode: str = 'tensor', **kwargs):
            losses = forward(*args, mode=mode, **kwargs)
            return {key: change(loss) for key, loss in losses.items()} if mode == 'loss' else losses

        runner.model.forward = spoilt

    return spoil


def _raise(error: Exception) -> Callable:
    def fail(_) -> None:
        raise error

    return fail


def _signal(number: int) -> Callable:
    return lambda _: os.kill(os.getpid(), number)


FAULTS = {  # what happens, the exit code, and what the line about it says
    'nan': (_spoil(lambda loss: loss * float('nan')), 65, 'the loss is nan'),
    'nan without a gradient': (_spoil(lambda loss: loss + float('nan')), 65, 'the loss is nan'),
    'exception': (_raise(ValueError('no such image')), 1, 'no such image'),
    'out of memory': (_raise(torch.cuda.OutOfMemoryError('CUDA out of memory')), 1, 'CUDA out of memory'),
    'SIGKILL': (_signal(signal.SIGKILL), -signal.SIGKILL, GONE),
    'SIGTERM': (_signal(signal.SIGTERM), 75, 'stopped by SIGTERM'),
}


class Pair:
    """Two processes that find each other by the variables of torchrun.

    Args:
        start: starts a process, given its rank and its environment.
    """

    def __init__(self, start: Callable[[int, dict[str, str]], Victim]) -> None:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = str(free.getsockname()[1])
        where = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
        self.processes = [start(rank, where | dict(RANK=str(rank), LOCAL_RANK=str(rank))) for rank in range(2)]

    def wait(self) -> list[int]:
        """Return the exit codes.

        Raises:
            TimeoutError: a process is still there after `PATIENCE_S`; both are killed.
        """
        end = time.monotonic() + PATIENCE_S
        try:
            return [process.wait(max(0, end - time.monotonic())) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def said(self) -> str:
        """Return what both have said so far."""
        return ''.join(process.said() for process in self.processes)

    def lines(self) -> list[str]:
        """List the lines about how they ended."""
        return [line for line in self.said().splitlines() if line.startswith(('error', 'stopped'))]


class ToyVictim(Victim):
    """A training of `toy` in a child process, as `run_tool` runs it."""

    def _run(self, folder: Path, args: list[str], before: Callable[[], None]) -> int:
        self._redirect()
        torch.set_num_threads(1)
        before()
        try:
            run_tool(lambda: _train(folder, int(args[0])))
        except SystemExit as end:
            return end.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        return 0


def _train(folder: Path, accumulate: int) -> None:
    timeout = dict(env_cfg=dict(dist_cfg=dict(backend='gloo', timeout=TIMEOUT_S)))
    start_processes(Config(dict(launcher='pytorch', **timeout)))
    toy.runner(
        folder / 'run',
        by_epoch=False,
        train_cfg=dict(type='mmsb.IterBasedTrainLoop', max_iters=ITERATIONS, val_interval=VALIDATE_EVERY),
        saving=dict(interval=SAVE_EVERY, by_epoch=False),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01), accumulative_counts=accumulate),
        custom_hooks=[dict(type='mmsb.GuardHook')],
        launcher='pytorch',
        cfg=dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None), **timeout),
        **timeout,
    ).train()


def fault_in_pair(folder: Path, fault: str, ranks: set[int], moment: str) -> Pair:
    """Start a pair in which something happens to these ranks at a moment; see `FAULTS` and `MOMENTS`."""
    accumulate, iteration, hook = MOMENTS[moment]
    if fault.startswith('nan') and moment in ('saving', 'validating'):  # the step before is the last to have a loss
        iteration, hook = (SAVE_EVERY if moment == 'saving' else VALIDATE_EVERY) - 1, 'before_train_iter'

    def start(rank: int, environment: dict[str, str]) -> Victim:
        def before() -> None:
            if rank in ranks:
                at_iteration(iteration, FAULTS[fault][0], hook)

        return ToyVictim(folder, accumulate, before=before, environment=environment)

    return Pair(start)
