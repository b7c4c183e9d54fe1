"""All records of a work dir as results.json, and as a table beside the paper's figures: results.md."""

import json
import statistics
from pathlib import Path

from mmsb.analysis.report import markdown, write_json, write_text

HEADER = ['network', 'setting', 'epochs', 'top-1 error by seed', 'mean', 'std', 'paper', 'top-5 error by seed', 'mean',
          'paper', 'images/s', 'seconds', 'on']  # fmt: skip


def collect(work_dir: str | Path) -> str:
    """Write results.json and results.md of all runs in a folder; returns the table.

    Several processes may do so at once: each writes all that is there.
    """
    folder = Path(work_dir)
    records = [json.loads(path.read_text()) for path in sorted(folder.glob('*_seed*.json'))]
    text = table(records)
    write_json(folder / 'results.json', records)
    write_text(folder / 'results.md', text)
    return text


def table(records: list[dict]) -> str:
    """Make the Markdown table: one line for all seeds of a network that were trained alike.

    The errors are those of the last epoch; of an unfinished run none is told. The paper's figure stands only beside the
    paper's recipe on all classes. Images a second and seconds are of one run, with the others beside it.
    """
    alike = ('row', 'config', 'backbone_options', 'images', 'precision', 'recipe', 'first_classes')
    lines: dict[str, list[dict]] = {}
    for record in records:
        lines.setdefault(json.dumps([record[key] for key in alike], sort_keys=True), []).append(record)
    return markdown(HEADER, [_line(seeds) for seeds in lines.values()]) + '\n'


def _line(seeds: list[dict]) -> list[str]:
    first = seeds[0]
    done, whole = min(record['epochs_done'] for record in seeds), first['recipe']['epochs']
    classes = f', {first["first_classes"]} classes' if first['first_classes'] else ''
    entries = [entry for record in seeds for entry in record['history']]
    speeds = [first['images'] / entry['train_s'] for entry in entries]
    beside = max((entry['side_by_side'] for entry in entries), default=1)
    seconds = statistics.mean(sum(entry['train_s'] for entry in record['history']) for record in seeds)
    cells = [first['system'], first['setting'], (f'{whole}' if done == whole else f'{done} of {whole}') + classes]
    for k, spread in ((1, True), (5, False)):
        ends = [record['history'][-1].get(f'top{k}_err') for record in seeds if record['epochs_done'] == whole]
        ends = [error for error in ends if error is not None]
        cells += [', '.join(f'{error:.2f}' for error in ends), f'{statistics.mean(ends):.2f}' if ends else '']
        if spread:
            cells.append(f'{statistics.stdev(ends):.2f}' if len(ends) > 1 else '')
        cells.append(first[f'top{k}_err'] if first['as_paper'] else '')
    places = {f'{record["machine"]}, PyTorch {record["torch"]}, {record["mode"]}' for record in seeds}
    on = f'{" and ".join(sorted(places))}, {first["precision"]}, up to {beside} at once'
    failed = ''.join(f'; seed {record["seed"]}: {record["failure"]}' for record in seeds if record['failure'])
    return [*cells, f'{statistics.median(speeds):,.0f}' if speeds else '', f'{seconds:,.0f}', on + failed]
