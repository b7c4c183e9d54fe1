"""Reads what a training has left in its work dir: scalars of all its starts, its config, and how far it got.

MMEngine writes the same files for MMPretrain, MMDetection and MMSegmentation:

    WORK_DIR/TIMESTAMP/vis_data/scalars.json    one JSON object a line, for training (has lr) or validation (has none)
    WORK_DIR/TIMESTAMP/vis_data/config.py       the complete config of this start
    WORK_DIR/TIMESTAMP/TIMESTAMP.log            states the number of processes
"""

import contextlib
import json
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from mmsb.configs import read_config

NO_METRICS = ('step', 'place', 'iter', 'epoch', 'time', 'data_time', 'memory')
SCALARS = '*/vis_data/scalars.json'
STARTS = '*/vis_data/config.py'  # one for each start, also one that ended before it logged a step


@dataclass(frozen=True)
class Run:
    """A training, possibly of several starts.

    Attributes:
        path: the work dir.
        cfg: the config of the last start; its load_from is that of the first start, or None if that was a resume.
        train: records of the training in the order of their `step`, an iteration.
        val: records of the validations in the order of their `step`, whose unit is `val_unit`.
        val_unit: 'epoch' or 'iteration'.
        done: how much of the schedule is done, in `unit`, as far as the logs and checkpoints show.
        total: length of the schedule in `unit`; None if the config has none.
        unit: 'epochs' or 'iterations'.
        processes: number of processes; None if the log does not state it.
    """

    path: Path
    cfg: Config
    train: list[dict]
    val: list[dict]
    val_unit: str
    done: int
    total: int | None
    unit: str
    processes: int | None

    @property
    def seed(self) -> int | None:
        return (self.cfg.get('randomness') or {}).get('seed')

    @property
    def images_per_s(self) -> float | None:
        """Images per second in training over all processes, from the median iteration time; None if not known."""
        batch_size = (self.cfg.get('train_dataloader') or {}).get('batch_size')
        times = [record['time'] for record in self.train if record.get('time')]
        if not (batch_size and times and self.processes):
            return None
        return batch_size * self.processes / statistics.median(times)

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """Return the (step, value) pairs of 'loss', over iterations, or of a validation metric, over `val_unit`."""
        records = self.train if metric == 'loss' else self.val
        return [(record['step'], record[metric]) for record in records if metric in record]

    @property
    def metrics(self) -> list[str]:
        """Names of the validation metrics, in the order in which they were logged."""
        return list(dict.fromkeys(key for record in self.val for key in record if key not in NO_METRICS))


def read_run(work_dir: str | Path) -> Run:
    """Read a work dir; the run may still be in progress.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder does not exist, or is a file.
        ValueError: it has no logs, or no config that can be read.
    """
    path = Path(work_dir)
    if path.is_file():
        raise NotADirectoryError(f'work dir {str(work_dir)!r} is a file, and must be a folder')
    if not path.is_dir():
        raise FileNotFoundError(f'work dir {str(work_dir)!r} does not exist')
    logs = sorted(path.glob(SCALARS), key=lambda log: log.parts[-3])
    train, val = merge(logs)
    if not train and not val:
        raise ValueError(f'{str(work_dir)!r} has no logs of a training: expected lines in {SCALARS}')
    cfg = _read_cfg(path, logs[-1])
    if cfg.get('resume') or len(logs) > 1:
        first = _read_cfg(path, logs[0])
        cfg.load_from = None if first.get('resume') else first.get('load_from')
    logger = (cfg.get('default_hooks') or {}).get('logger') or {}
    val_unit = 'epoch' if logger.get('log_metric_by_epoch', True) else 'iteration'
    loop = cfg.get('train_cfg') or {}
    by_epoch = 'max_epochs' in loop
    done = _epochs_done(path, train, val) if by_epoch else _iters_done(path, train, val, logger.get('interval', 10))
    return Run(
        path=path, cfg=cfg, train=train, val=val, val_unit=val_unit, done=done,
        total=loop.get('max_epochs') if by_epoch else loop.get('max_iters'),
        unit='epochs' if by_epoch else 'iterations', processes=_processes(cfg, logs[-1].parents[1]),
    )  # fmt: skip


def _read_cfg(work_dir: Path, log: Path) -> Config:
    beside = log.with_name('config.py')
    path = beside if beside.is_file() else next(iter(sorted(work_dir.glob('*.py'))), None)
    if path is None:
        raise ValueError(f'{str(work_dir)!r} has no config: expected {beside.relative_to(work_dir)} or *.py')
    return read_config(str(path))


def _records(log: Path) -> Iterator[dict]:
    """Yield the records of a file; a line that is not complete, because it is just being written, is skipped."""
    for line in log.read_text(errors='replace').splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get('step'), int):
                yield {key: value for key, value in record.items() if isinstance(value, (int, float))}


def merge(logs: Sequence[Path]) -> tuple[list[dict], list[dict]]:
    """Join the records of all starts, of training and of validation; those of a later start replace what it repeats.

    A validation is repeated if the training goes back behind it, or if there is a later one of the same step. Its
    place in the training is the last training record before it in the same start.
    """
    train, val, places = [], [], []
    for log in logs:
        place = 0
        for record in _records(log):
            step = record['step']
            if 'lr' in record or 'iter' in record:
                place = step
                while train and train[-1]['step'] >= step:
                    train.pop()
                while val and places[-1] >= step:
                    val.pop(), places.pop()
                train.append(record)
            else:
                while val and val[-1]['step'] >= step:
                    val.pop(), places.pop()
                val.append(record)
                places.append(place)
    return train, [{**record, 'place': place} for record, place in zip(val, places, strict=True)]


def _checkpoints(work_dir: Path, kind: str) -> list[int]:
    found = (re.fullmatch(rf'{kind}_(\d+)\.pth', path.name) for path in work_dir.glob(f'{kind}_*.pth'))
    return [int(match[1]) for match in found if match]


def _epochs_done(work_dir: Path, train: list[dict], val: list[dict]) -> int:
    """Count the complete epochs: the last one logged is complete if it was validated or saved."""
    if not train:
        return max(_checkpoints(work_dir, 'epoch'), default=0)
    epoch = train[-1].get('epoch', 1)
    validated = bool(val) and val[-1]['place'] >= train[-1]['step']
    return epoch if validated or epoch in _checkpoints(work_dir, 'epoch') else epoch - 1


def _iters_done(work_dir: Path, train: list[dict], val: list[dict], interval: int) -> int:
    """Count iterations; the last ones may not be logged, but validated or saved. An older run may have left more."""
    logged = train[-1]['step'] if train else 0
    later = [*_checkpoints(work_dir, 'iter'), *(record['step'] for record in val[-1:])]
    return max([logged, *(step for step in later if step <= logged + interval)])


def _processes(cfg: Config, start: Path) -> int | None:
    if cfg.get('launcher', 'none') == 'none':
        return 1
    for log in sorted(start.glob('*.log')):
        with log.open(errors='replace') as file:
            stated = re.search(r'GPU number: (\d+)', file.read(1 << 18))  # MMEngine's word for processes
        if stated:
            return int(stated[1])
    return None
