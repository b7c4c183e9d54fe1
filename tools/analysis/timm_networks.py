"""List the networks of timm that can have spatial bias, and what it adds to their parameters and operations.

python tools/analysis/timm_networks.py 'resnet*' convnext_tiny
python tools/analysis/timm_networks.py --csv docs/tables/timm_networks.csv --markdown docs/tables/timm_networks.md

Weights are random, and nothing is downloaded or computed. Without a name or pattern, all of timm's networks are
counted; this takes many minutes.
"""

import argparse
import logging
import warnings

from mmsb.analysis.report import check_folders, markdown, write_csv
from mmsb.analysis.timm_networks import as_dict, by_family, find_names, measure
from mmsb.engine.launcher import run_tool
from mmsb.engine.progress import progress_of
from mmsb.files import write_text

HEADER = ['network', 'blocks with bias', 'params M', 'added %', 'operations M', 'added %']
FAMILIES = ['module of timm', 'names', 'types of blocks', 'added parameters, %', 'added operations, %']


def parse_args():
    parser = argparse.ArgumentParser(description='List the networks of timm that can have spatial bias.')
    parser.add_argument('names', nargs='*', metavar='NAME', help="names or patterns, 'resnet*' (default: all)")
    parser.add_argument('--csv', metavar='FILE', help='write all figures as CSV, one network per line')
    parser.add_argument('--markdown', metavar='FILE', help='write a summary by family as Markdown')
    args = parser.parse_args()
    check_folders(parser, args, 'csv', 'markdown')
    return args


def main() -> None:
    args = parse_args()
    logging.disable(logging.WARNING)  # hide what the libraries log while building
    warnings.simplefilter('ignore')
    names, rows = find_names(args.names), []
    with progress_of('counting') as show:
        for i, name in enumerate(names):
            rows += measure([name])
            show('networks of timm', i + 1, len(names))
    if not rows:
        raise ValueError(f'none of the networks ({", ".join(names)}) has blocks that are in BLOCKS of add_spatial_bias')
    works = [row for row in rows if not row.reason]
    table = [
        [
            row.name,
            row.blocks,
            f'{row.params / 1e6:.2f}',
            f'{row.params_percent:.2f}',
            f'{row.ops / 1e6:.1f}',
            f'{row.ops_percent:.2f}',
        ]
        for row in works
    ]
    print(markdown(HEADER, table))
    for row in rows:
        if row.reason:
            print(f'{row.name}: {row.reason}')
    print(f'\n{len(works)} networks')
    if args.csv:
        write_csv(args.csv, [as_dict(row) for row in rows])
    if args.markdown:
        write_text(args.markdown, markdown(FAMILIES, by_family(rows)) + '\n')


if __name__ == '__main__':
    run_tool(main)
