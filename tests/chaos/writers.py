"""A disk that fills up, permission that is lost, a work dir that is removed, at a random moment of a training.

The part of `campaign.py` that does this in all three libraries. As root it drops the capability to ignore permissions,
and fills a small file system of its own; elsewhere the disk is not filled.
"""

import contextlib
import ctypes
import importlib
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mmengine.logging import MMLogger
from scenes import FOUR_SCENES

from chaos.inject import at_iteration
from chaos.outcome import many_words, resumed_at, weights_of_whole, wrong_bits
from chaos.row import Row
from chaos.victim import ROOT, Victim, train, write_config
from mmsb.engine.stops import EXIT_NOT_SAVED

DISK_BYTES = 2**28
SCENES = """
_base_ = '{root}/configs/demo/{name}.py'
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(indices=6))
val_dataloader = dict(num_workers=0, persistent_workers=False, batch_size=4, dataset=dict(indices=4))
train_cfg = dict({schedule}, val_interval={interval})
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(_delete_=True, type='CheckpointHook', interval=1, by_epoch=False, max_keep_ckpts=2),
)
"""
DETECTOR, SEGMENTER = 'faster-rcnn_sb-r50c16_fpn_b16-8e_digits-scenes', 'fpn_sb-resnet20_b8-200i_digits-scenes'
LIBRARIES = {  # config, what it says of the schedule, and its last checkpoint
    'mmpretrain': (None, dict(), 'iter_18.pth'),
    'mmdet': (DETECTOR, dict(schedule='max_epochs=2', interval=2), 'iter_6.pth'),
    'mmseg': (SEGMENTER, dict(schedule='max_iters=6', interval=3), 'iter_6.pth'),
}
_DAC_OVERRIDE = 1  # the capability to ignore permissions


