"""Checks the data for the command-line tools: shows progress, prints findings, and makes all processes wait."""

import os

from mmengine.config import Config

from mmsb.datasets.check import check_data
from mmsb.datasets.check.findings import Report
from mmsb.datasets.paths import LOADERS

from .processes import first_process_decides
from .progress import progress_of


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
    """Check the data before a run; if distributed, the first process checks, and the others wait for it.

    Raises:
        ValueError: the data contain errors.
    """
    first_process_decides(cfg, lambda: _check(cfg, loaders))


def _check(cfg: Config, loaders: tuple[str, ...]) -> None:
    count = sum(report.count('error') for report in check_and_print(cfg, loaders))
    if count:
        raise ValueError(f'the data have {count:,} error{"" if count == 1 else "s"}, listed above: nothing was started')
