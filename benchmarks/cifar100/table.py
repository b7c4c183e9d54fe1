"""All records in a work dir as results.json, and as a table beside the paper's figures: results.md."""

import json
import statistics
from pathlib import Path

from mmsb.analysis.report import markdown, write_json
from mmsb.files import write_text

HEADER = ['network', 'setting', 'epochs', 'top-1 error by seed', 'mean', 'std', 'paper', 'top-5 error by seed', 'mean',
          'paper', 'images/s', 'seconds', 'on']  # fmt: skip
SAME_TRAINING = ('row', 'config', 'backbone_options', 'images', 'precision', 'recipe', 'first_classes')


def write_table(work_dir: str | Path) -> str:
    """Write results.json and results.md for all trainings in a folder; returns the table.

    Several processes may do so at once: each writes all that is there.
    """
    folder = Path(work_dir)
    records = [json.loads(path.read_text()) for path in sorted(folder.glob('*_seed*.json'))]
    text = table(records)
    write_json(folder / 'results.json', records)
    write_text(folder / 'results.md', text)
    return text


def table(records: list[dict]) -> str:
    """Make the Markdown table: one line for all seeds of a network that were trained in the same way.

    The errors are those of the last epoch; an unfinished training has none. The paper's figure appears only beside the
    paper's recipe on all classes. Images per second are the median over epochs of one training with the others beside
    it, seconds the mean over seeds.
    """
    lines: dict[str, list[dict]] = {}
    for record in records:
        lines.setdefault(json.dumps([record[key] for key in SAME_TRAINING], sort_keys=True), []).append(record)
    return markdown(HEADER, [_line(seeds) for seeds in lines.values()]) + '\n'


def _line(seeds: list[dict]) -> list[str]:
    first = seeds[0]
    epochs, done = first['recipe']['epochs'], min(record['epochs_done'] for record in seeds)
    schedule = f'{epochs}' if done == epochs else f'{done} of {epochs}'
    classes = f', {first["first_classes"]} classes' if first['first_classes'] else ''
    cells = [first['system'], first['setting'], schedule + classes]
    for k in (1, 5):
        ends = [record['history'][-1][f'top{k}_err'] for record in seeds if record['epochs_done'] == epochs]
        cells += [', '.join(f'{error:.2f}' for error in ends), f'{statistics.mean(ends):.2f}' if ends else '']
        if k == 1:
            cells.append(f'{statistics.stdev(ends):.2f}' if len(ends) > 1 else '')
        cells.append(first[f'top{k}_err'] if first['as_paper'] else '')
    entries = [entry for record in seeds for entry in record['history']]
    speeds = [first['images'] / entry['train_s'] for entry in entries]
    seconds = sum(entry['train_s'] for entry in entries) / len(seeds)
    places = {f'{record["machine"]}, PyTorch {record["torch"]}, {record["mode"]}' for record in seeds}
    beside = max((entry['side_by_side'] for entry in entries), default=1)
    on = f'{" and ".join(sorted(places))}, {first["precision"]}, up to {beside} at once'
    failures = ''.join(f'; seed {record["seed"]}: {record["failure"]}' for record in seeds if record['failure'])
    return [*cells, f'{statistics.median(speeds):,.0f}' if speeds else '', f'{seconds:,.0f}', on + failures]
