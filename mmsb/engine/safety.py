"""What the launcher writes into a config: the safe runner, loops and hooks."""

from pathlib import Path

from mmengine.config import Config, ConfigDict

from mmsb.checkpoints.store import is_local

from .guard import TIMEOUT_S

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
        stock = next((name for name in _LOOPS if is_stock(loop.get('type'), name)), None)
        if stock:
            loop.type = f'mmsb.{stock}'
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    saving = hooks.setdefault('checkpoint', ConfigDict(type='CheckpointHook', interval=1))
    if saving and is_stock(saving.get('type'), 'CheckpointHook'):
        saving.type = 'mmsb.CheckpointHook'
    add_hook(cfg, 'mmsb.GuardHook')
    if cfg.launcher != 'none':
        env = cfg.setdefault('env_cfg', ConfigDict())
        dist = env.setdefault('dist_cfg', ConfigDict(backend='nccl'))
        dist.setdefault('timeout', TIMEOUT_S)


def is_stock(type_, name: str) -> bool:
    """Return whether the type in a config, a name or a class, is MMEngine's class of this name."""
    if isinstance(type_, str):
        return type_ in (name, f'mmengine.{name}')
    return getattr(type_, '__name__', None) == name and type_.__module__.startswith('mmengine.')


def add_hook(cfg: Config, name: str) -> None:
    """Append one of mmsb's hooks to the custom hooks of a config, unless it is there, as a name or as a class."""
    hooks = list(cfg.get('custom_hooks') or [])
    short = name.removeprefix('mmsb.')
    if not any(hook.get('type') == name or getattr(hook.get('type'), '__name__', '') == short for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type=name)]


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
    local = [str(Path(out_dir) / Path(cfg.work_dir).name)] if out_dir and saves_locally(cfg, out_dir) else []
    return [cfg.work_dir, *local]


def saves_locally(cfg: Config, path: str) -> bool:
    """Return whether the checkpoint hook of a config would write to this path by the backend for local files."""
    saving = _saving(cfg)
    return is_local(path, saving.get('backend_args'), saving.get('file_client_args'))


def filename_template(cfg: Config) -> str | None:
    """Return the checkpoint hook's `filename_tmpl`, if the config has one."""
    return _saving(cfg).get('filename_tmpl')


def _saving(cfg: Config) -> dict:
    return (cfg.get('default_hooks') or {}).get('checkpoint') or {}
