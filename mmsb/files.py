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
    """Write a file in one step: whoever reads it finds the old content or the new. Several processes may do so.

    Args:
        path: of the file.
        write: gets the path of an unfinished file beside it; if it raises, that one is removed and the old one stays.
    """
    unfinished = Path(f'{os.fspath(path)}.{os.getpid()}.tmp')
    try:
        write(unfinished)
        with unfinished.open('rb') as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
