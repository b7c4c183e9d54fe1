"""Two trainings into one work dir: the part of `campaign.py` that starts a second one while the first trains."""

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from chaos.inject import at_iteration, die
from chaos.outcome import LAST, refused, weights_of_whole, wrong_bits
from chaos.row import Row
from chaos.victim import Victim, train, write_config
from mmsb.engine import lock

PATIENCE_S = 60
TOGETHER_S = 30  # how long two that begin together may wait at iteration 3 for one to be refused


def held(gate: Path) -> Callable[[], None]:
    """Make a training wait at iteration 3 until a file exists; call the result in the victim."""

    def wait(_) -> None:
        end = time.monotonic() + PATIENCE_S
        while not gate.exists() and time.monotonic() < end:
            time.sleep(0.01)

    gate.unlink(missing_ok=True)
    return lambda: at_iteration(3, wait)


def impatient() -> None:
    """Do not wait long for another training to end; call it in the victim."""
    lock.WAIT_S = 1


def begun(work_dir: Path, victim: Victim) -> None:
    """Wait for the first checkpoint of a training, or its end."""
    end = time.monotonic() + PATIENCE_S
    while not list(work_dir.glob('iter_*.pth')) and victim.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


def second(folder: Path, config: Path, whole: dict, flags: tuple, *args) -> str:
    """Start a second training beside the first; return what went wrong, or ''."""
    work_dir, gate = folder / 'shared', folder / 'gate'
    shutil.rmtree(work_dir, ignore_errors=True)
    first = Victim(folder, config, '--work-dir', work_dir, *flags, before=held(gate))
    begun(work_dir, first)
    other = train(folder, config, '--work-dir', work_dir, *flags, '--seed', 7, *args, before=impatient)
    gate.touch()
    first.wait()
    if other.code == 0:
        return 'both trained'
    if not refused(other):
        return f'the second one ended with {other.code} in many words'
    last = other.said().splitlines()[-1]
    if str(first.pid) not in last or socket.gethostname() not in last:
        return 'the other run is not named'
    return f'the first one ended with {first.code}' if first.code else wrong_bits(work_dir / LAST, whole)


def together(folder: Path, config: Path, whole: dict, flags: tuple) -> str:
    """Start two at the same moment: one of them trains."""
    work_dir, gate = folder / 'shared', folder / 'gate'
    shutil.rmtree(work_dir, ignore_errors=True)
    before = held(gate)
    both = [Victim(folder, config, '--work-dir', work_dir, *flags, before=before) for _ in range(2)]
    end = time.monotonic() + TOGETHER_S
    while all(victim.poll() is None for victim in both) and time.monotonic() < end:
        time.sleep(0.01)
    gate.touch()
    codes = sorted(victim.wait() for victim in both)
    if codes[0] or not codes[1]:
        return 'both trained' if codes == [0, 0] else 'neither trained'
    loser = next(victim for victim in both if victim.code)
    return wrong_bits(work_dir / LAST, whole) if refused(loser) else 'refused in many words'


def after(stop: int) -> Callable[..., str]:
    """Make a case: a training goes on where another one was killed or stopped by a signal."""

    def case(folder: Path, config: Path, whole: dict, flags: tuple) -> str:
        work_dir = folder / 'shared'
        shutil.rmtree(work_dir, ignore_errors=True)
        act = die if stop == signal.SIGKILL else (lambda _: os.kill(os.getpid(), stop))
        train(folder, config, '--work-dir', work_dir, *flags, before=lambda: at_iteration(5, act))
        victim = train(folder, config, '--work-dir', work_dir, *flags, '--resume')
        return f'ended with {victim.code}' if victim.code else '' if flags else wrong_bits(work_dir / LAST, whole)

    return case


def requeued(folder: Path, config: Path, whole: dict, flags: tuple) -> str:
    """A scheduler starts the job again while the old one is still saving: it gets in once that has ended."""
    work_dir, gate = folder / 'shared', folder / 'gate'
    shutil.rmtree(work_dir, ignore_errors=True)
    old = Victim(folder, config, '--work-dir', work_dir, *flags, before=held(gate))
    begun(work_dir, old)
    old.kill(signal.SIGTERM)
    gate.touch()
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        new = train(folder, config, '--work-dir', work_dir, *flags, '--resume')
        if new.code == 0:
            return '' if flags else wrong_bits(work_dir / LAST, whole)
        if not refused(new):
            return f'ended with {new.code} in many words'
    return 'never got in'


CASES = {
    'a second one': second,
    'a second one with --resume': lambda *args: second(*args, '--resume'),
    'both at once': together,
    'after a killed one': after(signal.SIGKILL),
    'after a stopped one': after(signal.SIGTERM),
    'a requeue while the old one ends': requeued,
}
QUICK = ('a second one', 'after a killed one')


def two_trainings(folder: Path, *, quick: bool) -> Row:
    """Two trainings into one work dir, at once or one after the other."""
    row = Row(
        'two trainings into one work dir',
        'the second is refused in one line that names the first, which ends with the same bits; later ones get in',
    )
    config = write_config(folder / 'rivals.py', interval=2, save_best=False)
    for flags in [()] if quick else [(), ('--stock-hooks',)]:
        whole = weights_of_whole(folder, config, *flags, name='rivals-whole')
        for name, case in CASES.items():
            for _ in range(1 if quick or flags else 3):
                if name in QUICK or not quick:
                    why = case(folder, config, whole, flags)
                    row.add(not why, f'{name}: {why}', stock=bool(flags))
    return row
