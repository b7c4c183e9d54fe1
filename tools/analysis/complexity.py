"""Parameters and operations of networks, beside the paper's figures.

python tools/analysis/complexity.py configs/imagenet/sb-resnet50_b256-100e_in1k.py
python tools/analysis/complexity.py --all [--json FILE]
python tools/analysis/complexity.py --paper
"""

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path

from mmsb.analysis import zoo
from mmsb.analysis.complexity import Complexity
from mmsb.engine.launcher import run_tool
from mmsb.options import choose


def parse_args():
    parser = argparse.ArgumentParser(description='Count parameters and operations of networks.')
    parser.add_argument('configs', nargs='*', metavar='CONFIG', help='config files')
    parser.add_argument('--all', action='store_true', help='all shipped classification configs')
    parser.add_argument('--paper', action='store_true', help="the rows of the paper's tables, beside its figures")
    parser.add_argument(
        '--shape', type=int, nargs='+', metavar='PX', help='height and width (default: the config says)'
    )
    parser.add_argument('--json', metavar='FILE', help='write the counts of the configs as json')
    args = parser.parse_args()
    if not (args.configs or args.all or args.paper):
        parser.error('name a config, or say --all or --paper')
    if args.paper and (args.json or args.shape):
        parser.error('--paper goes with neither --json nor --shape')
    if args.json and not Path(args.json).parent.is_dir():
        parser.error(f'the folder of --json {args.json} does not exist')
    return args


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in [header, ['-' * width for width in widths], *rows]:
        print('| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + ' |')


def figures(counts: Complexity) -> list[str]:
    return [f'{counts.params / 1e6:.2f}', f'{counts.macs / 1e6:.1f}', f'{counts.ops / 1e6:.1f}']


def paper_table() -> list[list[str]]:
    rows = []
    for row in zoo.paper_rows():
        if not row['config']:
            continue
        counts = zoo.measure(zoo.load(row['config'], row['backbone_options']), _paper_shape(row))
        params, macs, ops = figures(counts)
        met = zoo.as_printed(counts.params / 1e6, row['params_m']) == row['params_m']
        marks = params if met else f'{params} (!)'
        if row['mflops']:
            ops += f' ({(counts.ops / 1e6 / float(row["mflops"]) - 1) * 100:+.2f} %)'
        rows.append([row['table'], row['system'], row['setting'], marks, row['params_m'], macs, ops, row['mflops']])
    return rows


def _paper_shape(row: dict[str, str]) -> tuple[int, int, int]:
    return zoo.CIFAR_SHAPE if row['config'].startswith('cifar100/') else (3, 224, 224)


def main() -> None:
    args = parse_args()
    logging.disable(logging.INFO)  # what the libraries say while they build
    if args.paper:
        header = ['table', 'system', 'setting', 'params M', 'paper', 'multiply-adds M', 'operations M', 'paper']
        print_table(header, paper_table())
    shape = None
    if args.shape:
        choose('the number of values of --shape', len(args.shape), (1, 2))
        shape = (3, args.shape[0], args.shape[-1])
    names = [*args.configs, *(zoo.shipped() if args.all else [])]
    counts = {name: zoo.measure(zoo.load(name), shape) for name in names}
    if counts:
        rows = [[Path(name).stem, *figures(value)] for name, value in counts.items()]
        print_table(['config', 'params M', 'multiply-adds M', 'operations M'], rows)
    if args.json:
        text = json.dumps({name: asdict(value) for name, value in counts.items()}, indent=2)
        Path(args.json).write_text(text + '\n')


if __name__ == '__main__':
    run_tool(main)
