"""CIFAR-100 at a budget that a CPU can pay: the paper's recipe in 20 epochs instead of 300, through `tools/train.py`.

nice -n 19 taskset -c 0 python -m benchmarks.cifar100.budget --work-dir WORK_DIR      # and with -c 1, beside it

Each copy takes the next training that is neither finished nor being trained, resumes it where it was interrupted, and
writes its record to benchmarks/results/cifar100-20-epochs. Any number of copies share the work: a training is locked by
the process that trains it. After an interruption (a signal, a crash), the same command continues, to the same bits. It
ends when nothing is left to start. The error is that of the last epoch: no epoch is chosen by its test error.
"""

import argparse
import contextlib
import fcntl
import os
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import mmengine
import mmpretrain
import torch

import mmsb
from benchmarks.cifar100.rows import CONTEXT, FIRST, Row, all_rows
from mmsb.analysis.machine import cpu_name
from mmsb.analysis.report import write_json
from mmsb.analysis.run_logs import SCALARS, STARTS, merge
from mmsb.datasets import cifar
from mmsb.engine.launcher import run_tool
from mmsb.options import check_keys

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'benchmarks/results/cifar100-20-epochs'
EPOCHS, MILESTONES, BATCH = 20, '5,10,15', 64
FLAGS = ('--amp', 'bf16', '--channels-last', '--resume')
POOL_ONLY = Row(CONTEXT, 'SB-ResNet-38', 'pool only', 'cifar100/sb-resnet38_b64-300e_cifar100.py',
                'spatial_bias.mix=False')  # fmt: skip
ENVIRONMENT = dict(  # one thread; memory that the allocator keeps instead of returning it after each step
    OMP_NUM_THREADS='1', MALLOC_MMAP_THRESHOLD_='4294967296', MALLOC_TRIM_THRESHOLD_='4294967296'
)


def command_of(row: Row, seed: int, data: str, work_dir: str) -> list[str]:
    """Return the arguments of `tools/train.py` for a training."""
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    options = [f'{loader}.dataset.{key}' for loader in loaders
               for key in ('type=mmsb.CIFAR100Arrays', f'data_root={data}')]  # fmt: skip
    options += [f'{loader}.{key}' for loader in loaders for key in ('num_workers=0', 'persistent_workers=False')]
    options += ['val_dataloader.batch_size=100', 'test_dataloader.batch_size=100']  # in the cache
    options += [f'train_cfg.max_epochs={EPOCHS}', f'param_scheduler.milestones={MILESTONES}']
    if row.backbone_options:
        options.append(f'model.backbone.{row.backbone_options}')
    flags = ['--seed', str(seed), '--work-dir', work_dir, *FLAGS]
    return ['tools/train.py', f'configs/{row.config}', *flags, '--cfg-options', *options]


def name_of(row: Row, seed: int) -> str:
    return f'{row.name}_seed{seed}'


def read_record(row: Row, seed: int, folder: Path) -> dict:
    """Make the record of a training from the logs in its folder."""
    steps, tests = merge(sorted(folder.glob(SCALARS)))
    curve = [
        dict(
            epoch=test['step'],
            loss=round(statistics.mean(step['loss'] for step in steps if step['epoch'] == test['step']), 4),
            top1_error=round(100 - test['accuracy/top1'], 2),
            top5_error=round(100 - test['accuracy/top5'], 2),
        )
        for test in tests
    ]
    versions = dict(mmsb=mmsb.__version__, torch=torch.__version__, mmengine=mmengine.__version__,
                    mmpretrain=mmpretrain.__version__, python=sys.version.split()[0])  # fmt: skip
    return dict(
        network=row.name,
        system=row.system,
        setting=row.setting,
        seed=seed,
        epochs=len(curve),
        classes=cifar.NUM_CLASSES,
        top1_error=curve[-1]['top1_error'],
        top5_error=curve[-1]['top5_error'],
        curve=curve,
        images_per_s=round(BATCH / statistics.median(step['time'] for step in steps), 1),
        machine=f'{cpu_name()}, one thread',
        versions=versions,
        command=shlex.join(['python', *command_of(row, seed, 'DATA', 'WORK_DIR')]),
        interruptions=len([*folder.glob(STARTS)]) - 1,
    )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int | None]:
    """Yield the locked file, or None if another process holds it; a training inherits it, and so outlives this one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


def train(row: Row, seed: int, options: argparse.Namespace, lock: int) -> None:
    """Train until the end, or to the signal that stops this process.

    Raises:
        SystemExit: the training stopped before its end, with its exit code.
    """
    work_dir = Path(options.work_dir).resolve() / name_of(row, seed)
    command = [sys.executable, *command_of(row, seed, str(Path(options.data).resolve()), str(work_dir))]
    environment = {**os.environ, **ENVIRONMENT, 'PYTHONPATH': str(ROOT)}
    with (work_dir / 'output.txt').open('a') as output:
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, pass_fds=[lock]
        )
        signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number))  # it saves, and stops
        code = child.wait()
    if code:
        last = (work_dir / 'output.txt').read_text().splitlines()[-1:]
        print(f'{name_of(row, seed)} stopped with exit code {code}: {"".join(last)}', flush=True)
        sys.exit(code if code > 0 else 128 - code)
    record = read_record(row, seed, work_dir)
    if record['epochs'] != EPOCHS:
        raise ValueError(f'{str(work_dir)!r} has logs of {record["epochs"]} epochs instead of {EPOCHS}')
    write_json(options.results / f'{name_of(row, seed)}.json', record)
    print(f'{name_of(row, seed)}: top-1 error {record["top1_error"]} %', flush=True)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        ValueError: a row is not known.
        FileNotFoundError: the data are missing.
    """
    known = {row.name: row for row in [*all_rows(), POOL_ONLY]}
    first = [row.name for row in known.values() if row.group == FIRST]
    parser = argparse.ArgumentParser(prog='python -m benchmarks.cifar100.budget', description=__doc__.splitlines()[0])
    parser.add_argument('--work-dir', required=True, help='folder for checkpoints and logs')
    parser.add_argument('--data', default='data/cifar100', help='folder with train.npz and test.npz')
    parser.add_argument('--rows', nargs='+', default=first, metavar='ROW', help=f'default: {" ".join(first)}')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--results', type=Path, default=RESULTS, help='folder for the records')
    options = parser.parse_args(arguments)
    check_keys('--rows', options.rows, known)
    options.rows = [known[name] for name in options.rows]
    for split in cifar.PER_CLASS:
        if not (Path(options.data) / f'{split}.npz').is_file():
            raise FileNotFoundError(f'{options.data!r} has no {split}.npz: python -m benchmarks.cifar100.data')
    return options


def main() -> None:
    options = parse_options()
    options.results.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for row in options.rows:
            record = options.results / f'{name_of(row, seed)}.json'
            with locked(Path(options.work_dir) / name_of(row, seed) / 'lock') as lock:
                if lock is not None and not record.exists():
                    print(f'{name_of(row, seed)}: training', flush=True)
                    train(row, seed, options, lock)


if __name__ == '__main__':
    run_tool(main)
