"""Damaged, malicious and malformed files: the part of `campaign.py` that does not interrupt trainings."""

import contextlib
import io
import random
import time
from pathlib import Path

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.runner.checkpoint import _load_checkpoint

from chaos import bad_input
from chaos.row import Row
from chaos.victim import train, write_config
from mmsb.checkpoints.store import first_valid, list_checkpoints
from mmsb.datasets.loading import LoadImage


def damage(folder: Path, *, quick: bool) -> Row:
    """Truncate the newest checkpoint, or flip one of its bits."""
    row = Row('a checkpoint truncated at each 1/16, or with one bit flipped', 'noticed, the one before is taken')
    config = write_config(folder / 'damage.py', steps=1)
    train(folder, config, '--work-dir', 'sound')
    newest, before = (folder / f'sound/iter_{number}.pth' for number in (6, 4))
    content = newest.read_bytes()
    chance = random.Random(0)
    damaged = [content[: len(content) * part // 16] for part in range(16)]
    for _ in range(20 if quick else 200):
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        damaged.append(bytes(flipped))
    for bad in damaged:
        newest.write_bytes(bad)
        stored, unreadable = list_checkpoints([str(folder / 'sound')])
        found, skipped = first_valid(stored)
        good = found == str(before) and len([*unreadable, *skipped]) == 1
        row.add(good, f'took {Path(found or "none").name}', stock=False)
        if quick:
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                _load_checkpoint(str(newest))
            row.add(False, 'loaded as if sound', stock=True)
        except Exception:  # damaged data can raise any exception
            row.add(False, 'cannot be resumed', stock=True)
    newest.write_bytes(content)
    return row


def malicious(folder: Path, *, quick: bool) -> Row:
    """Checkpoints that try to run code or to corrupt or exhaust memory; text that mmengine runs as a config."""
    row = Row('malicious checkpoints', 'nothing runs; refused in one line that names the file, or harmless data')
    for one in bad_input.malicious_campaign():
        row.add(one['outcome'] in one['right'], f'{one["outcome"]}: {one["what"]}', stock=False)
    if not quick:
        for one in bad_input.malicious_campaign(read=_resume_as_mmengine):
            good = one['outcome'] not in (bad_input.RAN, bad_input.CRASHED, bad_input.HUNG)
            row.add(good, one['outcome'], stock=True)
    return row


def _resume_as_mmengine(path: Path):
    with contextlib.redirect_stdout(io.StringIO()):
        checkpoint = _load_checkpoint(str(path))
        if isinstance(checkpoint, dict) and 'config' in checkpoint.get('meta', {}):
            Config.fromstring(checkpoint['meta']['config'], file_format='.py')  # as in Runner.resume
    time.sleep(0.05)  # let a process that it started act
    return checkpoint


def malformed(folder: Path, *, quick: bool) -> Row:
    """Fuzzed images through the loading transform and the data check; annotation files and masks through the check."""
    row = Row('malformed images and annotations', 'no crash, no hang; sound pixels, or an error that names the file')
    count, seed = 60 if quick else 1000, 0
    for kind in bad_input.campaign(count, seed):
        for outcome in (bad_input.FINE, bad_input.NAMED, bad_input.UNCLEAR, bad_input.CRASHED, bad_input.HUNG):
            for _ in range(kind[outcome]):
                row.add(outcome in (bad_input.FINE, bad_input.NAMED), f'{outcome}: {kind["what"]}', stock=False)
    if quick:
        return row
    path = folder / 'image'
    images = bad_input.images(count, seed)
    ours = bad_input.isolated(lambda item: _loaded(LoadImage(), path, *item), images, 10)
    theirs = bad_input.isolated(lambda item: _loaded(LoadImageFromFile(), path, *item), images, 10)
    for right, outcome in zip(list(ours), theirs, strict=True):
        why = {bad_input.FINE: 'damaged but taken', bad_input.UNCLEAR: 'without the name of the file'}.get(
            outcome, outcome
        )
        good = outcome == bad_input.NAMED or outcome == right == bad_input.FINE
        row.add(good, why, stock=True)
    return row


def _loaded(transform, stem: Path, kind: str, content: bytes) -> str:
    path = stem.with_suffix(f'.{kind}')
    path.write_bytes(content)
    try:
        pixels = transform(dict(img_path=str(path)))['img']
    except Exception as error:  # any exception is counted
        return bad_input.NAMED if str(path) in str(error) else bad_input.UNCLEAR
    return bad_input.FINE if isinstance(pixels, np.ndarray) else bad_input.UNCLEAR
