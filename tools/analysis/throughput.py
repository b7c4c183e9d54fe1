"""Measure the speed and peak memory of networks, interleaved with the plain network.

python tools/analysis/throughput.py configs/imagenet/sb-resnet50_b256-100e_in1k.py
python tools/analysis/throughput.py --all-systems --json FILE --plot FILE
python tools/analysis/throughput.py CONFIG... --sizes 224 448 800x1333 --batch-sizes 1 --memory --plot FILE

For classification configs the whole network is measured; for others, backbone and neck (these need `--sizes`). Weights
are random.
"""

import argparse
import itertools
import logging
import sys
import warnings

from mmsb.analysis import machine, networks, plots, zoo
from mmsb.analysis.memory import limit_to_free_memory
from mmsb.analysis.report import check_folders, markdown, write_json
from mmsb.analysis.steps import DTYPES, INFERENCE_MODES, MEMORY_FORMATS, MODES, PHASES, Setting
from mmsb.analysis.throughput import Cell, Plan, measure, summarise_all
from mmsb.engine.launcher import run_tool
from mmsb.engine.progress import progress_of

PAPER_SIZE_PX = (224, 224)  # image size of the paper's speed figures


def at_least(lowest: float, kind: type):
    """Return an argparse type for numbers of at least `lowest`."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not value >= lowest:
            raise argparse.ArgumentTypeError(f'must be a number of at least {lowest}, got {text!r}')
        return value

    return parse


def size(text: str) -> tuple[int, int]:
    """Parse '224' or '800x1333' into (height, width) in pixels."""
    sides = text.split('x')
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f'must be pixels, 224 or 800x1333 (height x width), got {text!r}')
    return int(sides[0]), int(sides[-1])


def parse_args():
    parser = argparse.ArgumentParser(description='Measure the speed and peak memory of networks, interleaved.')
    parser.add_argument('configs', nargs='*', metavar='CONFIG', help='config files')
    parser.add_argument('--all-systems', action='store_true', help='measure all available systems of tables 8 to 10')
    parser.add_argument('--plain', metavar='CONFIG', help='network to compare with (default: ResNet-50)')
    for option, choices, default in (
        ('--phases', PHASES, PHASES),
        ('--modes', MODES, MODES[:1]),
        ('--memory-formats', list(MEMORY_FORMATS), ['nchw']),
        ('--dtypes', DTYPES, DTYPES[:1]),
    ):
        parser.add_argument(option, nargs='+', choices=choices, default=default, help=f'default: {" ".join(default)}')
    parser.add_argument('--batch-sizes', nargs='+', type=at_least(1, int), default=[1, 32], help='default: 1 32')
    parser.add_argument('--sizes', nargs='+', type=size, metavar='PX', help="224 or 800x1333 (default: the config's)")
    parser.add_argument('--repeats', type=at_least(1, int), default=10, help='number of rounds; default: 10')
    parser.add_argument('--warmup', type=at_least(1, int), default=2, help='calls before the first round; default: 2')
    parser.add_argument('--sample-s', type=at_least(0, float), default=0.5, help='seconds per sample; default: 0.5')
    parser.add_argument('--memory', action='store_true', help='peak memory on the CPU too, in separate processes')
    parser.add_argument('--device', help='cpu, cuda or cuda:N (default: a GPU if available)')
    parser.add_argument('--seed', type=int, default=0, help='seed of weights and images; default: 0')
    parser.add_argument('--json', metavar='FILE', help='write all results as JSON, after each round')
    parser.add_argument('--plot', metavar='FILE', help='plot accuracy against speed, or cost against several --sizes')
    args = parser.parse_args()
    if not (args.configs or args.all_systems):
        parser.error('name a config, or use --all-systems')
    check_folders(parser, args, 'json', 'plot')
    return args


def settings_of(args, plain: networks.Source) -> list[Setting]:
    """Return all combinations of the options; `measure` runs all networks in each, to compare them side by side."""
    sizes = args.sizes
    if not sizes:
        cfg = plain.load()
        if not zoo.is_classifier(cfg):
            raise ValueError(f'{plain.config!r} is not a classification config: give --sizes, e.g. 800x1333')
        sizes = [zoo.input_shape(cfg)[1:]]
    choices = itertools.product(args.modes, args.memory_formats, args.dtypes, args.phases, args.batch_sizes, sizes)
    settings = [
        Setting(phase, batch_size, tuple(size_px), mode, memory_format, dtype)
        for mode, memory_format, dtype, phase, batch_size, size_px in dict.fromkeys(choices)
        if phase == 'inference' or mode not in INFERENCE_MODES
    ]
    if not settings:
        raise ValueError(f'--modes {" ".join(args.modes)} are for inference: add it to --phases')
    return settings


def spread(figures: dict, name: str, decimals: int) -> str:
    """Format a median, with the quartiles in brackets."""
    if figures[name] is None:
        return ''
    low, high = figures[f'{name}_quartiles']
    return f'{figures[name]:.{decimals}f} ({low:.{decimals}f} to {high:.{decimals}f})'


def table(results: list[dict], paper: dict[str, float]) -> str:
    """Format the results of one setting as a table, followed by the reasons for empty cells.

    Args:
        results: results of the setting, one per network.
        paper: the paper's time of each network relative to the plain one, for inference at PAPER_SIZE_PX.
    """
    memory = any(figures['peak_mib'] is not None for figures in results)
    setting = results[0]['phase'], tuple(results[0]['size_px'])
    paper = paper if setting == ('inference', PAPER_SIZE_PX) else {}
    header = ['network', 'ms', 'images/s', 'time / plain', *(['paper'] if paper else [])]
    header += ['peak MiB'] if memory else []
    rows = []
    for figures in results:
        name, peak = figures['network'], figures['peak_mib']
        row = [name, spread(figures, 'ms', 1), spread(figures, 'images_per_s', 1), spread(figures, 'time_ratio', 3)]
        row += [f'{paper[name]:.2f}' if name in paper else ''] if paper else []
        row += ['' if peak is None else f'{peak:.0f}'] if memory else []
        rows.append(row)
    reasons = [f'* {figures["network"]}: {figures["reason"]}' for figures in results if figures['reason']]
    return markdown(header, rows) + ('\n\n' + '\n'.join(reasons) if reasons else '')


def paper_time(described: dict[str, dict], plain: str) -> dict[str, float]:
    """Compute the paper's time per image relative to the plain network, from its images per second."""
    speeds = {name: about['paper_images_per_s'] for name, about in described.items() if about['paper_images_per_s']}
    return {name: speeds[plain] / speed for name, speed in speeds.items()} if plain in speeds else {}


