"""Publish a checkpoint: keep some of its keys, and put a hash of the content in its name."""

import hashlib
import io
import os
from collections.abc import Iterable

import torch

from mmsb.checkpoints.load import load_checkpoint
from mmsb.files import write_whole


def publish(path: str, keys: Iterable[str]) -> str:
    """Write a copy of a checkpoint, with only some of its keys, beside it.

    Returns:
        the path, NAME-HASH.pth, where HASH is the first eight digits of the SHA-256, as verified by `download.fetch`.
    """
    keys = set(keys)
    stream = io.BytesIO()
    torch.save({key: value for key, value in load_checkpoint(path).items() if key in keys}, stream)
    content = stream.getvalue()
    published = f'{os.path.splitext(path)[0]}-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    write_whole(published, lambda unfinished: unfinished.write_bytes(content))
    return published
