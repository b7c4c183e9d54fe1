"""Many trainings on one device: side by side on streams in a process, in several processes, within a budget of time."""

import logging
import multiprocessing
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from mmsb.engine.launcher import run_tool
from benchmarks.cifar100.rows import Row
from benchmarks.cifar100.table import collect
from benchmarks.cifar100.training import Options, Run, Split


def train_runs(runs: Sequence[tuple[Row, int]], options: Options, deadline: float | None = None) -> None:
    """Train runs in this process, `options.streams` side by side, until all are done or the time is up.

    Args:
        runs: rows and seeds, the most worthwhile first.
        options: how.
        deadline: in `time.time()`; None: no limit.
    """
    if options.device.startswith('cuda'):
        torch.backends.cudnn.benchmark = True
    train, test = Split.load(options, 'train'), Split.load(options, 'test')
    if options.device.startswith('cuda'):
        torch.cuda.synchronize(options.device)  # the runs' streams read them
    waiting, active, longest = list(runs), [], 0.0
    while True:
        active = [run for run in active if not run.done]
        while waiting and len(active) < options.streams:
            run = Run(*waiting.pop(0), options, train, test)
            active += [] if run.done else [run]
        if not active:
            return
        if _left_alone():
            return
        began = time.time()
        if deadline is not None and began + 1.2 * longest > deadline:
            for run in active:
                run.save()
            print('the time is up: the same command goes on from here', flush=True)
            return
        for run in active:
            run.begin_epoch()
        for index in range(max(run.steps for run in active)):
            for run in active:
                if index < run.steps:
                    run.step(index)
        for run in active:
            run.wait()
        for run in active:
            run.end_epoch(len(active) * options.jobs)
        collect(options.work_dir)
        longest = max(longest, time.time() - began)


def _left_alone() -> bool:
    """Tell if the process that started this one is gone: the same command, given again, would train this one's runs."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def quiet() -> None:
    """Silence what the libraries say while they build."""
    logging.disable(logging.WARNING)
    warnings.simplefilter('ignore')


def _train_share(*args) -> None:
    quiet()  # a process of its own begins with none of its parent's settings
    run_tool(lambda: train_runs(*args))


def train_all(runs: Sequence[tuple[Row, int]], options: Options) -> None:
    """Train runs in `options.jobs` processes.

    Raises:
        ValueError: for options that don't go together.
        RuntimeError: if a process failed.
    """
    if options.streams > 1 and not options.device.startswith('cuda'):
        raise ValueError(f'streams={options.streams}: side by side in one process needs a GPU; say more jobs instead')
    for name in ('jobs', 'streams', 'eval_every', 'save_every'):
        if getattr(options, name) < 1:
            raise ValueError(f'{name} must be at least 1, got {getattr(options, name)}')
    Path(options.work_dir).mkdir(parents=True, exist_ok=True)
    deadline = None if options.budget_s is None else time.time() + options.budget_s
    if options.jobs == 1:
        train_runs(runs, options, deadline)
    else:
        context = multiprocessing.get_context('spawn')
        shares = [share for share in (runs[first :: options.jobs] for first in range(options.jobs)) if share]
        processes = [context.Process(target=_train_share, args=(share, options, deadline)) for share in shares]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join()
        finally:
            for process in processes:
                if process.is_alive():  # an interruption of this process alone
                    process.terminate()
        if failed := [process.exitcode for process in processes if process.exitcode]:
            raise RuntimeError(f'{len(failed)} of {len(processes)} processes failed; what they say is above')
    collect(options.work_dir)
