"""Which checkpoint `--resume` takes: the part of `campaign.py` that changes what lies in a work dir."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from chaos.inject import at_iteration, die
from chaos.outcome import LAST, contents, lost, refused, resumed_at, weights_of_whole, wrong_bits
from chaos.row import Row
from chaos.victim import Victim, train, write_config

HOUR_S = 3600
TEMPLATE = ('--cfg-options', 'default_hooks.checkpoint.filename_tmpl=epoch_{}.pt')


class Run:
    """A training that was killed at iteration 13, with checkpoints at 8, 10 and 12.

    Args:
        folder: working directory.
        flags: of the tool, such as `--stock-hooks`, whose resumed runs are not compared: they end with other bits.
    """

    def __init__(self, folder: Path, flags: tuple = ()) -> None:
        self.folder, self.flags = folder, flags
        self.config = write_config(folder / 'choices.py', interval=2, save_best=False)
        self.whole = weights_of_whole(folder, self.config, *flags, name='choices-whole')
        self.work_dir, self._copy = folder / 'chosen', folder / 'chosen-copy'
        self._killed()

    def _killed(self) -> None:
        for path in (self.work_dir, self._copy):
            shutil.rmtree(path, ignore_errors=True)
        self.train(self.work_dir, act=lambda: at_iteration(13, die))
        shutil.copytree(self.work_dir, self._copy, symlinks=True)

    def again(self) -> Path:
        """Return the work dir, as it was after the kill."""
        shutil.rmtree(self.work_dir)
        shutil.copytree(self._copy, self.work_dir, symlinks=True)
        return self.work_dir

    def train(self, work_dir: Path, *args, act: Callable[[], None] | None = None) -> Victim:
        return train(self.folder, self.config, '--work-dir', work_dir, *self.flags, *args, before=act)

    def point_to(self, path: Path) -> None:
        """Write the pointer of a work dir."""
        (path.parent / 'last_checkpoint').write_text(str(path))

    def judged(self, work_dir: Path, start: int, *args, end: str = LAST) -> str:
        """Resume; return what is wrong with the choice or with the end, or ''."""
        victim = self.train(work_dir, '--resume', *args)
        if resumed_at(victim) != start:
            said = 'refused' if victim.code else f'resumed at {resumed_at(victim)}'
            return f'{said} instead of {start}'
        if victim.code:
            return f'ended with {victim.code}'
        return '' if self.flags else wrong_bits(work_dir / end, self.whole)


def touched(run: Run) -> str:
    work_dir = run.again()
    os.utime(work_dir / 'iter_8.pth')
    return run.judged(work_dir, 12)


def copied_files(run: Run) -> str:
    other = run.folder / 'other'
    shutil.rmtree(other, ignore_errors=True)
    other.mkdir()
    for number, path in enumerate(sorted(run.again().glob('*.pth'))):  # iter_8 comes last
        shutil.copy(path, other)
        os.utime(other / path.name, (time.time() + number, time.time() + number))
    return run.judged(other, 12)


def copied_work_dir(run: Run) -> str:
    work_dir, copy = run.again(), run.folder / 'copied'
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(work_dir, copy, symlinks=True)
    for number in (10, 12):  # the copy was made before
        for path in copy.glob(f'iter_{number}.*'):
            path.unlink()
    before = contents(work_dir)
    why = run.judged(copy, 8)
    return why or ('changed the original' if contents(work_dir) != before else '')


def reused(killed_at: int) -> Callable[[Run], str]:
    """Make a case: another run, with a seed of its own, begins in the folder of a finished one and is killed."""

    def case(run: Run) -> str:
        work_dir, seed = run.folder / 'reused', ('--seed', 7)
        shutil.rmtree(work_dir, ignore_errors=True)
        shutil.copytree(run.folder / 'choices-whole', work_dir, symlinks=True)
        if not hasattr(run, 'other'):
            run.other = weights_of_whole(run.folder, run.config, *run.flags, *seed, name='choices-other')
        before = contents(work_dir)
        began = run.train(work_dir, *seed, act=lambda: at_iteration(killed_at, die))
        if began.code != -9:  # did not begin among another run's files
            return '' if refused(began) and contents(work_dir) == before else f'ended with {began.code}'
        victim = run.train(work_dir, *seed, '--resume')
        if victim.code:
            return '' if refused(victim) else f'ended with {victim.code}'
        if resumed_at(victim) > killed_at:
            return 'went on with the other run'
        return '' if run.flags else wrong_bits(work_dir / LAST, run.other)

    case.__name__ = f'reused_{killed_at}'
    return case


def template(run: Run) -> str:
    work_dir = run.folder / 'template'
    shutil.rmtree(work_dir, ignore_errors=True)
    run.train(work_dir, *TEMPLATE, act=lambda: at_iteration(13, die))
    return run.judged(work_dir, 12, *TEMPLATE, end='epoch_18.pt')


def dangling_newest(run: Run) -> str:
    work_dir = run.again()
    (work_dir / 'iter_14.pth').symlink_to('/nowhere/iter_14.pth')
    run.point_to(work_dir / 'iter_14.pth')
    return run.judged(work_dir, 12)


def dangling_all(run: Run) -> str:
    """All checkpoints lie on a disk that is not there: a training that begins anew has lost them."""
    work_dir = run.again()
    for path in work_dir.glob('iter_*.pth'):
        path.unlink()
        path.symlink_to(f'/nowhere/{path.name}')
    victim = run.train(work_dir, '--resume')
    return '' if refused(victim) else 'began anew'


def clock_set_back(run: Run) -> str:
    def before() -> None:
        now, replace = time.time, os.replace
        time.time = lambda: now() - HOUR_S

        def replace_then(source, target, *args, **kwargs) -> None:
            replace(source, target, *args, **kwargs)
            os.utime(target, (time.time(), time.time()))

        os.replace = replace_then
        at_iteration(17, die)

    work_dir = run.again()
    run.train(work_dir, '--resume', act=before)
    return run.judged(work_dir, 16)


def older_one(run: Run) -> str:
    """`--resume PATH` of an older checkpoint deletes no newer one, even in a run that ends."""
    work_dir = run.again()
    before = contents(work_dir)
    victim = run.train(work_dir, '--resume', work_dir / 'iter_8.pth', act=lambda: at_iteration(9, die))
    if resumed_at(victim) != 8:
        return f'resumed at {resumed_at(victim)} instead of 8'
    gone = lost(before, work_dir)
    victim = run.train(work_dir, '--resume', work_dir / 'iter_8.pth')
    gone += lost(before, work_dir, {'iter_10.pth', 'iter_12.pth'})
    if gone:
        return f'lost {min(gone)}'
    return f'ended with {victim.code}' if victim.code else '' if run.flags else wrong_bits(work_dir / LAST, run.whole)


def damaged_newest(run: Run) -> str:
    work_dir = run.again()
    os.truncate(work_dir / 'iter_12.pth', 1000)
    return run.judged(work_dir, 10)


def pointer(content: bytes | None) -> Callable[[Run], str]:
    """Make a case: `last_checkpoint` is missing, empty or damaged, or names a file of another folder."""

    def case(run: Run) -> str:
        work_dir = run.again()
        path = work_dir / 'last_checkpoint'
        path.unlink() if content is None else path.write_bytes(content)
        return run.judged(work_dir, 12)

    case.__name__ = f'pointer_{content}'
    return case


def more_epochs(run: Run) -> str:
    work_dir = run.folder / 'more'
    shutil.rmtree(work_dir, ignore_errors=True)
    shutil.copytree(run.folder / 'choices-whole', work_dir, symlinks=True)
    run.point_to(work_dir / LAST)
    victim = run.train(work_dir, '--resume', '--cfg-options', 'train_cfg.max_epochs=4')
    if resumed_at(victim) != 18:
        return f'resumed at {resumed_at(victim)} instead of 18'
    return '' if victim.code == 0 and (work_dir / 'iter_24.pth').exists() else f'ended with {victim.code}'


def warm_start_gone(run: Run) -> str:
    """The file of a warm start is needed once only."""
    work_dir, start = run.folder / 'warm', run.folder / 'start.pth'
    shutil.rmtree(work_dir, ignore_errors=True)
    shutil.copy(run.folder / 'choices-whole' / LAST, start)
    init = [f'model.backbone.init_cfg.{key}={value}' for key, value in (('type', 'Pretrained'), ('checkpoint', start))]
    run.train(work_dir, '--cfg-options', *init, act=lambda: at_iteration(13, die))
    start.unlink()
    victim = run.train(work_dir, '--resume', '--cfg-options', *init)
    if victim.code or resumed_at(victim) != 12:
        return f'ended with {victim.code}' if victim.code else f'resumed at {resumed_at(victim)} instead of 12'
    return ''


CASES = {
    'an older file touched': touched,
    'files copied to another folder': copied_files,
    'a copied work dir': copied_work_dir,
    'another run in the folder, killed before its first checkpoint': reused(1),
    'another run in the folder, killed after its first checkpoint': reused(5),
    'filename_tmpl of its own': template,
    'a link to nowhere as the newest': dangling_newest,
    'links to nowhere alone': dangling_all,
    'the clock set back': clock_set_back,
    '--resume PATH of an older one': older_one,
    'a damaged newest': damaged_newest,
    'no pointer': pointer(None),
    'an empty pointer': pointer(b''),
    'a damaged pointer': pointer(b'\xff\x00\n\n'),
    'more epochs': more_epochs,
    'the file of a warm start gone': warm_start_gone,
}
QUICK = ('an older file touched', 'a copied work dir', 'links to nowhere alone', '--resume PATH of an older one')


def choices(folder: Path, *, quick: bool) -> Row:
    """What lies in a work dir is touched, copied, mixed, damaged; the newest checkpoint of the same run is taken."""
    row = Row(
        'files of a work dir touched, copied, mixed, damaged',
        'the last one of the same run is taken, or one line says how to go on; no valid one is lost; the same bits',
    )
    for flags in [()] if quick else [(), ('--stock-hooks',)]:
        run = Run(folder, flags)
        for name, case in CASES.items():
            if name in QUICK or not quick:
                why = case(run)
                row.add(not why, f'{name}: {why}', stock=bool(flags))
    return row
