"""CIFAR-100 in as many epochs as a time allows: ResNet-38 and SB-ResNet-38, seeds 0, 1, 2, by benchmarks.cifar100.

python -m benchmarks.gpu.epochs --data data/cifar100 --work-dir DIR --json FILE --seconds 120

Two epochs tell how long one takes; then all start anew, with a schedule of the length that fits.
"""

import argparse
import json
import logging
import math
import time
import warnings
from pathlib import Path

from benchmarks.cifar100.__main__ import parse_options as parse_training
from benchmarks.cifar100.rows import choose_rows
from benchmarks.cifar100.training import train_all
from mmsb.analysis.machine import describe
from mmsb.analysis.report import write_json
from mmsb.engine.launcher import run_tool

PROBE_EPOCHS = 2
MARGIN, RESERVE_S = 1.15, 5  # an epoch may take this much longer; to import and to end
SEEDS, QUICK_SEEDS = (0, 1, 2), (0,)
LONGEST = 300  # epochs, of the paper


def train(work_dir: Path, epochs: int, options: argparse.Namespace) -> list[dict]:
    """Train all for a number of epochs; returns their records."""
    flags = ['--data', options.data, '--work-dir', str(work_dir), '--epochs', str(epochs), '--device', options.device]
    seeds = QUICK_SEEDS if options.quick else SEEDS
    train_all([(row, seed) for seed in seeds for row in choose_rows(['first'])], parse_training(flags))
    return json.loads((work_dir / 'results.json').read_text())


def epochs_for(seconds: float, records: list[dict]) -> int:
    """Return how many epochs fit, from the records of a short training: those side by side share their time.

    Raises:
        ValueError: not one does.
    """
    side_by_side = max(entry['side_by_side'] for record in records for entry in record['history'])
    longest = max(record['history'][-1]['train_s'] for record in records)
    epochs = math.floor(seconds / (MARGIN * longest * len(records) / side_by_side))
    if epochs < 1:
        raise ValueError(f'an epoch takes {longest:.0f} s, and {seconds:.0f} s are left: give more --minutes')
    return min(epochs, LONGEST)


def main(arguments: list[str] | None = None) -> None:
    start = time.monotonic()
    parser = argparse.ArgumentParser(prog='python -m benchmarks.gpu.epochs', description=__doc__.splitlines()[0])
    parser.add_argument('--data', required=True, help='folder with train.npz and test.npz')
    parser.add_argument('--work-dir', type=Path, required=True)
    parser.add_argument('--json', required=True)
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument('--seconds', type=float, required=True, help='time for all of it')
    parser.add_argument('--quick', action='store_true', help='one seed, one epoch')
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    warnings.simplefilter('ignore')
    work_dir = options.work_dir / f'{time.time_ns()}'
    epochs = 1
    if not options.quick:
        began = time.monotonic()
        probe = train(work_dir / 'probe', PROBE_EPOCHS, options)
        # what came before the last epoch of the probe comes again: building, warming up, capturing
        again = time.monotonic() - began - probe[0]['history'][-1]['train_s']
        epochs = epochs_for(options.seconds - (time.monotonic() - start) - again - RESERVE_S, probe)
    records = train(work_dir / 'all', epochs, options)
    write_json(options.json, dict(machine=describe(parse_training(['--device', options.device]).device, 0),
                                  records=records))  # fmt: skip


if __name__ == '__main__':
    run_tool(main)
