"""Parameters, operations and activations of networks, beside the paper's figures.

python tools/analysis/complexity.py configs/imagenet/sb-resnet50_b256-100e_in1k.py [--stages] [--bias]
python tools/analysis/complexity.py --all [--json FILE] [--csv FILE]
python tools/analysis/complexity.py --paper
python tools/analysis/complexity.py configs/coco/faster-rcnn_sb-r50_fpn_1x_coco.py --shape 800 1333

Activations are the elements of the outputs of convolutions. Of detectors and segmenters the backbone is counted.
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
        description='Count parameters, operations and activations (elements of the outputs of convolutions).'
    )
    parser.add_argument('configs', nargs='*', metavar='CONFIG', help='config files')
    parser.add_argument('--all', action='store_true', help='all shipped classification configs')
    parser.add_argument('--paper', action='store_true', help="the rows of the paper's tables, beside its figures")
    parser.add_argument('--stages', action='store_true', help='also stem, each stage, and head')
    parser.add_argument('--bias', action='store_true', help='also what spatial bias alone adds')
    parser.add_argument(
        '--shape', type=int, nargs='+', metavar='PX', help='height and width (default: the config says)'
    )
    parser.add_argument('--json', metavar='FILE', help='write the counts of the configs as json')
    parser.add_argument('--csv', metavar='FILE', help='write the counts of the configs as csv, one part a line')
    args = parser.parse_args()
    if not (args.configs or args.all or args.paper):
        parser.error('name a config, or say --all or --paper')
    if args.paper and (args.json or args.csv or args.shape or args.stages or args.bias):
        parser.error('--paper goes with none of --json, --csv, --shape, --stages and --bias')
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
    """Count a config: 'network' (or 'backbone'), its stages and its bias, as far as the command line asks for them."""
    cfg = zoo.load(name)
    counts = {'network' if zoo.is_classifier(cfg) else 'backbone': zoo.measure(cfg, shape)}
    if args.stages:
        counts |= zoo.measure_stages(cfg, shape)
    if args.bias and (bias := zoo.measure_bias(cfg, shape)):
        counts['bias'] = bias
    return counts


def as_json(parts: dict[str, Complexity]) -> dict:
    """Nest what the options added below the counts of the whole."""
    (_, whole), *others = parts.items()
    nested = {name: asdict(counts) for name, counts in others}
    bias = nested.pop('bias', None)
    return {**asdict(whole), **({'stages': nested} if nested else {}), **({'bias': bias} if bias else {})}


def main() -> None:
    args = parse_args()
    logging.disable(logging.INFO)  # what the libraries say while they build
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
        labelled = any(part != 'network' for _, part, _ in lines)  # a column of the same word says nothing
        rows = [[Path(name).stem, *([part] if labelled else []), *figures(value)] for name, part, value in lines]
        print(markdown(['config', *(['part'] if labelled else []), *UNITS], rows))
    if args.json:
        write_json(args.json, {name: as_json(parts) for name, parts in counts.items()})
    if args.csv:
        write_csv(args.csv, [dict(config=name, part=part, **asdict(value)) for name, part, value in lines])


if __name__ == '__main__':
    run_tool(main)
