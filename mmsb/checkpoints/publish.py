"""Checkpoints to hand on: some of their keys, under a name that holds a hash of the content."""

import hashlib
import io
import os
from collections.abc import Iterable

import torch

from mmsb.checkpoints.load import load_checkpoint
from mmsb.files import write_whole


def publish(path: str, keys: Iterable[str]) -> str:
    """Write a checkpoint beside another one that has only some of its keys.

    Returns:
        the path: NAME-HASH.pth, HASH the first eight digits of its SHA-256, as `download.fetch` verifies it.
    """
    keys = set(keys)
    stream = io.BytesIO()
    torch.save({key: value for key, value in load_checkpoint(path).items() if key in keys}, stream)
    content = stream.getvalue()
    published = f'{os.path.splitext(path)[0]}-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    write_whole(published, lambda unfinished: unfinished.write_bytes(content))
    return published
