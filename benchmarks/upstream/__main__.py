"""Runs the sweep over upstream's configs and writes its results: `python -m benchmarks.upstream`.

Results are written after each config. With `--folders` the rows of other folders stay, if their packages are the same.
"""

import argparse
import json
import os
from importlib.metadata import packages_distributions, version
from pathlib import Path

import torch

from benchmarks.upstream.networks import LIBRARIES, choose_config, folders_of
from benchmarks.upstream.page import exceptions, page
from benchmarks.upstream.processes import run_all
from benchmarks.upstream.row import prepare, run_row
from mmsb.analysis.machine import describe
from mmsb.analysis.report import write_json
from mmsb.engine.launcher import run_tool
from mmsb.files import write_text
from mmsb.options import choose, positive_integer

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = {'plain': None, 'spatial_bias': {}}
MOST_EXCEPTIONS = 5


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        ValueError: for a value that is not valid.
    """
    parser = argparse.ArgumentParser(prog='python -m benchmarks.upstream', description=__doc__.splitlines()[0])
    parser.add_argument('--folders', nargs='+', default=LIBRARIES, metavar='LIBRARY[/FOLDER]', help='default: all')
    parser.add_argument('--json', type=Path, default=ROOT / 'benchmarks/results/upstream.json')
    parser.add_argument('--page', type=Path, default=ROOT / 'docs/upstream.md')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='networks at a time')
    parser.add_argument('--limit-s', type=int, default=900, help='seconds after which a network is given up')
    options = parser.parse_args(arguments)
    for name in ('jobs', 'limit_s'):
        positive_integer('--' + name.replace('_', '-'), getattr(options, name))
    names, options.folders = options.folders, []
    for name in names:
        library, _, folder = name.partition('/')
        valid = folders_of(choose('the library of --folders', library, LIBRARIES))
        chosen = [choose(f'the folder of {library} in --folders', folder, valid)] if folder else valid
        options.folders += [(library, folder) for folder in chosen]
    return options


def main(arguments: list[str] | None = None) -> None:
    """Run the sweep.

    Raises:
        ValueError: for a command line that is not valid, and if more folders fail than may be.
    """
    options = parse_options(arguments)
    rows = {(row['library'], row['config']): row for row in map(_choose, options.folders) if row['config']}
    prepare()
    about = describe(torch.device('cpu'), seed=0)
    about |= dict(command='python -m benchmarks.upstream', versions=versions(), operations=operations())
    results = dict(about=about, folders={library: len(folders_of(library)) for library in LIBRARIES}, rows=[])
    if len(options.folders) < sum(results['folders'].values()):
        results['rows'] = _rows_that_stay(options.json, about['versions'], options.folders)

    tasks = [(*key, variant) for key in rows for variant in VARIANTS]
    for task, result in run_all(_run, tasks, options.jobs, options.limit_s):
        library, config, variant = task
        row = rows[library, config]
        row[variant] = result
        print(f'{library}/{config} {variant} {result["seconds"]} s: {result["reason"] or "works"}', flush=True)
        if all(name in row for name in VARIANTS):
            results['rows'] = sorted([*results['rows'], row], key=_place)
            write_json(options.json, results)

    write_text(options.page, page(results))
    failed = len(exceptions(results['rows']))
    print(f'{len(results["rows"]) - failed} of {len(results["rows"])} folders work: {options.page}')
    if failed > MOST_EXCEPTIONS:
        raise ValueError(f'{failed} folders do not work, more than {MOST_EXCEPTIONS}')


def _choose(folder: tuple[str, str]) -> dict:
    return dict(library=folder[0], folder=folder[1], config=choose_config(*folder))


def _run(library: str, config: str, variant: str) -> dict:
    return run_row(library, config, VARIANTS[variant])


def _place(row: dict) -> tuple[int, str]:
    return LIBRARIES.index(row['library']), row['folder']


def _rows_that_stay(path: Path, packages: dict, folders: list) -> list[dict]:
    """Read the rows of other folders from a result file, if there is one of the same packages."""
    before = json.loads(path.read_text()) if path.is_file() else dict(rows=[])
    if before['rows'] and before['about']['versions'] != packages:
        raise ValueError(f'{path} is of other packages: run all folders, or name another file by --json')
    return [row for row in before['rows'] if (row['library'], row['folder']) not in folders]


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

    return 'mmsb.ops, nothing compiled' if Path(mmcv._ext.__file__).suffix == '.py' else "mmcv's own, compiled"


if __name__ == '__main__':
    run_tool(main)
