"""Checkpoint files that are either whole or not there, and the search for the newest whole one.

Order of a write: temporary file in the same folder, fsync; its SHA-256 into NAME.sha256 (the format of `sha256sum`);
rename; fsync of the folder. Killed anywhere, the old file or the new one is there, each with its hash.
"""

import hashlib
import os
import re
import zipfile
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from mmsb.checkpoints.load import load_checkpoint, require_file
from mmsb.files import CHUNK_BYTES, sha256_of

POINTER = 'last_checkpoint'  # the file in a work dir that mmengine resumes from
_LEFTOVER = re.compile(r'\.(.+\.(pth|sha256)|last_checkpoint)\.tmp')


def write_atomic(path: str | os.PathLike, content: bytes) -> None:
    """Replace a file by new content: whole or not at all, also after a power failure.

    Raises:
        OSError: the content can't be written; the old file is as it was.
    """
    path = os.fspath(path)
    temporary = _write_temporary(path, content)
    os.replace(temporary, path)
    _sync_folder(path)


def write_checkpoint(path: str | os.PathLike, content: bytes) -> None:
    """Replace a checkpoint and its SHA-256 by new ones.

    While both are replaced the hash file names the old content too: whichever is there is valid.

    Raises:
        OSError: it can't be written; the old checkpoint is as it was, and valid.
    """
    path = os.fspath(path)
    line = f'{hashlib.sha256(content).hexdigest()}  {os.path.basename(path)}\n'
    temporary = _write_temporary(path, content)
    try:
        old = _read_hash_file(path) if os.path.exists(path) else ''
        write_atomic(_hash_file(path), (line + old.replace(line, '')).encode())
        os.replace(temporary, path)
    except BaseException:
        _remove_if_there(temporary)
        raise
    _sync_folder(path)
    if old:
        write_atomic(_hash_file(path), line.encode())


def remove_checkpoint(path: str | os.PathLike) -> None:
    """Remove a checkpoint and its hash, if they are there."""
    _remove_if_there(os.fspath(path))
    _remove_if_there(_hash_file(path))


def why_invalid(path: str | os.PathLike, *, trust: bool = False) -> str | None:
    """Say why a checkpoint can't be resumed from: None if it can.

    With a hash file beside it its content has to have that hash, without one the checksums inside have to hold.

    Args:
        path: local file.
        trust: see `load_checkpoint`.
    """
    try:
        require_file(path)
        hashes = [line.split(' ')[0] for line in _read_hash_file(path).splitlines()]
        if hashes and sha256_of(path) not in hashes:
            return 'does not have the content that its .sha256 says: it is damaged'
        if not hashes and zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip():
            return 'is damaged: a checksum inside it is wrong'
        load_checkpoint(path, trust=trust)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        return ' '.join(str(error).removeprefix(f'checkpoint {os.fspath(path)!r} ').split())
    return None


def find_checkpoint(
    folders: list[str], template: str | None = None, *, since_s: float = 0, trust: bool = False
) -> tuple[str | None, list[str]]:
    """Find the newest valid checkpoint of a training.

    Args:
        folders: the work dir first, then other folders that checkpoints may be in.
        template: `filename_tmpl` of the hook, if it is not one of the usual NAME_{}.pth.
        since_s: older ones are left out: seconds since 1970, as the file system has them.
        trust: see `load_checkpoint`.

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
        reason = why_invalid(path, trust=trust)
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
            _remove_if_there(str(path))
            found.append(path.name)
    return found


def probe(folder: str, size_bytes: int) -> None:
    """Check that a folder takes a file of this size, by reserving the space for a moment.

    Raises:
        OSError: it does not.
    """
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, '.probe.pth.tmp')
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        _write_all(handle, b'probe')
        if hasattr(os, 'posix_fallocate') and size_bytes:
            os.posix_fallocate(handle, 0, size_bytes)
        os.fsync(handle)
    finally:
        os.close(handle)
        _remove_if_there(path)


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


def _read_hash_file(path: str | os.PathLike) -> str:
    try:
        with open(_hash_file(path), errors='replace') as file:
            return file.read()
    except FileNotFoundError:
        return ''


def _write_temporary(path: str, content: bytes) -> str:
    temporary = os.path.join(os.path.dirname(path), f'.{os.path.basename(path)}.tmp')
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            _write_all(handle, content)
            os.fsync(handle)
        finally:
            os.close(handle)
    except BaseException:
        _remove_if_there(temporary)
        raise
    return temporary


def _write_all(handle: int, content: bytes) -> None:
    for start in range(0, len(content), CHUNK_BYTES):
        rest = memoryview(content)[start : start + CHUNK_BYTES]
        while rest:
            rest = rest[os.write(handle, rest) :]


def _sync_folder(path: str) -> None:
    handle = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(handle)  # else the rename itself may be lost
    finally:
        os.close(handle)


def _remove_if_there(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
