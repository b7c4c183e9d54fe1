"""A tiny training through tools/train.py, which `campaign.py` and the tests interrupt.

It runs in a child forked from a process that has imported everything, so a run takes one second instead of eight.
"""

import atexit
import functools
import gc
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import mmengine
import mmpretrain.models  # noqa: F401  (imported once for all children)
import scenes
import torch
from mmengine.optim.optimizer import amp_optimizer_wrapper

from mmsb.checkpoints.load import load_checkpoint
from mmsb.engine import (
    fast,
    launcher,  # noqa: F401
)

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
_base_ = '{root}/configs/demo/sb-resnet11_b64-10e_digits.py'
train_dataloader = dict(
    batch_size=4,
    num_workers={workers},
    persistent_workers={persistent},
    sampler=dict(type='{sampler}', shuffle=True),
    dataset=dict(
        indices=22,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomCrop', crop_size=32, padding=4),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(num_workers=0, persistent_workers=False, batch_size=8, dataset=dict(indices=8))
model = dict(
    backbone=dict(base_channels=4),
    head=dict(in_channels=64),
    train_cfg=dict(augments=dict(type='Mixup', alpha=0.8)),
)
train_cfg = dict(_delete_=True, {schedule})
log_processor = dict(by_epoch={by_epoch})
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(_delete_=True, type='CheckpointHook', {saving}, max_keep_ckpts=3, save_best={best}),
)
optim_wrapper = dict(accumulative_counts={accumulate}, {amp})
custom_hooks = [{ema}]
"""
EMA = "dict(type='EMAHook', momentum=0.1)"
AMP = "type='AmpOptimWrapper', dtype='bfloat16', loss_scale=dict(init_scale=3.0, growth_interval=3)"


def write_config(
    path: Path,
    *,
    by_epoch: bool = True,
    steps: int = 3,
    interval: int = 2,
    workers: int = 0,
    persistent: bool = False,
    ema: bool = False,
    accumulate: int = 1,
    amp: bool = False,
    save_by_epoch: bool = False,
    save_best: bool = True,
) -> Path:
    """Write the config of a victim: 22 images, batches of 4, with crops, flips and mixup.

    Args:
        path: path of the config.
        by_epoch: whether the loop is epoch-based, else iteration-based.
        steps: number of epochs (of 6 iterations each), or of iterations.
        interval: interval between checkpoints, in iterations, or in epochs with `save_by_epoch`.
        workers: number of dataloader workers.
        persistent: whether the workers are persistent.
        ema: whether to average the weights.
        accumulate: number of batches per step.
        amp: whether to use mixed precision with a growing loss scale; without a GPU, call `amp_on_cpu` first.
        save_by_epoch: whether `interval` counts epochs.
        save_best: whether to save the best checkpoint too.
    """
    loop = f"max_epochs={steps}, type='EpochBasedTrainLoop'" if by_epoch else f'max_iters={steps}, val_interval=5'
    path.write_text(
        CONFIG.format(
            root=ROOT,
            workers=workers,
            persistent=persistent and workers > 0,
            sampler='DefaultSampler' if by_epoch else 'InfiniteSampler',
            schedule=loop if by_epoch else f"{loop}, type='IterBasedTrainLoop'",
            by_epoch=by_epoch,
            saving=f'interval={interval}, by_epoch={save_by_epoch}',
            accumulate=accumulate,
            amp=AMP if amp else '',
            best="'auto'" if save_best else None,
            ema=EMA if ema else '',
        )
    )
    return path


def amp_on_cpu() -> None:
    """Let mmengine's mixed precision run without a GPU; call this in the victim."""
    amp_optimizer_wrapper.is_cuda_available = lambda: True
    fast.check_device = lambda cfg: None
    amp_optimizer_wrapper.GradScaler = functools.partial(torch.amp.GradScaler, device='cpu')


class Victim:
    """A training in a child process.

    Args:
        folder: working directory, with data/demo in it.
        args: arguments of the tool.
        before: called in the child before the training, to inject faults.
        environment: variables added to the environment of the child.
        tool: file name in tools/.
    """

    def __init__(
        self,
        folder: Path,
        *args,
        before: Callable[[], None] | None = None,
        environment: dict | None = None,
        tool: str = 'train.py',
    ) -> None:
        self._tool = tool
        self.output = folder / f'victim-{time.monotonic_ns()}.log'
        self.code: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                atexit._clear()  # those of the parent
                os.environ.update(environment or {})
                code = self._run(folder, [str(arg) for arg in args], before)
            finally:
                os._exit(code)

    def _run(self, folder: Path, args: list[str], before: Callable[[], None] | None) -> int:
        self._redirect()
        return run_tool(self._tool, folder, args, before)

    def _redirect(self) -> None:
        handle = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = open(1, 'w', closefd=False), open(2, 'w', closefd=False)  # noqa: SIM115

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None if the process is still running."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self, timeout_s: float = 120) -> int:
        """Wait for the end and return the exit code.

        Raises:
            TimeoutError: the process takes longer; it is killed.
        """
        end = time.monotonic() + timeout_s
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f'the victim ran longer than {timeout_s} s; see {self.output}')
            time.sleep(0.005)
        return self.code

    def said(self) -> str:
        """Return its output so far."""
        return self.output.read_text(errors='replace')


def train(folder: Path, *args, **options) -> Victim:
    """Train until the end or until something stops the training."""
    victim = Victim(folder, *args, **options)
    victim.wait()
    return victim


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """Return all tensors at the end of a training: weights, averaged weights and optimizer state."""
    checkpoint = load_checkpoint(path, trust=True)
    tensors = dict(checkpoint['state_dict'])
    tensors.update({f'ema.{key}': value for key, value in checkpoint.get('ema_state_dict', {}).items()})
    for index, state in (checkpoint.get('optimizer') or {}).get('state', {}).items():
        tensors.update({f'optimizer.{index}.{key}': torch.as_tensor(value) for key, value in state.items()})
    return tensors


def differing(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> list[str]:
    """List the names of the tensors that are not bit-identical."""
    return sorted(
        key for key in {*one, *two} if key not in one or key not in two or not torch.equal(one[key], two[key])
    )


def prepare(folder: Path) -> Path:
    """Make a folder for victims, with the data in it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / 'data/demo').exists():
        scenes.write(folder)
    return folder


def run_tool(tool: str, folder: Path, args: list[str], before: Callable[[], None] | None) -> int:
    """Run a tool in this process and return its exit code."""
    torch.set_num_threads(1)
    gc.freeze()
    mmengine.config.config.FormatCode = lambda text, **_: (text, True)  # yapf takes 0.2 s per checkpoint
    os.chdir(folder)
    sys.argv = [tool, *args]
    try:
        if before:
            before()
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
