"""Checks the data for the command-line tools: shows progress, prints findings, and makes all processes wait."""

import os
import sys
from datetime import timedelta

import torch
from mmengine.config import Config

from mmsb.datasets.check import LOADERS, check_data
from mmsb.datasets.check.findings import Report

from .processes import start_processes
from .progress import progress_of

PATIENCE = timedelta(days=7)  # how long the other processes wait while the first one reads


def default_workers() -> int:
    """Return the default number of reader threads: one per core that this process may use, at most 16."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1, 16)


def check_and_print(cfg: Config, loaders: tuple[str, ...] = LOADERS, *, workers: int | None = None) -> list[Report]:
    """Check the data of a config and print the findings."""
    workers = default_workers() if workers is None else workers
    with progress_of('checking') as show:
        reports = check_data(cfg, loaders, workers=workers, on_progress=show)
    for report in reports:
        print('\n'.join(report.lines()), flush=True)
    return reports


def stop_on_bad_data(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Check the data before a run; if distributed, the first process checks, and the others stop or continue with it.

    The others wait in a separate process group, because the check may take longer than the run's timeout of 10 to 30
    minutes. The group uses gloo, so no GPU is kept waiting.

    Raises:
        ValueError: the data contain errors.
    """
    start_processes(cfg)
    if not torch.distributed.is_initialized():
        _check(cfg, loaders)
        return
    waiting = torch.distributed.new_group(backend='gloo', timeout=PATIENCE)
    sound = [False]
    if torch.distributed.get_rank() == 0:
        try:
            _check(cfg, loaders)
            sound = [True]
        finally:
            torch.distributed.broadcast_object_list(sound, src=0, group=waiting)
    else:
        torch.distributed.broadcast_object_list(sound, src=0, group=waiting)
        if not sound[0]:
            sys.exit(1)  # the first process reports why


def _check(cfg: Config, loaders: tuple[str, ...]) -> None:
    count = sum(report.count('error') for report in check_and_print(cfg, loaders))
    if count:
        raise ValueError(f'the data have {count:,} error{"" if count == 1 else "s"}, listed above: nothing was started')
