"""Write checkpoint files atomically, and find those of a run.

A write takes these steps: write a temporary file in the same folder; write its SHA-256 to NAME.sha256 (the format of
`sha256sum`); fsync; rename; fsync the folder. If the process is killed at any point, either the old file or the new one
exists, with its hash.
"""

import ctypes
import errno
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mmengine.fileio import FileClient, HardDiskBackend, LocalBackend, register_backend
from mmengine.fileio.backends import backends, prefix_to_backends

from mmsb.checkpoints.load import load_checkpoint, local_path, require_file
from mmsb.files import sha256_of, write_text, write_whole
from mmsb.options import one_line

POINTER = 'last_checkpoint'  # file in a work dir: path of the last checkpoint, as MMEngine reads it
OWN_BACKEND = dict(backend='mmsb')  # `CheckpointBackend`
_LEFTOVER = re.compile(r'\..+\.(\d+|probe)\.tmp')
_USUAL = re.compile(r'(best_.*_)?(epoch|iter)_\d+\.pth')


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

    If there is a hash file beside it, the content must match it; the checksums inside must match in any case. The
    content is kept for the run that resumes from it (`load.load_checkpoint`).

    Args:
        path: local file or URL.
    """
    try:
        require_file(path)
        file = local_path(path)
        hashes = [line.split(' ')[0] for line in _read_hash_file(file).splitlines()] if file else []
        if hashes and sha256_of(file) not in hashes:
            return 'does not match its .sha256: it is damaged'
        load_checkpoint(path, keep=True)
    except (ValueError, OSError) as error:
        return one_line(error).removeprefix(f'checkpoint {os.fspath(path)!r} ')
    return None


@dataclass(frozen=True)
class Stored:
    """A checkpoint of a training in a folder, and what it says of itself.

    Args:
        path: local file.
        run: identity of the run that wrote it (`meta['run_id']`); None if stock MMEngine or mmsb 0.1 wrote it.
        iteration: completed iterations.
        epoch: completed epochs.
    """

    path: str
    run: str | None
    iteration: int
    epoch: int


def list_checkpoints(
    folders: Iterable[str], template: str | None = None, *, best: bool = False
) -> tuple[list[Stored], list[str]]:
    """List the checkpoints of trainings, the most advanced first; neither names nor times of files decide.

    Only the description in each file is read, so the weights of a listed checkpoint may still be damaged.

    Args:
        folders: local folders.
        template: `filename_tmpl` of the hook, if it is not 'epoch_{}.pth' or 'iter_{}.pth'.
        best: whether to list the best checkpoints too.

    Returns:
        the checkpoints; and one line for each file that is named like one but can't be read, with the reason.
    """
    stored, unreadable = [], []
    for path in _named_like_checkpoints(folders, template, best=best):
        try:
            require_file(path)
            meta = load_checkpoint(path, header=True)['meta']
            run = meta.get('run_id')
            stored.append(Stored(path, str(run) if run else None, int(meta['iter']), int(meta['epoch'])))
        except Exception:  # not a file of torch.save, or not of a training
            unreadable.append(f'{path!r} {why_invalid(path) or "is not the checkpoint of a training"}')
    stored.sort(key=lambda found: (found.iteration, found.epoch, os.stat(found.path).st_mtime_ns), reverse=True)
    return stored, unreadable


def first_valid(stored: Iterable[Stored]) -> tuple[str | None, list[str]]:
    """Return the path of the first valid checkpoint, or None; and one line for each before it, with the reason."""
    skipped = []
    for one in stored:
        reason = why_invalid(one.path)
        if reason is None:
            return one.path, skipped
        skipped.append(f'{one.path!r} {reason}')
    return None, skipped


def set_aside(paths: Iterable[str]) -> list[str]:
    """Move checkpoints, with their hashes, into a folder `set_aside` beside them; return their new paths."""
    moved = []
    for path in map(Path, paths):
        folder, number = path.parent / 'set_aside', 1
        while (folder / path.name).exists():
            number += 1
            folder = path.parent / f'set_aside_{number}'
        folder.mkdir(exist_ok=True)
        if os.path.exists(_hash_file(path)):
            os.replace(_hash_file(path), _hash_file(folder / path.name))
        os.replace(path, folder / path.name)
        moved.append(str(folder / path.name))
    return moved


def is_checkpoint_name(name: str, template: str | None = None, *, best: bool = False) -> bool:
    """Return whether a file name is one that a checkpoint hook gives, by default or by `template`."""
    named = [_USUAL.fullmatch(name)]
    if template:
        number = re.escape(template).replace(r'\{\}', r'\d+')
        named.append(re.fullmatch(f'(best_.*_)?{number}', name))
    return any(named) and (best or not name.startswith('best_'))


def clean_leftovers(folder: str) -> list[str]:
    """Remove the leftovers of interrupted writes in a folder: temporary files, and hashes without a checkpoint."""
    found = []
    for path in Path(folder).iterdir() if os.path.isdir(folder) else []:
        orphan = path.name.endswith(('.pth.sha256', '.pt.sha256')) and not path.with_suffix('').exists()
        if orphan or _LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)
            found.append(path.name)
    return found


def probe(folder: str, size_bytes: int) -> None:
    """Check that a file of this size can be written to a folder, by reserving the space briefly.

    Where the file system reserves none, the free space that it reports must do: reserving it there would mean to write
    the whole file.

    Raises:
        OSError: the file cannot be written.
    """
    os.makedirs(folder, exist_ok=True)
    path = Path(folder, '.checkpoint.probe.tmp')
    try:
        with open(path, 'wb') as file:
            file.write(b'probe')
            file.flush()
            if size_bytes and not _reserve(file.fileno(), size_bytes):
                disk = os.statvfs(folder)
                if disk.f_bavail * disk.f_frsize < size_bytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)


def _reserve(handle: int, size_bytes: int) -> bool:
    """Reserve space for a file by Linux's fallocate; return False where there is no such call.

    C libraries implement `posix_fallocate` by writing to each block if the file system lacks it.
    """
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), 'fallocate', None)
    if fallocate is None:
        return False
    while fallocate(handle, 0, ctypes.c_int64(0), ctypes.c_int64(size_bytes)):
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True


class CheckpointBackend(LocalBackend):
    """MMEngine's backend for local files, with atomic writes of checkpoints."""

    def put(self, obj: bytes | memoryview, filepath: str | os.PathLike) -> None:
        os.makedirs(os.path.dirname(os.path.abspath(filepath)), exist_ok=True)
        write_checkpoint(filepath, bytes(obj))

    def remove(self, filepath: str | os.PathLike) -> None:
        remove_checkpoint(filepath)


