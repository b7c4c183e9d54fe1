"""What the first GPU is for, in one call that ends in time; installs nothing.

python -m benchmarks.gpu --out DIR --minutes 9                     # on a GPU
python -m benchmarks.gpu --out DIR --device cpu --quick            # all of it, small, on a CPU: shows that it runs
python -m benchmarks.gpu --page                                    # docs/gpu.md, from benchmarks/results/gpu
python -m benchmarks.gpu --page --out DIR                          # docs/gpu.md, from another folder

DIR gets gpu.json (how each part ended), and for each part NAME.json and NAME.log. Exit code 1 if a part failed.
"""

import argparse
import math
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.page import PAGE, RESULTS, page
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.runner import run_all
from mmsb.analysis.machine import find_device
from mmsb.engine.launcher import run_tool
from mmsb.files import write_text

START = time.monotonic()
MARGIN_S = 15  # for the imports before START, and to end


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        ValueError: there is no GPU, or there are too few minutes.
    """
    parser = argparse.ArgumentParser(prog='python -m benchmarks.gpu', description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, help='folder for the results')
    parser.add_argument('--minutes', type=float, default=9, help='wall time of the whole call (default: %(default)s)')
    parser.add_argument('--data', default='data/cifar100', help='folder with train.npz and test.npz of CIFAR-100')
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument('--quick', action='store_true', help='everything small: shows that it runs, measures nothing')
    parser.add_argument('--page', action='store_true', help='run nothing: write docs/gpu.md from the results in --out')
    options = parser.parse_args(arguments)
    if options.page:
        return options
    if options.out is None:
        parser.error('name a folder for the results by --out')
    if not 2 * MARGIN_S < options.minutes * 60 < math.inf:
        raise ValueError(f'--minutes must be a number above {2 * MARGIN_S / 60:g}, got {options.minutes:g}')
    find_device(options.device)
    options.data = str(Path(options.data).resolve())
    options.out = options.out.resolve()
    options.work_dir = options.out / 'work_dirs'
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_options(arguments)
    if options.page:
        write_text(PAGE, page(options.out or RESULTS))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the part that runs, too
    options.work_dir.mkdir(parents=True, exist_ok=True)
    found = run_all(PARTS, options, START + 60 * options.minutes - MARGIN_S)
    print(f'results: {options.out}')
    if failed := [name for name, result in found.items() if result['status'] == 'failed']:
        raise RuntimeError(f'{", ".join(failed)} failed: see {options.out}/{failed[0]}.log')


if __name__ == '__main__':
    run_tool(main)
