"""The paper's tables on CIFAR-100 on one GPU: network, recipe and normalisation are those of the shipped configs.

python benchmarks/cifar100.py                       # ResNet-38 and SB-ResNet-38, 300 epochs, three seeds
python benchmarks/cifar100.py --rows deeper ablations context
python benchmarks/cifar100.py --list                # what there is

Interrupted or out of `--budget-s`, the same command goes on. Data: benchmarks/cifar100_data.py.
"""

import argparse

import torch

from mmsb.analysis.machine import find_device
from mmsb.engine.launcher import run_tool
from benchmarks.cifar100.rows import GROUPS, choose_rows, rows
from benchmarks.cifar100.table import collect
from benchmarks.cifar100.training import Options
from benchmarks.cifar100.side_by_side import quiet, train_all
from benchmarks.cifar100.trainer import MODES, PRECISIONS


def parse_args():
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description="The paper's tables on CIFAR-100, trained on one device.")
    parser.add_argument('--rows', nargs='+', default=['first'], metavar='ROW', help=f'{", ".join(GROUPS)}, or names')
    parser.add_argument('--list', action='store_true', help='print all rows and train nothing')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--data', default='data/cifar100', help='folder of train.npz and test.npz')
    parser.add_argument('--work-dir', default='work_dirs/cifar100')
    parser.add_argument(
        '--epochs', type=int, help='a shorter schedule, its milestones scaled (default: the config says)'
    )
    parser.add_argument('--subset-classes', type=int, metavar='N', help='train and test on the first N classes')
    parser.add_argument('--jobs', type=int, default=1, help='processes')
    parser.add_argument('--streams', type=int, default=6 if on_gpu else 1, help='runs side by side in a process')
    parser.add_argument('--mode', choices=MODES, default='graph' if on_gpu else 'eager')
    parser.add_argument('--precision', choices=PRECISIONS, default='bf16' if on_gpu else 'fp32')
    parser.add_argument('--contiguous', action='store_true', help='not channels_last')
    parser.add_argument('--eval-every', type=int, default=10, metavar='EPOCHS')
    parser.add_argument('--save-every', type=int, default=10, metavar='EPOCHS')
    parser.add_argument('--budget-s', type=float, help='stop cleanly before so many seconds')
    parser.add_argument('--resume', action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument('--device', default='cuda' if on_gpu else 'cpu')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    quiet()
    if args.list:
        for row in rows():
            print(f'{row.group:<10} {row.name:<28} {row.config} {row.backbone_options}')
        return
    chosen = choose_rows(args.rows)
    runs = [(row, seed) for group in GROUPS for seed in args.seeds for row in chosen if row.group == group]
    options = Options(
        data=args.data,
        work_dir=args.work_dir,
        device=str(find_device(args.device)),
        mode=args.mode,
        precision=args.precision,
        channels_last=not args.contiguous,
        epochs=args.epochs,
        first_classes=args.subset_classes,
        eval_every=args.eval_every,
        save_every=args.save_every,
        jobs=args.jobs,
        streams=args.streams,
        budget_s=args.budget_s,
        resume=args.resume,
    )
    train_all(runs, options)
    print(collect(args.work_dir), end='')


if __name__ == '__main__':
    run_tool(main)