def drop_override() -> None:
    """Let permissions hold for this process even if it is root's; call it in the victim."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, of two words each
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), 'capget')
    for index in range(3):
        sets[index] &= ~(1 << _DAC_OVERRIDE)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), 'capset')


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[Path | None]:
    """Mount a small file system of its own; yield its folder, or None where that is not possible."""
    folder.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={DISK_BYTES}', 'chaos', str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(['umount', '-l', str(folder)], check=True)


def fill(work_dir: Path) -> None:
    """Take all space of the file system."""
    with contextlib.suppress(OSError), open(work_dir.parent / 'ballast', 'ab', buffering=0) as file:
        while True:
            room = os.statvfs(work_dir.parent)
            file.write(bytes(max(room.f_bavail * room.f_frsize, 4096)))


def empty(work_dir: Path) -> None:
    (work_dir.parent / 'ballast').unlink(missing_ok=True)


def _set_mode(work_dir: Path, mode: int) -> None:
    for path in [work_dir, *work_dir.rglob('*')] if work_dir.exists() else ():
        with contextlib.suppress(FileNotFoundError):  # a temporary file
            if path.is_dir():
                path.chmod(mode)


def forbid(work_dir: Path) -> None:
    _set_mode(work_dir, 0o555)


def allow(work_dir: Path) -> None:
    _set_mode(work_dir, 0o755)


def remove(work_dir: Path) -> None:
    shutil.rmtree(work_dir, ignore_errors=True)


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    'a full disk': (fill, empty),
    'permission lost': (forbid, allow),
    'the work dir removed': (remove, lambda _: None),
}


def _config(folder: Path, library: str) -> Path:
    name, options, _ = LIBRARIES[library]
    path = folder / f'writers-{library}.py'
    if name is None:
        return write_config(path, interval=1)
    few = FOUR_SCENES if library == 'mmdet' else ''
    path.write_text(SCENES.format(root=ROOT, name=name, **options) + few)
    return path


def _unexpected(victim: Victim) -> str:
    return many_words(victim) or ('' if victim.code in (0, EXIT_NOT_SAVED) else f'ended with {victim.code}')


def judged(victim: Victim, folder: Path, config: Path, work_dir: Path, whole: dict, last: str) -> str:
    """Return what is wrong with the end of a training that had a fault, or with its resumption after it, or ''."""
    why = _unexpected(victim)
    there = any(path.suffix == '.pth' for path in work_dir.glob('iter_*'))
    resumed = train(folder, config, '--work-dir', work_dir, '--resume')
    if resumed.code:
        why = why or f'resume ended with {resumed.code}'
    elif there and not resumed_at(resumed):
        why = why or 'began anew'
    return why or wrong_bits(work_dir / last, whole)


def _at_random(folder: Path, root: Path, library: str, kind: str, count: int, flags: tuple) -> Iterator[str]:
    """Bring the fault about at random moments; yield what went wrong each time, or ''."""
    config, last = _config(folder, library), LIBRARIES[library][2]
    name = f'writers-{library}-whole'
    with contextlib.redirect_stdout(sys.stderr):
        importlib.import_module(f'{library}.apis')  # once for all trainings
    begun = time.monotonic()
    whole = weights_of_whole(folder, config, name=name, last=last)
    seconds = time.monotonic() - begun
    chance = random.Random(f'{library} {kind}')
    act, undo = KINDS[kind]
    work_dir = root / 'run'
    for _ in range(count):
        undo(work_dir)
        shutil.rmtree(work_dir, ignore_errors=True)
        victim = Victim(folder, config, '--work-dir', work_dir, *flags, before=drop_override)
        time.sleep(chance.uniform(0.1, 1) * seconds)
        act(work_dir)
        victim.wait()
        undo(work_dir)
        yield _unexpected(victim) if flags else judged(victim, folder, config, work_dir, whole, last)


def _broken_log(victim_dir: Path) -> None:
    """Let the log file raise ENOSPC from now on."""
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            if hasattr(handler, 'baseFilename'):
                handler.stream = open('/dev/full', 'a')  # noqa: SIM115


def _broken_scalars(victim_dir: Path) -> None:
    """Let the file of the logged values raise ENOSPC from now on."""
    (path,) = victim_dir.glob('*/vis_data/scalars.json')
    path.unlink()
    path.symlink_to('/dev/full')


def _quick(folder: Path, row: Row) -> None:
    config = _config(folder, 'mmpretrain')
    whole = weights_of_whole(folder, config, name='writers-whole')
    for act in (_broken_log, _broken_scalars, remove):
        work_dir = folder / 'written'
        shutil.rmtree(work_dir, ignore_errors=True)

        def fault(_, act=act, work_dir=work_dir) -> None:
            act(work_dir)

        victim = train(folder, config, '--work-dir', work_dir, before=lambda fault=fault: at_iteration(3, fault))
        why = judged(victim, folder, config, work_dir, whole, 'iter_18.pth')
        row.add(not why, f'{act.__name__}: {why}', stock=False)


def writers(folder: Path, *, quick: bool) -> Row:
    """The disk fills up, permission is lost or the work dir is removed, at random moments, in all libraries."""
    row = Row(
        'a full disk, permission lost or the work dir removed at a random moment, in all three libraries',
        f'the run goes on or ends with {EXIT_NOT_SAVED} and one line; a resume ends with the same bits',
    )
    if quick:
        _quick(folder, row)
        return row
    with disk(folder / 'disk') as small:
        for library in LIBRARIES:
            if importlib.util.find_spec(library) is None:
                continue
            for kind in KINDS:
                if kind == 'a full disk' and small is None:
                    print('no disk was filled: mounting one is not possible here', file=sys.stderr)
                    continue
                for flags, count in (((), 12 if library == 'mmpretrain' else 11), (('--stock-hooks',), 2)):
                    for why in _at_random(folder, small or folder, library, kind, count, flags):
                        row.add(not why, f'{kind}, {library}: {why}', stock=bool(flags))
    return row