def main() -> None:
    args = parse_args()
    logging.disable(logging.WARNING)  # hide what the libraries log while building
    warnings.simplefilter('ignore')
    device = machine.find_device(args.device)
    configs = [*args.configs, *(zoo.systems() if args.all_systems else [])]
    sources, plain = networks.sources_of(configs, args.plain)
    settings = settings_of(args, plain)
    plan = Plan(args.repeats, args.warmup, args.sample_s, args.memory, args.seed)
    if device.type == 'cpu':
        limit_to_free_memory()
    about = machine.describe(device, args.seed)
    print(machine.summary(about))
    print(f'Medians of {plan.rounds} rounds, quartiles in brackets; compared with {plain.name} round by round.')
    if device.type == 'cpu' and not plan.memory:
        print('Peak memory is not measured; on the CPU, --memory does so, with a separate process per figure.')
    described = {source.name: describe(source) for source in sources}
    paper = paper_time(described, plain.name)

    def write(results: list[dict], complete: bool) -> None:
        data = dict(machine=about, plain=plain.name, networks=described, complete=complete, results=results)
        if args.json:
            write_json(args.json, data)

    results: list[dict] = []
    printed = 0
    with progress_of('measuring') as show:
        for cells in measure(sources, settings, plan, device, show):
            results = summarise_all(cells, plain.name)
            write(results, complete=False)
            if len(results) > printed and finished(cells, plan.rounds):
                print(f'\n{cells[-1].setting}\n\n{table(results[printed:], paper)}', flush=True)
                printed = len(results)
    write(results, complete=True)
    if args.plot:
        draw(results, described, args.plot)


def finished(cells: list[Cell], rounds: int) -> bool:
    """Return whether the last setting has completed all rounds."""
    here = [cell for cell in cells if cell.setting == cells[-1].setting]
    return all(cell.reason or len(cell.seconds) == rounds for cell in here)


def describe(source: networks.Source) -> dict:
    """Describe a network, with the paper's figures for it."""
    row = (None if source.backbone_options else zoo.paper_row(source.config)) or {}
    top1 = float(row['top1']) if row.get('top1') else None
    if row.get('top1_err'):
        top1 = round(100 - float(row['top1_err']), 2)
    speed = float(row['images_per_s']) if row.get('images_per_s') else None
    options = source.backbone_options
    return dict(config=source.config, backbone_options=options, paper_top1=top1, paper_images_per_s=speed)


def draw(results: list[dict], described: dict[str, dict], path: str) -> None:
    if len({figures['size_px'] for figures in results}) > 1:
        plots.cost_against_size(results, path)
        return
    top1 = {name: about['paper_top1'] for name, about in described.items() if about['paper_top1'] is not None}
    if not plots.accuracy_against_speed(results, top1, path):
        print(f'{path} was not drawn: the paper reports no accuracy for these networks', file=sys.stderr)


if __name__ == '__main__':
    run_tool(main)
