"""Checkpoint files that are either whole or not there, and the search for the newest whole one.

Order of a write: temporary file in the same folder; its SHA-256 into NAME.sha256 (the format of `sha256sum`); fsync;
rename; fsync of the folder. Killed anywhere, the old file or the new one is there, each with its hash.
"""

import hashlib
import os
import re
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from mmsb.checkpoints.load import load_checkpoint, require_file
from mmsb.files import sha256_of, write_text, write_whole
from mmsb.options import one_line

POINTER = 'last_checkpoint'  # the file in a work dir that mmengine resumes from
_LEFTOVER = re.compile(r'\.(.+\.(pth|sha256)|last_checkpoint)\.(\d+\.)?tmp')


def write_checkpoint(path: str | os.PathLike, content: bytes) -> None:
    """Replace a checkpoint and its SHA-256 by new ones.

    While both are replaced the hash file names the old content too: whichever is there is valid.

    Raises:
        OSError: it can't be written; the old checkpoint is as it was, and valid.
    """
    line = _hash_line(path, hashlib.sha256(content).hexdigest())
    old = ''
    if os.path.exists(path):
        old = _read_hash_file(path) or _hash_line(path, sha256_of(path))

    def write(unfinished: Path) -> None:
        unfinished.write_bytes(content)
        _write_hash_file(path, line + old.replace(line, ''))

    write_whole(path, write)
    if old:
        _write_hash_file(path, line)


def remove_checkpoint(path: str | os.PathLike) -> None:
    """Remove a checkpoint and its hash, if they are there."""
    Path(path).unlink(missing_ok=True)
    Path(_hash_file(path)).unlink(missing_ok=True)


def why_invalid(path: str | os.PathLike) -> str | None:
    """Say why a checkpoint can't be resumed from: None if it can.

    With a hash file beside it, its content has to have that hash; the checksums inside have to hold either way.

    Args:
        path: local file.
    """
    try:
        require_file(path)
        hashes = [line.split(' ')[0] for line in _read_hash_file(path).splitlines()]
        if hashes and sha256_of(path) not in hashes:
            return 'does not have the content that its .sha256 says: it is damaged'
        load_checkpoint(path)
    except (ValueError, OSError) as error:
        return one_line(error).removeprefix(f'checkpoint {os.fspath(path)!r} ')
    return None


def find_checkpoint(
    folders: list[str], template: str | None = None, *, since_s: float = 0
) -> tuple[str | None, list[str]]:
    """Find the newest valid checkpoint of a training.

    Args:
        folders: the work dir first, then other folders that checkpoints may be in.
        template: `filename_tmpl` of the hook, if it is not one of the usual NAME_{}.pth.
        since_s: older ones are left out: seconds since 1970, as the file system has them.

    Returns:
        its path, or None; and a line for each newer one that is skipped, with the reason.
    """
    pointer = Path(folders[0]) / POINTER
    said = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    if '://' in said:  # not a local one: nothing to check
        return said, []
    skipped = []
    for path in _newest_first([*folders, os.path.dirname(said)] if said else folders, template):
        if path.stat().st_mtime < since_s:
            continue
        reason = why_invalid(path)
        if reason is None:
            return str(path), skipped
        skipped.append(f'{str(path)!r} {reason}')
    return None, skipped


def clean_leftovers(folder: str) -> list[str]:
    """Remove what an interrupted write left in a folder: temporary files, and hashes without a checkpoint."""
    found = []
    for path in Path(folder).iterdir() if os.path.isdir(folder) else []:
        orphan = path.name.endswith('.pth.sha256') and not path.with_suffix('').exists()
        if orphan or _LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)
            found.append(path.name)
    return found


def probe(folder: str, size_bytes: int) -> None:
    """Check that a folder takes a file of this size, by reserving the space for a moment.

    Raises:
        OSError: it does not.
    """
    os.makedirs(folder, exist_ok=True)
    path = Path(folder, '.probe.pth.tmp')
    try:
        with open(path, 'wb') as file:
            file.write(b'probe')
            file.flush()
            if hasattr(os, 'posix_fallocate') and size_bytes:
                os.posix_fallocate(file.fileno(), 0, size_bytes)
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)


class CheckpointBackend(LocalBackend):
    """MMEngine's way to local files, with checkpoints written whole or not at all."""

    def put(self, obj: bytes | memoryview, filepath: str | os.PathLike) -> None:
        os.makedirs(os.path.dirname(os.path.abspath(filepath)), exist_ok=True)
        write_checkpoint(filepath, bytes(obj))

    def remove(self, filepath: str | os.PathLike) -> None:
        remove_checkpoint(filepath)


register_backend('mmsb', CheckpointBackend, force=True)


def _newest_first(folders: list[str], template: str | None) -> list[Path]:
    usual = re.compile(r'(?!best_).*_(\d+)\.pth')
    named = re.compile(re.escape(template).replace(r'\{\}', r'(\d+)')) if template else usual
    numbers = {}
    for folder in folders:
        for path in Path(folder or '.').glob('*.pth'):
            match = usual.fullmatch(path.name) or named.fullmatch(path.name)
            if match and path.is_file():
                numbers[path.resolve()] = path, int(match[1]) if match.groups() else 0
    ordered = sorted(numbers.values(), key=lambda found: (found[0].stat().st_mtime_ns, found[1]), reverse=True)
    return [path for path, _ in ordered]


def _hash_file(path: str | os.PathLike) -> str:
    return f'{os.fspath(path)}.sha256'


def _hash_line(path: str | os.PathLike, digest: str) -> str:
    return f'{digest}  {os.path.basename(path)}\n'


def _read_hash_file(path: str | os.PathLike) -> str:
    try:
        with open(_hash_file(path), errors='replace') as file:
            return file.read()
    except FileNotFoundError:
        return ''


def _write_hash_file(path: str | os.PathLike, lines: str) -> None:
    write_text(_hash_file(path), lines)