register_backend(OWN_BACKEND['backend'], CheckpointBackend, force=True)


def is_local(path: str | os.PathLike, backend_args: dict | None = None, file_client_args: dict | None = None) -> bool:
    """Return whether MMEngine would write a path by its backend for local files, so that ours can do it instead.

    A backend of somebody else may also write local files, in its own way.

    Args:
        path: file or folder.
        backend_args: as of MMEngine's CheckpointHook.
        file_client_args: the same, of its older interface.
    """
    asked = backend_args or file_client_args or {}
    if asked.get('backend'):
        kind = backends.get(asked['backend']) or FileClient._backends.get(asked['backend'])
    else:
        before, colon, _ = os.fspath(path).partition('://')
        prefix = asked.get('prefix') or (before.rpartition(':')[2] if colon else '')
        kind = prefix_to_backends.get(prefix)
    return kind in (LocalBackend, HardDiskBackend, CheckpointBackend)


def pointed_at(work_dir: str | os.PathLike) -> str | None:
    """Return the checkpoint that `last_checkpoint` of a work dir names; None if there is no such file.

    It names a path of the place where the run was. The work dir may have been moved or copied since, so a file of that
    name beside it comes first.
    """
    try:
        named = Path(work_dir, POINTER).read_text(errors='replace').strip()
    except OSError:
        return None
    here = [os.path.join(work_dir, path) for path in (os.path.basename(named), named)] if is_local(named) else []
    return next(filter(os.path.isfile, here), named) or None


def _named_like_checkpoints(folders: Iterable[str], template: str | None, *, best: bool) -> list[str]:
    paths = {}
    for folder in folders:
        for path in Path(folder).iterdir() if os.path.isdir(folder) else ():
            if is_checkpoint_name(path.name, template, best=best) and not path.is_dir():
                paths[path.resolve()] = str(path)
    return sorted(paths.values())


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
