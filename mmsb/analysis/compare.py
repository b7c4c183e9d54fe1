"""Compares trainings: runs that differ only in their seed are one row, with mean and spread over the seeds."""

import copy
import itertools
import json
import logging
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmsb.analysis.run_logs import Run, read_run
from mmsb.configs import build_model, check_library, drop_warm_starts

# What does not decide the result of a training.
IGNORED = ('work_dir', 'resume', 'launcher', 'log_to', 'visualizer', 'experiment_name', 'log_level')
LOWER_IS_BETTER = ('loss', 'error', 'mae', 'mse', 'nme')
UNSET = '(unset)'
_FIRST = ('model', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'train_dataloader')  # of the differences
_SHOWN_DIFFERENCES = 6
_SHOWN_CHARACTERS = 40


@dataclass(frozen=True)
class Value:
    """Mean over seeds, sample standard deviation (None for one seed) and their number."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> 'Value | None':
        values = [value for value in values if value is not None]
        if not values:
            return None
        std = statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None
        return cls(statistics.fmean(values), std, len(values))

    def __str__(self) -> str:
        return f'{self.mean:.4g}' + ('' if self.std is None else f' ± {self.std:.2g}')


@dataclass(frozen=True)
class Row:
    """Runs of one config.

    Attributes:
        name: what the names of the work dirs have in common.
        runs: the runs, one for each seed.
        last: the last value of each validation metric, at the last step that all runs which have it reached.
        best: the best value of each, of each run by itself.
        params: parameters of the network; None if it can't be built here.
        images_per_s: in training.
        differences: values of the config keys in which the rows differ.
    """

    name: str
    runs: list[Run]
    last: dict[str, Value]
    best: dict[str, Value]
    params: int | None
    images_per_s: Value | None
    differences: dict[str, str]

    @property
    def seeds(self) -> list[int | None]:
        return [run.seed for run in self.runs]

    @property
    def in_progress(self) -> bool:
        return any(run.total is None or run.done < run.total for run in self.runs)

    @property
    def progress(self) -> str:
        done = sorted({run.done for run in self.runs})
        total, unit = self.runs[0].total, self.runs[0].unit
        span = f'{done[0]}' if len(done) == 1 else f'{done[0]} to {done[-1]}'
        return f'{span} of {total or "?"} {unit}' + (', in progress' if self.in_progress else '')


def compare(work_dirs: Sequence[str | Path]) -> list[Row]:
    """Read trainings of any of the three libraries and compare them.

    Raises:
        FileNotFoundError: a work dir does not exist.
        ValueError: a work dir has no logs, no config, or is named twice.
    """
    paths = [Path(os.path.abspath(work_dir)) for work_dir in work_dirs]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice:
        raise ValueError(f'work dir {str(twice)!r} is named twice')
    groups: dict[str, list[Run]] = {}
    for work_dir in work_dirs:
        run = read_run(work_dir)
        groups.setdefault(json.dumps(_relevant(run), sort_keys=True, default=str), []).append(run)
    groups = {key: sorted(runs, key=lambda run: -1 if run.seed is None else run.seed) for key, runs in groups.items()}
    differences = differing([_relevant(runs[0]) for runs in groups.values()])
    names = _names(list(groups.values()))
    return [
        Row(
            name=name,
            runs=runs,
            last={metric: value for metric in _metrics(runs) if (value := _last(runs, metric))},
            best={metric: value for metric in _metrics(runs) if (value := _best(runs, metric))},
            params=count_params(runs[0]),
            images_per_s=Value.of([run.images_per_s for run in runs]),
            differences={key: shown(values[i]) for key, values in differences.items()},
        )
        for i, (name, runs) in enumerate(zip(names, groups.values(), strict=True))
    ]


def _relevant(run: Run) -> dict:
    cfg = {key: value for key, value in run.cfg.to_dict().items() if key not in IGNORED}
    cfg['randomness'] = {key: value for key, value in (cfg.get('randomness') or {}).items() if key != 'seed'}
    cfg['processes'] = run.processes
    cfg['load_from'] = cfg.get('load_from')
    return {key: cfg[key] for key in sorted(cfg, key=lambda key: (key not in _FIRST, key))}


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Name groups by the common beginning of their work dirs, of which the last folders tell the runs apart."""
    parts = [Path(os.path.abspath(run.path)).parts for runs in groups for run in runs]
    depth = next(depth for depth in itertools.count(1) if len({part[-depth:] for part in parts}) == len(parts))
    work_dirs = [[os.path.join(*Path(os.path.abspath(run.path)).parts[-depth:]) for run in runs] for runs in groups]
    short = [_common_beginning(names) if len(names) > 1 else names[0] for names in work_dirs]
    return [
        name if name and short.count(name) == 1 else ', '.join(names)
        for name, names in zip(short, work_dirs, strict=True)
    ]


def _common_beginning(names: Sequence[str]) -> str:
    """Return what names begin with, without the separators and the word `seed` at its end, or a part of a number."""
    alike = itertools.takewhile(lambda letters: len({*letters}) == 1, zip(*names, strict=False))
    common = ''.join(letters[0] for letters in alike)
    if any(name[len(common) :][:1].isdigit() for name in names):  # they differ within a number
        common = common.rstrip('0123456789')
    return common.rstrip('-_./').removesuffix('seed').rstrip('-_./')


def _metrics(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(metric for run in runs for metric in run.metrics))


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """List the validation metrics of all rows."""
    return list(dict.fromkeys(metric for row in rows for metric in row.last))


def _last(runs: Sequence[Run], metric: str) -> Value | None:
    return Value.of([value for _, value in last_of_runs(runs, metric)])


