"""Train the demo's classifier twice with `--fast` and deterministic algorithms, once killed and resumed: the same bits?

python -m benchmarks.gpu.bits --work-dir DIR --json bits.json
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu.parts import ROOT
from mmsb.analysis.machine import describe, find_device
from mmsb.analysis.report import write_json
from mmsb.checkpoints.load import load_checkpoint
from mmsb.datasets import digits
from mmsb.engine.launcher import run_tool

CONFIG = ROOT / 'configs/demo/sb-resnet11_b64-10e_digits.py'
SAVE_EVERY, QUICK_SAVE_EVERY = 15, 3  # iterations; no whole epoch of 32, or of 4
QUICK = ('train_dataloader.dataset.indices=256', 'val_dataloader.dataset.indices=64', 'train_cfg.max_epochs=3')
POLL_S = 0.01


def train(folder: Path, options: list[str], *flags: str, until: Callable[[], bool] | None = None) -> None:
    """Train in a process of its own, in the folder's parent; kill it as soon as `until` holds.

    Raises:
        RuntimeError: the training failed, or ended before it could be killed.
    """
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(CONFIG), '--work-dir', str(folder), '--seed', '0']
    command += ['--fast', *flags, '--cfg-options', 'randomness.deterministic=True', *options]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    log = folder.with_suffix('.log')
    with log.open('ab') as output:
        process = subprocess.Popen(command, cwd=folder.parent, env=environment, stdout=output, stderr=output)
    while process.poll() is None:
        if until and until():
            process.kill()
            process.wait()
            return
        time.sleep(POLL_S)
    if process.returncode or until:
        said = log.read_text(errors='replace').strip().splitlines()[-1:]
        raise RuntimeError(f'the training {"ended too early" if until else "failed"}: {"".join(said)} ({log})')


def saved(folder: Path) -> list[Path]:
    """List the checkpoints of a work dir, the oldest first."""
    return sorted(folder.glob('iter_*.pth'), key=lambda path: int(path.stem.partition('_')[2]))


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Read weights, statistics and the state of the optimizer."""
    checkpoint = load_checkpoint(path, own=True)
    states = checkpoint['optimizer']['state']
    found = {f'optimizer.{index}.{key}': torch.as_tensor(value) for index, state in states.items()
             for key, value in state.items()}  # fmt: skip
    return found | checkpoint['state_dict']


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.gpu.bits', description=__doc__.splitlines()[0])
    parser.add_argument('--work-dir', type=Path, required=True, help='folder for data and trainings, new ones')
    parser.add_argument('--json', required=True)
    parser.add_argument('--quick', action='store_true', help='a few iterations')
    options = parser.parse_args(arguments)
    work_dir = options.work_dir.resolve() / f'{time.time_ns()}'
    digits.write(work_dir / 'data/demo')
    every = QUICK_SAVE_EVERY if options.quick else SAVE_EVERY
    saving = ['default_hooks.checkpoint.by_epoch=False', f'default_hooks.checkpoint.interval={every}']
    saving += QUICK if options.quick else ()
    whole, stopped = work_dir / 'whole', work_dir / 'stopped'
    train(whole, saving)
    train(stopped, saving, until=lambda: bool(saved(stopped)))
    killed_behind = int(saved(stopped)[-1].stem.partition('_')[2])
    train(stopped, saving, '--resume')
    first, second = (saved(folder)[-1] for folder in (whole, stopped))
    one, other = tensors_of(first), tensors_of(second)
    differing = [key for key in one.keys() | other.keys()
                 if key not in one or key not in other or not torch.equal(one[key], other[key])]  # fmt: skip
    iterations = int(first.stem.partition('_')[2])
    found = dict(killed_behind=killed_behind, iterations=iterations, tensors=len(one), differing=sorted(differing))
    write_json(options.json, dict(machine=describe(find_device(), seed=0), **found))
    print(f'{len(differing)} of {len(one)} tensors differ')


if __name__ == '__main__':
    run_tool(main)
