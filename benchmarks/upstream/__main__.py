"""Runs the sweep: `python -m benchmarks.upstream`."""

import argparse
import os
import time
from collections.abc import Iterable
from importlib.metadata import packages_distributions, version
from pathlib import Path

import torch

from benchmarks.upstream.networks import LIBRARIES, choose_config, folders_of
from benchmarks.upstream.page import exceptions, page
from benchmarks.upstream.processes import run_all
from benchmarks.upstream.row import prepare, run_row
from mmsb.analysis.machine import describe
from mmsb.analysis.report import write_json, write_text
from mmsb.options import choose

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = {'plain': None, 'spatial_bias': {}}
MOST_EXCEPTIONS = 5


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.upstream', description=__doc__)
    parser.add_argument('--folders', nargs='+', metavar='LIBRARY/FOLDER', help='default: all of all libraries')
    parser.add_argument('--json', type=Path, default=ROOT / 'benchmarks/results/upstream.json')
    parser.add_argument('--page', type=Path, default=ROOT / 'docs/upstream.md')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='rows at a time')
    parser.add_argument('--limit-s', type=float, default=600, help='seconds after which a row is given up')
    return parser.parse_args(arguments)


def sweep(folders: Iterable[tuple[str, str]], jobs: int, limit_s: float) -> list[dict]:
    """Run the configs of folders, each without and with spatial bias, and return a row for each that has a ResNet."""
    rows = [dict(library=library, folder=folder, config=choose_config(library, folder)) for library, folder in folders]
    rows = [row for row in rows if row['config']]
    tasks = [(row['library'], row['config'], bias) for row in rows for bias in VARIANTS.values()]
    prepare()
    results = iter(run_all(run_row, tasks, jobs=jobs, limit_s=limit_s, done=_tell))
    return [{**row, **{name: next(results) for name in VARIANTS}} for row in rows]


def _tell(task: tuple, result: dict) -> None:
    library, config, bias = task
    kind = 'plain' if bias is None else 'bias'
    print(f'{library}/{config} {kind} {result["seconds"]} s {result["reason"] or "works"}', flush=True)


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    every = {library: folders_of(library) for library in LIBRARIES}
    folders = [(library, folder) for library in LIBRARIES for folder in every[library]]
    if args.folders:
        valid = [f'{library}/{folder}' for library, folder in folders]
        folders = [tuple(choose('each of --folders', name, valid).split('/')) for name in args.folders]
    start = time.monotonic()
    rows = sweep(folders, args.jobs, args.limit_s)
    about = {
        **describe(torch.device('cpu'), seed=0),
        'command': 'python -m benchmarks.upstream',
        'jobs': args.jobs,
        'minutes': round((time.monotonic() - start) / 60),
        'versions': versions(),
        'operations': operations(),
    }
    results = dict(about=about, folders={library: len(names) for library, names in every.items()}, rows=rows)
    write_json(args.json, results)
    write_text(args.page, page(results))
    failed = exceptions(rows)
    print(f'{len(rows) - len(failed)} of {len(rows)} folders work: {args.json}, {args.page}')
    return int(len(failed) > MOST_EXCEPTIONS)


def versions() -> dict[str, str]:
    """Name the distributions that were used, stock or OneDL's, with their versions."""
    names = packages_distributions()
    return {
        distribution: version(distribution)
        for module in ('torch', 'torchvision', 'mmengine', 'mmcv', *LIBRARIES)
        for distribution in names[module][:1]
    }


def operations() -> str:
    """Say whose operations stand behind mmcv.ops."""
    import mmcv._ext

    return 'compiled' if Path(mmcv._ext.__file__).suffix != '.py' else 'mmsb.ops (nothing compiled)'


if __name__ == '__main__':
    raise SystemExit(main())