def last_of_runs(runs: Sequence[Run], metric: str) -> list[tuple[int | None, float]]:
    """Return the seed and the value of each run that has a metric, at the last step that all of these have reached."""
    curves = [(run.seed, dict(curve)) for run in runs if (curve := run.curve(metric))]
    common = set.intersection(*(set(curve) for _, curve in curves)) if curves else ()
    return [(seed, curve[max(common) if common else max(curve)]) for seed, curve in curves]


def _best(runs: Sequence[Run], metric: str) -> Value | None:
    best = min if any(word in metric.lower() for word in LOWER_IS_BETTER) else max
    curves = [[value for _, value in run.curve(metric)] for run in runs]
    finite = [[value for value in values if math.isfinite(value)] for values in curves]
    return Value.of([best(values) for values in finite if values])


def count_params(run: Run) -> int | None:
    """Count the parameters of a run's network, without memory; None if it can't be built here."""
    cfg = copy.deepcopy(run.cfg)
    drop_warm_starts(cfg.model)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # what the libraries log while they build
    try:
        check_library(cfg)
        with torch.device('meta'):
            return sum(parameter.numel() for parameter in build_model(cfg).parameters())
    except Exception:  # the code of a network may be missing here, or fail on the meta device
        return None
    finally:
        logging.disable(before)


def differing(nodes: Sequence, place: str = '') -> dict[str, list]:
    """Map the config keys in which configs differ to their values, one for each config.

    A key is as high in the config as it must be: where one config lacks a section, or has another `type` in it, the
    whole section differs.

    Args:
        nodes: the configs; UNSET is a node that a config lacks.
        place: key of these nodes.
    """
    if all(node == nodes[0] for node in nodes):
        return {}
    if all(isinstance(node, Mapping) for node in nodes) and len({str(node.get('type')) for node in nodes}) == 1:
        keys = list(dict.fromkeys(key for node in nodes for key in node))
        children = {key: [node.get(key, UNSET) for node in nodes] for key in keys}
    elif all(isinstance(node, (list, tuple)) and len(node) == len(nodes[0]) for node in nodes) and all(
        isinstance(child, Mapping) for node in nodes for child in node
    ):
        children = {i: list(values) for i, values in enumerate(zip(*nodes, strict=True))}
    else:
        return {place: list(nodes)}
    found = {}
    for key, values in children.items():
        found |= differing(values, f'{place}.{key}' if place else str(key))
    return found


def shown(value) -> str:
    """Write a value of a config in one line, as a call if it has a type."""
    if isinstance(value, Mapping):
        rest = ', '.join(f'{key}={shown(child)}' for key, child in value.items() if key != 'type')
        return f'{value.get("type", "dict")}({rest})'
    if isinstance(value, (list, tuple)):
        return '[' + ', '.join(map(shown, value)) + ']'
    return ' '.join(str(value).split())


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + '…'


def table(rows: Sequence[Row], metrics: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Lay out header and cells of the table; spreads are standard deviations over the seeds."""
    header = ['run', 'seeds', 'progress', *metrics, 'params M', 'images/s', 'differs in']
    return header, [
        [
            row.name,
            ', '.join(map(str, row.seeds)),
            row.progress,
            *(_metric_cell(row, metric) for metric in metrics),
            '-' if row.params is None else f'{row.params / 1e6:.3g}',
            str(row.images_per_s or '-'),
            _differences_cell(row),
        ]
        for row in rows
    ]


def _metric_cell(row: Row, metric: str) -> str:
    last, best = row.last.get(metric), row.best.get(metric)
    if last is None:
        return '-'
    only = f' ({last.n} of {len(row.runs)} seeds)' if last.n < len(row.runs) else ''
    return f'{last}{only}' + (f', best {best}' if best and str(best) != str(last) else '')


def _differences_cell(row: Row) -> str:
    pairs = [f'{key}={_cut(value)}' for key, value in row.differences.items()]
    rest = len(pairs) - _SHOWN_DIFFERENCES
    return ', '.join(pairs[:_SHOWN_DIFFERENCES]) + (f' and {rest} more' if rest > 0 else '') or '-'


def as_json(row: Row) -> dict:
    """Convert a row to plain values; what is not finite becomes None, since JSON has no such numbers."""

    def plain(value: Value | None) -> dict | None:
        return value and {key: _finite(number) for key, number in vars(value).items()}

    return dict(
        name=row.name,
        work_dirs=[str(run.path) for run in row.runs],
        seeds=row.seeds,
        done=[run.done for run in row.runs],
        total=row.runs[0].total,
        unit=row.runs[0].unit,
        in_progress=row.in_progress,
        metrics={key: dict(last=plain(value), best=plain(row.best.get(key))) for key, value in row.last.items()},
        params=row.params,
        images_per_s=plain(row.images_per_s),
        differences=row.differences,
    )


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def as_csv(row: Row, metrics: Sequence[str]) -> dict:
    """Flatten a row for a CSV file; what there is none of is empty."""
    flat = as_json(row)
    values = {'images/s': flat['images_per_s']}
    for metric in metrics:
        found = flat['metrics'].get(metric, {})
        values |= {f'{metric} {kind}': found.get(kind) for kind in ('last', 'best')}
    parts = ('mean', 'std', 'n')
    spread = {f'{key} {part}': (value or {}).get(part) for key, value in values.items() for part in parts}
    return dict(
        name=row.name,
        seeds=' '.join(map(str, row.seeds)),
        done=' '.join(map(str, flat['done'])),
        **{key: flat[key] for key in ('total', 'unit', 'in_progress', 'params')},
        **spread,
        differences='; '.join(f'{key}={value}' for key, value in row.differences.items()),
    )
