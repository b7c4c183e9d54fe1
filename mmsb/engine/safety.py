"""What the launcher writes into a config: the safe runner, loops and hooks, and the checkpoint to resume from."""

import os
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.runner import find_latest_checkpoint

from mmsb.checkpoints.load import local_path, require_file
from mmsb.checkpoints.store import find_checkpoint, probe, why_invalid

from .guard import TIMEOUT_S
from .processes import is_restart, rank_in_environment
from .stops import EXIT_NOT_SAVED, RunStopped

RUNNER = 'mmsb.SafeRunner'
_LOOPS = ('EpochBasedTrainLoop', 'IterBasedTrainLoop')


def add_safety(cfg: Config) -> None:
    """Replace the stock runner, loop and hooks of a config with the safe ones; custom loops and hooks are kept.

    Raises:
        ValueError: the config has a runner of its own.
    """
    use_safe_runner(cfg)
    loop = cfg.get('train_cfg')
    if loop:
        if 'by_epoch' in loop:
            loop.type = _LOOPS[0] if loop.pop('by_epoch') else _LOOPS[1]
        if loop.get('type') in _LOOPS:
            loop.type = f'mmsb.{loop.type}'
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    saving = hooks.setdefault('checkpoint', ConfigDict(type='CheckpointHook', interval=1))
    if saving and saving.get('type') == 'CheckpointHook':
        saving.type = 'mmsb.CheckpointHook'
    custom = list(cfg.get('custom_hooks') or [])
    if not any(hook.get('type') == 'mmsb.GuardHook' for hook in custom):
        cfg.custom_hooks = [*custom, dict(type='mmsb.GuardHook')]
    if cfg.launcher != 'none':
        env = cfg.setdefault('env_cfg', ConfigDict())
        dist = env.setdefault('dist_cfg', ConfigDict(backend='nccl'))
        dist.setdefault('timeout', TIMEOUT_S)


def use_safe_runner(cfg: Config) -> None:
    """Set the safe runner, which loads checkpoints as data, in a config.

    Raises:
        ValueError: the config has a runner of its own.
    """
    if cfg.get('runner_type', RUNNER) != RUNNER:
        raise ValueError(
            f'runner_type {cfg.runner_type!r} saves in its own way: leave it out, or train with --stock-hooks'
        )
    cfg.runner_type = RUNNER


def output_folders(cfg: Config) -> list[str]:
    """List the local folders to which a run writes checkpoints, starting with the work dir."""
    out_dir = _saving(cfg).get('out_dir')
    local = [str(Path(out_dir) / Path(cfg.work_dir).name)] if out_dir and '://' not in str(out_dir) else []
    return [cfg.work_dir, *local]


def _saving(cfg: Config) -> dict:
    return (cfg.get('default_hooks') or {}).get('checkpoint') or {}


def require_work_dir(cfg: Config) -> None:
    """Check that the work dir is writable, before the runner writes to it.

    Raises:
        RunStopped: it is not.
    """
    if rank_in_environment() == 0:
        try:
            probe(cfg.work_dir, 0)
        except OSError as error:
            raise RunStopped(f'work_dir {cfg.work_dir!r} takes no files: {error}', EXIT_NOT_SAVED) from error


def settle_resume(cfg: Config, resume: str | None, *, stock: bool = False) -> None:
    """Write into a config which checkpoint to resume from, if any.

    A process that torchrun has restarted resumes from the newest checkpoint of its own run, whatever `resume` says.

    Args:
        cfg: the complete config.
        resume: 'auto' for the newest valid checkpoint in the work dir, if any; a path; None for what the config says.
        stock: whether to choose the checkpoint as mmengine does, without validating it.

    Raises:
        FileNotFoundError: the given checkpoint does not exist.
        ValueError: the given checkpoint is not valid, or there are checkpoints and none is valid.
    """
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    auto = resume == 'auto'
    found = _newest(cfg, stock, own=not auto) if auto or is_restart() else None
    resume = found or resume
    if resume in (None, 'auto'):  # start as the config says
        cfg.resume = False
        return
    if not (found or stock) and local_path(resume):  # a found checkpoint has been validated already
        require_file(resume)
        reason = why_invalid(resume)
        if reason:
            raise ValueError(f'checkpoint {resume!r} {reason}')
    cfg.resume, cfg.load_from = True, resume


def _newest(cfg: Config, stock: bool, *, own: bool) -> str | None:
    """Find the newest checkpoint; with `own`, only since launch.sh started, as the folder may hold an older run."""
    if stock:
        return find_latest_checkpoint(cfg.work_dir)
    template = _saving(cfg).get('filename_tmpl')
    since_s = float(os.environ.get('MMSB_STARTED_S') or 0) if own else 0
    path, skipped = find_checkpoint(output_folders(cfg), template, since_s=since_s)
    if rank_in_environment() == 0:
        for line in skipped:
            print(f'skipped {line}', flush=True)
        if path:
            print(f'resuming from {path!r}', flush=True)
    if skipped and path is None:
        raise ValueError(
            f'none of the {len(skipped)} checkpoints in {cfg.work_dir!r} is valid: {skipped[0]}; '
            'to start a new run, use another --work-dir'
        )
    return path
