"""Interrupt and damage trainings in many ways, and count how many survive.

PYTHONPATH=tests python -m chaos.campaign [--quick] [--only NAME] [--json FILE]

Prints a Markdown table: for each kind of fault, the number of cases and in how many of them the training behaved as
required, with mmsb and with the stock mmengine hooks (`tools/train.py --stock-hooks`). The exit code is 1 if a case
with mmsb failed.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from chaos.choices import choices
from chaos.early import early_signals
from chaos.files import damage, malformed, malicious
from chaos.inject import ERRORS, InSaves, die, log_progress, raising
from chaos.mistakes import mistakes
from chaos.outcome import LAST
from chaos.power import power_loss
from chaos.ranks import FAULTS, faults_of_ranks
from chaos.rivals import two_trainings
from chaos.row import Row
from chaos.states import states
from chaos.victim import Victim, differing, prepare, train, weights_of, write_config
from chaos.writers import writers
from mmsb.analysis.report import check_folders, write_json
from mmsb.engine.stops import EXIT_NOT_SAVED

INTERVAL = 2  # iterations between checkpoints
STOCK = ('--stock-hooks',)
KEEP_ONE = ('--cfg-options', 'default_hooks.checkpoint.max_keep_ckpts=1')


def kills(folder: Path, *, quick: bool) -> Row:
    """SIGKILL at random moments: during start-up, an iteration, a save or a validation."""
    row = Row('SIGKILL at a random moment', 'resumes, loses at most one interval, ends with the same bits')
    config = write_config(folder / 'kills.py', interval=INTERVAL)
    begun = time.monotonic()
    train(folder, config, '--work-dir', 'whole')
    seconds = time.monotonic() - begun
    whole = weights_of(folder / 'whole' / LAST)
    for flags in _flags(quick):
        chance = random.Random(0)
        faults = []
        while len(faults) < (4 if quick else 100):
            faults += _killed_training(folder, config, flags, chance, seconds, whole)
        for why in faults[: 4 if quick else 100]:
            row.add(not why, why, stock=bool(flags))
    return row


def _flags(quick: bool) -> list[tuple[str, ...]]:
    return [()] if quick else [(), STOCK]


def _killed_training(folder, config, flags, chance, seconds, whole) -> list[str]:
    """Train once with random kills; return, for each kill, what went wrong after it, or ''."""
    work_dir, progress = folder / 'killed', folder / 'progress'
    shutil.rmtree(work_dir, ignore_errors=True)
    faults, done = [], 0
    while True:
        progress.unlink(missing_ok=True)
        resume = ('--work-dir', work_dir, '--resume', *flags)
        victim = Victim(folder, config, *resume, before=lambda: log_progress(progress))
        end = time.monotonic() + chance.uniform(0.1, 1.2) * seconds
        while victim.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        running = victim.poll() is None
        victim.kill()
        code = victim.wait()
        said = progress.read_text().split() if progress.exists() else []
        if said:  # otherwise it was killed before it started training
            began, now = map(int, said)
            if faults and done - began > INTERVAL:
                faults[-1] = 'lost more than an interval'
            done = now
        if running and code != 0:
            faults.append('')
        elif code != 0:
            return [*faults[:-1], 'could not be resumed'] if faults else ['failed']
        else:
            end = _compared(work_dir, whole)
            return [why or end for why in faults]


def _operations(folder: Path, config: Path, flags: tuple) -> int:
    """Count the disk operations of one save."""
    path = folder / 'count'
    shutil.rmtree(folder / 'counted', ignore_errors=True)
    work_dir = ('--work-dir', 'counted')
    train(folder, config, *work_dir, *flags, *KEEP_ONE, before=InSaves(-1, count_to=path).install)
    return int(path.read_text())


def _resumed(folder: Path, config: Path, work_dir: Path, flags: tuple, whole: dict) -> str:
    """Resume a training and compare its weights; return what is wrong, or ''."""
    there = list(work_dir.glob('iter_*.pth'))
    victim = train(folder, config, '--work-dir', work_dir, '--resume', *flags, *KEEP_ONE)
    if victim.code:
        return 'could not be resumed' if there else 'nothing left'
    if 'resumed epoch' not in victim.said():
        return 'began anew'
    return _compared(work_dir, whole)


def _compared(work_dir: Path, whole: dict) -> str:
    if not (work_dir / LAST).exists():
        return 'repeated iterations'
    return 'ended with other weights' if differing(weights_of(work_dir / LAST), whole) else ''


def kills_in_saves(folder: Path, *, quick: bool) -> Row:
    """SIGKILL at each disk operation of a save; one checkpoint is kept."""
    row = Row('SIGKILL at each write, fsync and rename of a save', 'resumes, ends with the same bits')
    config = write_config(folder / 'saves.py', interval=INTERVAL)
    train(folder, config, '--work-dir', 'whole')
    whole = weights_of(folder / 'whole' / LAST)
    for flags in _flags(quick):
        count = _operations(folder, config, flags)
        for target in range(0, count, 6 if quick else 1):
            work_dir = folder / 'cut'
            shutil.rmtree(work_dir, ignore_errors=True)
            fault = InSaves(target, die)
            victim = train(folder, config, '--work-dir', work_dir, *flags, *KEEP_ONE, before=fault.install)
            why = 'not killed' if victim.code != -9 else _resumed(folder, config, work_dir, flags, whole)
            row.add(not why, why, stock=bool(flags))
    return row


def errors_in_saves(folder: Path, *, quick: bool) -> Row:
    """A permanent error starting at each disk operation of a save; one checkpoint is kept."""
    row = Row(
        f'{", ".join(ERRORS)} from each write, fsync and rename on',
        'a checkpoint stays, the error is said, the exit code is not 0; a resume ends with the same bits',
    )
    config = write_config(folder / 'errors.py', interval=INTERVAL)
    train(folder, config, '--work-dir', 'whole')
    whole = weights_of(folder / 'whole' / LAST)
    for flags in _flags(quick):
        count = _operations(folder, config, flags)
        for number, (name, value) in enumerate(ERRORS.items()):
            for target in range(number, count, 12) if quick else range(count):
                work_dir = folder / 'cut'
                shutil.rmtree(work_dir, ignore_errors=True)
                fault = InSaves(target, raising(value), lasting=True)
                victim = train(folder, config, '--work-dir', work_dir, *flags, *KEEP_ONE, before=fault.install)
                why = _resumed(folder, config, work_dir, flags, whole)
                said = 'could not be written' in victim.said() or bool(flags)
                if not why and (not said or victim.code not in ((1,) if flags else (EXIT_NOT_SAVED,))):
                    why = f'ended with {victim.code} after {name}'
                row.add(not why, why, stock=bool(flags))
    return row


def ranks(folder: Path, *, quick: bool) -> Row:
    """One of two processes is killed or stopped, or both are killed, in a step or in a save."""
    row = Row(
        'one of two processes killed or stopped, or both killed', 'both start again in time, end with the same bits'
    )
    for flags in _flags(quick):
        for good, why in faults_of_ranks(folder, 1 if quick else 2 * len(FAULTS), flags):
            row.add(good, why, stock=bool(flags))
    return row


CAMPAIGNS: list[Callable[..., Row]] = [
    *(kills, kills_in_saves, errors_in_saves, power_loss, writers),
    *(choices, two_trainings, early_signals, states, damage, malicious, malformed, mistakes, ranks),
]


def main() -> None:
    names = [campaign.__name__ for campaign in CAMPAIGNS]
    parser = argparse.ArgumentParser(description='Interrupt and damage trainings, and count how many survive.')
    parser.add_argument('--quick', action='store_true', help='a few cases of each kind, none with stock hooks')
    parser.add_argument('--only', nargs='+', choices=names, default=names, help='only these kinds')
    parser.add_argument('--json', metavar='FILE', help='also write the counts to FILE')
    args = parser.parse_args()
    check_folders(parser, args, 'json')
    rows = []
    print('| fault | must | mmsb | stock hooks | what went wrong |\n|---|---|---|---|---|')
    with tempfile.TemporaryDirectory(prefix='chaos-') as temporary:
        folder = prepare(Path(temporary))
        for campaign in CAMPAIGNS:
            if campaign.__name__ in args.only:
                begun = time.monotonic()
                rows.append(campaign(folder, quick=args.quick))
                print(rows[-1].line(), flush=True)
                print(f'{campaign.__name__}: {time.monotonic() - begun:.0f} s', file=sys.stderr)
    if args.json:
        write_json(args.json, [asdict(row) for row in rows])
    sys.exit(int(any(row.good < row.least * row.cases for row in rows)))


if __name__ == '__main__':
    main()
