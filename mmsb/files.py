"""Files that are whole or not there, and their hashes."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

CHUNK_BYTES = 1 << 20


def sha256_of(path: str | os.PathLike) -> str:
    """Compute the SHA-256 of a file, in hexadecimal digits.

    Raises:
        OSError: it can't be read.
    """
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_whole(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Replace a file in one step: whole or not at all, also after a power failure. Several processes may do so.

    Args:
        path: of the file.
        write: gets the path of an unfinished file beside it, `.NAME.PID.tmp`.

    Raises:
        OSError: it can't be written; the old file is as it was. Likewise for whatever `write` raises.
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
    _sync(path.parent)  # else the rename itself may be lost


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replace a text file in one step, as `write_whole` does."""
    write_whole(path, lambda unfinished: unfinished.write_text(text))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
