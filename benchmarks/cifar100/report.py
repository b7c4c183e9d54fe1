"""Tables and figure of the trainings that `benchmarks.cifar100.budget` has recorded.

python -m benchmarks.cifar100.report
"""

import argparse
import json
import statistics
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.cifar100.budget import MILESTONES, RESULTS, ROOT
from mmsb.analysis.paired import Paired
from mmsb.analysis.report import check_folders, markdown
from mmsb.engine.launcher import run_tool
from mmsb.files import write_figure

FIGURE = ROOT / 'docs/figures/cifar100.png'
PLAIN = 'resnet-38'
LABELS = {'top1_error': 'top-1 error', 'top5_error': 'top-5 error'}


def read_records(folder: Path) -> dict[str, list[dict]]:
    """Read the records of a folder: a list for each network, the plain one first, in the order of the seeds.

    Raises:
        FileNotFoundError: there is none.
    """
    found: dict[str, list[dict]] = {}
    for path in folder.glob('*_seed*.json'):
        record = json.loads(path.read_text())
        found.setdefault(record['network'], []).append(record)
    if not found:
        raise FileNotFoundError(f'{str(folder)!r} has no records *_seed*.json: python -m benchmarks.cifar100.budget')
    names = sorted(found, key=lambda name: (name != PLAIN, name))
    return {name: sorted(found[name], key=lambda record: record['seed']) for name in names}


def name_of(record: dict) -> str:
    return record['system'] + ('' if record['setting'] == '-' else f' ({record["setting"]})')


def per_seed(found: dict[str, list[dict]]) -> str:
    """Make the table of all trainings."""
    header = ['network', 'seed', 'epochs', *(f'{label}, %' for label in LABELS.values()), 'images/s', 'interruptions']
    rows = [
        [name_of(record), str(record['seed']), str(record['epochs']), *(f'{record[key]:.2f}' for key in LABELS),
         f'{record["images_per_s"]:.0f}', str(record['interruptions'])]
        for records in found.values() for record in records
    ]  # fmt: skip
    return markdown(header, rows)


def summary(found: dict[str, list[dict]]) -> str:
    """Make the table of means, standard deviations, and differences from the plain network."""
    rows = []
    for name, records in found.items():
        for metric, label in LABELS.items():
            errors = [record[metric] for record in records]
            spread = f' ± {statistics.stdev(errors):.2f}' if len(errors) > 1 else ''
            cells = [name_of(records[0]), label, f'{statistics.fmean(errors):.2f}{spread}', str(len(errors)), '', '']
            if name != PLAIN and PLAIN in found:
                paired = Paired.of(*({one['seed']: one[metric] for one in some} for some in (records, found[PLAIN])))
                cells[4] = f'{paired.mean:+.2f} (n = {paired.n})' if paired.n else ''
                cells[5] = f'{paired.low:+.2f} to {paired.high:+.2f}' if paired.n > 1 else ''
            rows.append(cells)
    header = ['network', 'of the last epoch', 'mean ± std, %', 'seeds', 'minus plain', '95 % interval']
    return markdown(header, rows)


def conditions(found: dict[str, list[dict]]) -> str:
    """Name machines and versions."""
    records = [record for records in found.values() for record in records]
    machines = sorted({record['machine'] for record in records})
    versions = sorted(
        {', '.join(f'{name} {value}' for name, value in record['versions'].items()) for record in records}
    )
    return f'{" and ".join(machines)}; {" and ".join(versions)}'


def draw(found: dict[str, list[dict]], path: Path) -> None:
    """Draw training loss and top-1 error over the epochs: thin lines are seeds, the thick one is their mean."""
    figure = Figure(figsize=(9, 3.6), layout='constrained')
    axes = figure.subplots(1, 2)
    for axis, key, label in zip(axes, ('loss', 'top1_error'), ('training loss', 'top-1 error (%)'), strict=True):
        for milestone in MILESTONES.split(','):
            axis.axvline(int(milestone) + 0.5, linestyle=':', color='grey', linewidth=1)
        for i, records in enumerate(found.values()):
            curves = [[epoch[key] for epoch in record['curve']] for record in records]
            epochs = [epoch['epoch'] for epoch in records[0]['curve']]
            for curve in curves:
                axis.plot(epochs, curve, color=f'C{i}', linewidth=0.8, alpha=0.5)
            mean = [statistics.fmean(values) for values in zip(*curves, strict=True)]
            axis.plot(epochs, mean, color=f'C{i}', linewidth=2, label=name_of(records[0]))
        axis.set(xlabel='epoch', ylabel=label)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(frameon=False)
    write_figure(path, figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.cifar100.report', description=__doc__.splitlines()[0])
    parser.add_argument('--results', type=Path, default=RESULTS, help='folder with the records')
    parser.add_argument('--figure', type=Path, default=FIGURE, help='picture to write')
    options = parser.parse_args()
    check_folders(parser, options, 'figure')
    found = read_records(options.results)
    draw(found, options.figure)
    print(f'{per_seed(found)}\n\n{summary(found)}\n\n{conditions(found)}\n\nfigure: {options.figure}')


if __name__ == '__main__':
    run_tool(main)
