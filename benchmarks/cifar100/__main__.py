"""The paper's tables on CIFAR-100 on one device: network, recipe and normalisation are those of the shipped configs.

python -m benchmarks.cifar100                                     # ResNet-38 and SB-ResNet-38, 300 epochs, three seeds
python -m benchmarks.cifar100 --rows deeper ablations context
python -m benchmarks.cifar100 --list                              # all rows

After an interruption, or when `--budget-s` is used up, the same command continues. Data: benchmarks/cifar100/data.py.
"""

import argparse
import logging
import warnings
from collections.abc import Sequence

from benchmarks.cifar100.rows import GROUPS, all_rows, choose_rows
from benchmarks.cifar100.table import write_table
from benchmarks.cifar100.trainer import MODES, PRECISIONS
from benchmarks.cifar100.training import train_all
from mmsb.analysis.machine import find_device
from mmsb.engine.launcher import run_tool
from mmsb.options import positive_integer


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and fill in the defaults that depend on the device.

    Raises:
        ValueError: for a value that is not valid.
    """
    parser = argparse.ArgumentParser(prog='python -m benchmarks.cifar100', description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--rows', nargs='+', default=['first'], metavar='ROW', help=f'{", ".join(GROUPS)}, or names of rows')
    add('--list', action='store_true', help='print all rows and train nothing')
    add('--seeds', type=int, nargs='+', default=[0, 1, 2])
    add('--data', default='data/cifar100', help='folder with train.npz and test.npz')
    add('--work-dir', default='work_dirs/cifar100', help='folder for checkpoints, records and the table')
    add('--epochs', type=int, help="shorten or extend the config's schedule; the milestones are scaled")
    add('--subset-classes', type=int, metavar='N', help='train and test on the first N classes only')
    add('--streams', type=int, help='networks trained side by side (GPU: 6, CPU: 1)')
    add('--mode', choices=MODES, help='how a step runs (GPU: graph, CPU: eager)')
    add('--precision', choices=PRECISIONS, help='of the training; tests run in fp32 (GPU: bf16, CPU: fp32)')
    add('--contiguous', action='store_true', help='use the contiguous memory format instead of channels_last')
    add('--eval-every', type=int, default=10, metavar='EPOCHS', help='the last epoch is always tested')
    add('--save-every', type=int, default=10, metavar='EPOCHS')
    add('--budget-s', type=float, help='start no epoch that would not end within this many seconds')
    add('--device', help='cpu, cuda or cuda:N (default: a GPU if there is one)')
    options = parser.parse_args(arguments)
    for name in ('epochs', 'subset_classes', 'streams', 'eval_every', 'save_every'):
        if getattr(options, name) is not None:
            positive_integer('--' + name.replace('_', '-'), getattr(options, name))
    options.device = find_device(options.device)
    on_gpu = options.device.type == 'cuda'
    if not on_gpu and (options.streams or 1) > 1:
        raise ValueError(f'--streams {options.streams} needs a GPU; on a CPU start one command per core')
    options.streams = options.streams or (6 if on_gpu else 1)
    options.mode = options.mode or ('graph' if on_gpu else 'eager')
    options.precision = options.precision or ('bf16' if on_gpu else 'fp32')
    return options


def main() -> None:
    options = parse_options()
    logging.disable(logging.WARNING)  # what the libraries log while they build a network
    warnings.simplefilter('ignore')
    if options.list:
        for row in all_rows():
            print(f'{row.group:<10} {row.name:<28} {row.config} {row.backbone_options}')
        return
    chosen = choose_rows(options.rows)
    queue = [(row, seed) for group in GROUPS for seed in options.seeds for row in chosen if row.group == group]
    train_all(queue, options)
    print(write_table(options.work_dir), end='')


if __name__ == '__main__':
    run_tool(main)
