"""Atomic writes of files and figures, and file hashes."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

CHUNK_BYTES = 1 << 20


def sha256_of(path: str | os.PathLike) -> str:
    """Compute the SHA-256 of a file, as hexadecimal digits.

    Raises:
        OSError: the file can't be read.
    """
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_whole(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Write or replace a file atomically, even across a power failure or with several processes writing it.

    Args:
        path: the file.
        write: called with the path of a temporary file in the same folder, `.NAME.PID.tmp`, which it must write.

    Raises:
        OSError: the file can't be written. After this, or any error that `write` raises, the old file is unchanged.
    """
    path = Path(path)
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        write(unfinished)
        _sync(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync(path.parent)  # otherwise the rename itself may be lost


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write or replace a text file atomically, as `write_whole` does."""
    write_whole(path, lambda unfinished: unfinished.write_text(text, encoding='utf-8'))


def write_figure(path: str | os.PathLike, figure, dpi: int = 150) -> None:
    """Write or replace a Matplotlib figure atomically, in the format of the path's suffix (default: PNG).

    Raises:
        ValueError: Matplotlib does not know the format.
    """
    kind = Path(path).suffix.removeprefix('.') or 'png'
    write_whole(path, lambda unfinished: figure.savefig(unfinished, dpi=dpi, format=kind))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
