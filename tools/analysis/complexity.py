"""Count parameters, operations and activations of networks, and compare them with the paper's figures.

python tools/analysis/complexity.py configs/imagenet/sb-resnet50_b256-100e_in1k.py [--stages] [--bias]
python tools/analysis/complexity.py --all [--json FILE] [--csv FILE]
python tools/analysis/complexity.py --paper
python tools/analysis/complexity.py configs/coco/faster-rcnn_sb-r50_fpn_1x_coco.py --shape 800 1333

Activations are the output elements of all convolutions. For detectors and segmenters only the backbone is counted.
"""

import argparse
import logging
from dataclasses import asdict
from pathlib import Path

from mmsb.analysis import zoo
from mmsb.analysis.complexity import Complexity
from mmsb.analysis.report import check_folders, markdown, write_csv, write_json
from mmsb.engine.launcher import run_tool
from mmsb.options import choose

UNITS = ['params M', 'multiply-adds M', 'operations M', 'activations M']


def parse_args():
    parser = argparse.ArgumentParser(
        description='Count parameters, operations and activations (output elements of convolutions).'
    )
    parser.add_argument('configs', nargs='*', metavar='CONFIG', help='config files')
    parser.add_argument('--all', action='store_true', help='count all shipped classification configs')
    parser.add_argument('--paper', action='store_true', help="compare with the figures in the paper's tables")
    parser.add_argument('--stages', action='store_true', help='also count the stem, each stage and the head')
    parser.add_argument('--bias', action='store_true', help='also count what spatial bias adds')
    parser.add_argument(
        '--shape', type=int, nargs='+', metavar='PX', help='height and width (default: as in the config)'
    )
    parser.add_argument('--json', metavar='FILE', help='write the counts as JSON')
    parser.add_argument('--csv', metavar='FILE', help='write the counts as CSV, one part per line')
    args = parser.parse_args()
    if not (args.configs or args.all or args.paper):
        parser.error('name a config, or use --all or --paper')
    if args.paper and (args.json or args.csv or args.shape or args.stages or args.bias):
        parser.error('--paper cannot be combined with --json, --csv, --shape, --stages or --bias')
    check_folders(parser, args, 'json', 'csv')
    return args


def figures(counts: Complexity) -> list[str]:
    millions = (counts.macs / 1e6, counts.ops / 1e6, counts.activations / 1e6)
    return [f'{counts.params / 1e6:.2f}', *(f'{value:.1f}' for value in millions)]


def paper_table() -> list[list[str]]:
    rows = []
    for row in zoo.paper_rows():
        if not row['config']:
            continue
        counts = zoo.measure(zoo.load(row['config'], row['backbone_options']), _paper_shape(row))
        params, macs, ops, _ = figures(counts)
        met = zoo.as_printed(counts.params / 1e6, row['params_m']) == row['params_m']
        marks = params if met else f'{params} (!)'
        if row['mflops']:
            ops += f' ({(counts.ops / 1e6 / float(row["mflops"]) - 1) * 100:+.2f} %)'
        rows.append([row['table'], row['system'], row['setting'], marks, row['params_m'], macs, ops, row['mflops']])
    return rows


def _paper_shape(row: dict[str, str]) -> tuple[int, int, int]:
    return zoo.CIFAR_SHAPE if row['config'].startswith('cifar100/') else (3, 224, 224)


def count_parts(name: str, args, shape: tuple[int, int, int] | None) -> dict[str, Complexity]:
    """Count the network (or backbone) of a config, and its stages and spatial bias if the options ask for them."""
    cfg = zoo.load(name)
    counts = {'network' if zoo.is_classifier(cfg) else 'backbone': zoo.measure(cfg, shape)}
    if args.stages:
        counts |= zoo.measure_stages(cfg, shape)
    if args.bias and (bias := zoo.measure_bias(cfg, shape)):
        counts['bias'] = bias
    return counts


def as_json(parts: dict[str, Complexity]) -> dict:
    """Nest the counts of the stages and the bias under those of the whole."""
    (_, whole), *others = parts.items()
    nested = {name: asdict(counts) for name, counts in others}
    bias = nested.pop('bias', None)
    return {**asdict(whole), **({'stages': nested} if nested else {}), **({'bias': bias} if bias else {})}


def main() -> None:
    args = parse_args()
    logging.disable(logging.INFO)  # hide what the libraries log while building
    if args.paper:
        header = ['table', 'system', 'setting', 'params M', 'paper', 'multiply-adds M', 'operations M', 'paper']
        print(markdown(header, paper_table()))
    shape = None
    if args.shape:
        choose('the number of values of --shape', len(args.shape), (1, 2))
        shape = (3, args.shape[0], args.shape[-1])
    names = [*args.configs, *(zoo.shipped() if args.all else [])]
    counts = {name: count_parts(name, args, shape) for name in names}
    lines = [(name, part, value) for name, parts in counts.items() for part, value in parts.items()]
    if counts:
        labelled = any(part != 'network' for _, part, _ in lines)  # drop a column that would say 'network' in every row
        rows = [[Path(name).stem, *([part] if labelled else []), *figures(value)] for name, part, value in lines]
        print(markdown(['config', *(['part'] if labelled else []), *UNITS], rows))
    if args.json:
        write_json(args.json, {name: as_json(parts) for name, parts in counts.items()})
    if args.csv:
        write_csv(args.csv, [dict(config=name, part=part, **asdict(value)) for name, part, value in lines])


if __name__ == '__main__':
    run_tool(main)
