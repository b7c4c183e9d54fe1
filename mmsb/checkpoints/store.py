"""Write checkpoint files atomically, and find the newest valid one.

A write takes these steps: write a temporary file in the same folder; write its SHA-256 to NAME.sha256 (the format of
`sha256sum`); fsync; rename; fsync the folder. If the process is killed at any point, either the old file or the new one
exists, with its hash.
"""

import hashlib
import os
import re
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from mmsb.checkpoints.load import load_checkpoint, require_file
from mmsb.files import sha256_of, write_text, write_whole
from mmsb.options import one_line

POINTER = 'last_checkpoint'  # file in a work dir that tells mmengine where to resume from
_LEFTOVER = re.compile(r'\.(.+\.(pth|sha256)|last_checkpoint)\.(\d+\.)?tmp')


def write_checkpoint(path: str | os.PathLike, content: bytes) -> None:
    """Replace a checkpoint and its SHA-256 with new ones.

    During the replacement, the hash file also lists the hash of the old content, so either checkpoint is valid.

    Raises:
        OSError: the checkpoint cannot be written; the old one is unchanged and valid.
    """
    line = _hash_line(path, hashlib.sha256(content).hexdigest())
    old = ''
    if os.path.exists(path):
        old = _read_hash_file(path) or _hash_line(path, sha256_of(path))

    def write(unfinished: Path) -> None:
        unfinished.write_bytes(content)
        write_text(_hash_file(path), line + old.replace(line, ''))

    write_whole(path, write)
    if old:
        write_text(_hash_file(path), line)


def remove_checkpoint(path: str | os.PathLike) -> None:
    """Remove a checkpoint and its hash, if they exist."""
    Path(path).unlink(missing_ok=True)
    Path(_hash_file(path)).unlink(missing_ok=True)


def why_invalid(path: str | os.PathLike) -> str | None:
    """Describe why a checkpoint cannot be resumed from; None if it can.

    If there is a hash file beside it, the content must match it; the checksums inside must match in any case.

    Args:
        path: local file.
    """
    try:
        require_file(path)
        hashes = [line.split(' ')[0] for line in _read_hash_file(path).splitlines()]
        if hashes and sha256_of(path) not in hashes:
            return 'does not match its .sha256: it is damaged'
        load_checkpoint(path)
    except (ValueError, OSError) as error:
        return one_line(error).removeprefix(f'checkpoint {os.fspath(path)!r} ')
    return None


def find_checkpoint(
    folders: list[str], template: str | None = None, *, since_s: float = 0
) -> tuple[str | None, list[str]]:
    """Find the newest valid checkpoint of a training.

    Args:
        folders: the work dir first, then other folders that may hold checkpoints.
        template: `filename_tmpl` of the hook, if it is not of the usual form NAME_{}.pth.
        since_s: ignore checkpoints older than this file modification time, in seconds since 1970.

    Returns:
        the path, or None; and one line for each newer checkpoint that was skipped, with the reason.
    """
    pointer = Path(folders[0]) / POINTER
    said = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    if '://' in said:  # not local: cannot be checked here
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
    """Remove the leftovers of interrupted writes in a folder: temporary files, and hashes without a checkpoint."""
    found = []
    for path in Path(folder).iterdir() if os.path.isdir(folder) else []:
        orphan = path.name.endswith('.pth.sha256') and not path.with_suffix('').exists()
        if orphan or _LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)
            found.append(path.name)
    return found


def probe(folder: str, size_bytes: int) -> None:
    """Check that a file of this size can be written to a folder, by reserving the space briefly.

    Raises:
        OSError: the file cannot be written.
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
    """MMEngine's backend for local files, with atomic writes of checkpoints."""

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
