"""Compare the errors of a classifier with those of humans on 17 out-of-distribution sets (table 11 of the paper).

python -m benchmarks.human_consistency --humans human-responses --responses responses --figure consistency.png
python -m benchmarks.human_consistency --network CONFIG CHECKPOINT --images datasets --responses responses \
    --humans human-responses

The first compares answers in csv files; without --responses, humans with each other. The second lets
a classifier answer the images first.
"""

import argparse
import logging
from dataclasses import asdict
from pathlib import Path

from benchmarks.human_consistency.measures import (
    LEFT_OUT,
    Consistency,
    find_humans,
    find_responses,
    mean,
    read_all,
    table,
)
from mmsb.analysis.report import check_folders, markdown, write_json
from mmsb.checkpoints.load import install_reader, require_file
from mmsb.configs import read_config
from mmsb.engine.launcher import run_tool
from mmsb.engine.progress import progress_of
from mmsb.options import choose, positive_integer

FORMATS = ('.pdf', '.png', '.svg')


def parse_args():
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.human_consistency',
        description='Compare the errors of a classifier with those of humans.',
    )
    parser.add_argument('--humans', metavar='DIR', help='answers of humans: DIR/DATASET/*subject-*.csv')
    parser.add_argument(
        '--responses',
        metavar='DIR',
        help='answers of others: DIR/DATASET/*.csv; with --network, the folder to write to',
    )
    parser.add_argument(
        '--network', nargs=2, metavar=('CONFIG', 'CHECKPOINT'), help='classifier of 1000 classes to run'
    )
    parser.add_argument(
        '--images',
        metavar='DIR',
        help='images for the network: DIR/DATASET/dnn/session-1/*.png or DIR/DATASET/CATEGORY/*.png',
    )
    parser.add_argument('--name', help='of the network in the answers (default: the name of the config)')
    parser.add_argument('--device', help='such as cpu or cuda:1 (default: a GPU if there is one)')
    parser.add_argument('--batch-size', type=int, default=32, metavar='N', help='default: %(default)s')
    parser.add_argument('--datasets', action='store_true', help='also print the figures of each data set')
    parser.add_argument('--json', metavar='FILE', help='write the figures of each data set as JSON')
    parser.add_argument('--figure', metavar='FILE', help='draw the figures to a .png, .pdf or .svg file')
    args = parser.parse_args()
    if not (args.humans or args.network):
        parser.error('name the folder of --humans, or a --network')
    if args.network and not (args.images and args.responses):
        parser.error('--network needs the --images, and the folder of --responses to write to')
    if args.images and not args.network:
        parser.error('--images are for a --network')
    if (args.figure or args.json) and not args.humans:
        parser.error('--figure and --json compare with --humans')
    check_folders(parser, args, 'json', 'figure')
    return args


def run_network(args: argparse.Namespace) -> None:
    from benchmarks.human_consistency.responses import find_datasets, respond
    from mmsb.infer import Inferencer

    config, checkpoint = args.network
    positive_integer('--batch-size', args.batch_size)
    if not Path(config).is_file():
        raise FileNotFoundError(f'config {config!r} does not exist')
    require_file(checkpoint)
    name = args.name or Path(config).stem
    if '/' in name or '_' in name:
        name = name.replace('/', '-').replace('_', '-')  # the csv files' names are DATASET_NAME_session-1.csv
    datasets = find_datasets(args.images)
    inferencer = Inferencer(read_config(config), checkpoint, device=args.device)
    with progress_of('answer') as show:
        for path in respond(inferencer, datasets, args.responses, name=name, batch_size=args.batch_size, show=show):
            print(path)


def row(name: str, dataset: str, one: Consistency) -> list[str]:
    return [name, dataset, *(f'{value:.3f}' for value in asdict(one).values())]


def main() -> None:
    args = parse_args()
    logging.disable(logging.WARNING)  # what the libraries say while they build and load
    install_reader(everywhere=True)
    if args.figure:
        choose('the suffix of --figure', Path(args.figure).suffix, FORMATS)
    files = find_humans(args.humans) if args.humans else {}
    humans = read_all(files)  # a mistake there ends the tool before a network runs
    if args.network:
        run_network(args)
    if not humans:
        return
    others = read_all(find_responses(args.responses, files)) if args.responses else {}
    found = table(humans, others)
    rows = []
    for name, figures in found.items():
        rows.append(row(name, f'{len(figures)} of {len(LEFT_OUT)}', mean(figures.values())))
        if args.datasets:
            rows += [row(name, dataset, one) for dataset, one in figures.items()]
    header = ['subject', 'data sets', 'accuracy difference', 'observed consistency', 'error consistency']
    print(markdown(header, rows))
    if args.json:
        write_json(args.json, {name: {key: asdict(one) for key, one in sets.items()} for name, sets in found.items()})
    if args.figure:
        from benchmarks.human_consistency.figure import draw

        draw(found, args.figure)


if __name__ == '__main__':
    run_tool(main)
