"""SIGTERM before the first iteration: the part of `campaign.py` that stops a training while it starts."""

import random
import shutil
import signal
import time
from pathlib import Path

from chaos.inject import at_iteration
from chaos.outcome import LAST, many_words, weights_of_whole, wrong_bits
from chaos.row import Row
from chaos.victim import Victim, train, write_config
from mmsb.engine import launcher
from mmsb.engine.stops import EXIT_PREEMPTED


def mark(path: Path) -> None:
    """Create a file when the tool reads its config: from then on, a signal is its own business."""
    read = launcher.load_config

    def load_config(*args, **kwargs):
        path.touch()
        return read(*args, **kwargs)

    launcher.load_config = load_config


def early_signals(folder: Path, *, quick: bool) -> Row:
    """SIGTERM at a random moment between reading the config and the first iteration."""
    row = Row(
        'SIGTERM at a random moment before the first iteration',
        f'exit code {EXIT_PREEMPTED} and one line; a resume ends with the same bits',
    )
    config = write_config(folder / 'early.py', interval=2, save_best=False)
    marker, first = folder / 'reads', folder / 'first'
    seconds = _seconds_until_first(folder, config, marker, first)
    for flags in [()] if quick else [(), ('--stock-hooks',)]:
        whole = weights_of_whole(folder, config, *flags, name='early-whole')
        chance = random.Random(0)
        for case in range(3 if quick else 50):
            work_dir = folder / 'early'
            shutil.rmtree(work_dir, ignore_errors=True)
            marker.unlink(missing_ok=True)
            victim = Victim(folder, config, '--work-dir', work_dir, *flags, before=lambda: mark(marker))
            _wait_for(marker, victim)
            time.sleep(chance.uniform(0, seconds))
            victim.kill(signal.SIGTERM)
            why = _flaw(victim)
            if not why and case % 5 == 0:
                resumed = train(folder, config, '--work-dir', work_dir, *flags, '--resume')
                why = f'resume ended with {resumed.code}' if resumed.code else wrong_bits(work_dir / LAST, whole)
            row.add(not why, why, stock=bool(flags))
    return row


def _flaw(victim: Victim) -> str:
    code = victim.wait()
    if code != EXIT_PREEMPTED:
        return f'ended with {code}'
    last = (victim.said().splitlines() or [''])[-1]
    return many_words(victim) or ('' if 'SIGTERM' in last else 'the last line does not name the signal')


def _wait_for(path: Path, victim: Victim) -> None:
    while not path.exists() and victim.poll() is None:
        time.sleep(0.001)


def _seconds_until_first(folder: Path, config: Path, marker: Path, first: Path) -> float:
    """Measure how long a training takes from reading its config to its first iteration."""

    def before() -> None:
        mark(marker)
        at_iteration(0, lambda _: first.touch())

    victim = Victim(folder, config, '--work-dir', folder / 'early', before=before)
    _wait_for(marker, victim)
    begun = time.monotonic()
    _wait_for(first, victim)
    seconds = time.monotonic() - begun
    victim.kill()
    victim.wait()
    return seconds
