"""Configs written in another way, and hooks with a state: the part of `campaign.py` that changes the config."""

import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop

from chaos.inject import at_iteration, die
from chaos.outcome import LAST, weights_of_whole, wrong_bits
from chaos.row import Row
from chaos.victim import train, write_config
from mmsb.engine import launcher

STOPPING = """
custom_hooks = [dict(type='EarlyStoppingHook', monitor='accuracy/top1', patience=2, min_delta=200.0)]
"""


def with_classes() -> None:
    """Make the config that the tool reads name its loop and its hook by classes; call this in the victim."""
    read = launcher.read_config

    def read_config(*args, **kwargs):
        cfg = read(*args, **kwargs)
        cfg.train_cfg.type = EpochBasedTrainLoop
        cfg.default_hooks.checkpoint.type = CheckpointHook
        return cfg

    launcher.read_config = read_config


def killed_and_resumed(folder: Path, config: Path, before: Callable[[], None], *args) -> str:
    """Train, kill at iteration 9 and resume; return what went wrong on the way, or ''."""

    def deadly() -> None:
        before()
        at_iteration(9, die)

    shutil.rmtree(folder / 'stated', ignore_errors=True)
    killed = train(folder, config, '--work-dir', 'stated', *args, before=deadly)
    if killed.code != -signal.SIGKILL:
        return f'ended with {killed.code}'
    resumed = train(folder, config, '--work-dir', 'stated', '--resume', *args, before=before)
    return f'resume ended with {resumed.code}' if resumed.code else ''


def classes(folder: Path) -> str:
    config = write_config(folder / 'states.py', interval=2, save_best=False)
    whole = weights_of_whole(folder, config, name='states-whole')
    return killed_and_resumed(folder, config, with_classes) or wrong_bits(folder / 'stated' / LAST, whole)


def last_iteration(work_dir: Path) -> int:
    return max(int(re.findall(r'\d+', path.name)[0]) for path in work_dir.glob('iter_*.pth'))


def early_stopping(folder: Path) -> str:
    """The hook stops the training after so many epochs without a gain, however often it is interrupted."""
    base = write_config(folder / 'stopping_base.py', steps=8, interval=2, save_best=False)
    config = folder / 'stopping.py'
    config.write_text(f"_base_ = '{base}'\n{STOPPING}")
    train(folder, config, '--work-dir', 'stopping-whole')
    right = last_iteration(folder / 'stopping-whole')
    why = killed_and_resumed(folder, config, lambda: None)
    now = last_iteration(folder / 'stated')
    return why or ('' if now == right else f'stopped at {now} instead of {right}')


def options_win(folder: Path) -> str:
    """What `--cfg-options` names is what runs, also where the launcher has a default of its own."""
    config = write_config(folder / 'options.py', steps=1, interval=2, save_best=False)
    shutil.rmtree(folder / 'stated', ignore_errors=True)
    options = ('--cfg-options', 'train_cfg.type=EpochBasedTrainLoop')
    victim = train(folder, config, '--work-dir', 'stated', *options)
    dumped = (folder / 'stated/options.py').read_text()
    ours = 'mmsb.EpochBasedTrainLoop' in dumped
    return 'the option was overridden' if ours else f'ended with {victim.code}' if victim.code else ''


CASES = {
    'types that are classes': classes,
    'the state of EarlyStoppingHook': early_stopping,
    '--cfg-options against a default of the launcher': options_win,
}


def states(folder: Path, *, quick: bool) -> Row:
    """Configs whose types are classes, hooks with a state of their own, options against the launcher's defaults."""
    row = Row('a config with classes, a hook with a state, an option against a default', 'holds after a kill too')
    for name, case in CASES.items():
        if not quick or case is early_stopping:
            why = case(folder)
            row.add(not why, f'{name}: {why}', stock=False)
    return row
