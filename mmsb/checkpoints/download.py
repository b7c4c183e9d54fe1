"""Checkpoints from the network: downloaded as a whole or not at all, verified by the hash in their name, and kept.

What CheckpointLoader of MMEngine knows is known here: http(s)://, torchvision://, open-mmlab://, mmcls://, s3://,
petrel://. The hash is the convention of torchvision and OpenMMLab: NAME-HASH.pth, HASH the first eight or more
hexadecimal digits of the SHA-256 of the file. It is compared at every use: a file in the cache can be damaged too.

Differs from mmengine's: the file is read as data afterwards (`load.py`); a file whose name has no hash is kept
under the hash of its address, so that two sites' `model.pth` are two files; processes of one machine download once.
"""

import contextlib
import difflib
import hashlib
import logging
import os
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

import torch
from mmengine.fileio import get as read_bytes
from mmengine.logging import print_log
from mmengine.runner import checkpoint as catalogue

from mmsb.files import CHUNK_BYTES, sha256_of, write_whole
from mmsb.options import one_line

try:
    import fcntl
except ImportError:  # Windows: each process downloads by itself
    fcntl = None

TIMEOUT_S = 60
_HASH = re.compile(r'-([0-9a-f]{8,64})(\.[A-Za-z]\w*)+$')
_STORES = re.compile(r'(\S+:)?(s3|petrel)://')
SCHEMES = (
    *('http://', 'https://', 'torchvision://', 'modelzoo://', 'open-mmlab://', 'openmmlab://', 'mmcls://'),
    *('s3://', 'petrel://'),
)


def fetch(url: str) -> str:
    """Find a checkpoint in the cache, or download it.

    Args:
        url: address, or name in the catalogue of a library such as 'torchvision://resnet50'.

    Returns:
        path of the local file.

    Raises:
        ValueError: for an unknown scheme or name; if it cannot be downloaded as a whole; if it is not the file that its
            name says.
    """
    address = resolve(url)
    if '://' not in address:
        return address
    base = re.sub(r'[^\w.-]', '_', unquote(os.path.basename(urlparse(address).path))).lstrip('.') or 'checkpoint'
    found = _HASH.search(base)
    expected = found[1] if found else None
    if expected is None:
        stem, suffix = os.path.splitext(base)
        base = f'{stem}-of-{hashlib.sha256(address.encode()).hexdigest()[:16]}{suffix}'
    folder = Path(torch.hub.get_dir(), 'checkpoints')
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / base
    with _alone(file):
        there = file.is_file()
        damaged = there and expected is not None and not sha256_of(file).startswith(expected)
        if damaged:
            text = f'{file} is not the file of {url!r} any more: it is fetched again'
            print_log(text, logger='current', level=logging.WARNING)
        if damaged or not there:
            _download(url, address, file, expected)
    if expected is None:
        text = f'{url!r} has no hash in its name (NAME-HASH.pth): {file} cannot be verified; it is read as data'
        print_log(text, logger='current', level=logging.WARNING)
    return str(file)


def resolve(url: str) -> str:
    """Return the address of a checkpoint, or the path that a catalogue gives."""
    scheme, _, name = url.partition('://')
    if scheme in ('http', 'https') or _STORES.match(url):
        return url
    if scheme in ('torchvision', 'modelzoo'):
        return _look_up(url, name, catalogue.get_torchvision_models())
    if scheme in ('open-mmlab', 'openmmlab'):
        address = _look_up(url, catalogue.get_deprecated_model_names().get(name, name), catalogue.get_external_models())
        return address if '://' in address else os.path.join(catalogue._get_mmengine_home(), address)
    if scheme == 'mmcls':
        return _look_up(url, name, catalogue.get_mmcls_models())
    raise ValueError(f'checkpoint {url!r} must be a file or begin with one of {", ".join(SCHEMES)}')


def _look_up(url: str, name: str, addresses: dict[str, str]) -> str:
    if name not in addresses:
        near = difflib.get_close_matches(name, addresses, n=3)
        hint = f' (did you mean {" or ".join(near)}?)' if near else ''
        raise ValueError(f'checkpoint {url!r} is none of the {len(addresses)} names of its catalogue{hint}')
    return addresses[name]


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Let one process of a machine after the other come here."""
    if fcntl is None:
        yield
        return
    with open(file.with_name(f'.{file.name}.lock'), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(url: str, address: str, file: Path, expected: str | None) -> None:
    """Download into a file beside, verify it, and only then give it its name."""
    print_log(f'downloading {address} to {file}', logger='current')

    def write(unfinished: Path) -> None:
        with unfinished.open('wb') as out:
            for chunk in _chunks(url, address):
                out.write(chunk)
        got = sha256_of(unfinished)
        if expected and not got.startswith(expected):
            raise ValueError(
                f'checkpoint {url!r} is not the file that its name says: SHA-256 {got[:16]}..., needs {expected}...'
            )

    write_whole(file, write)


def _chunks(url: str, address: str) -> Iterator[bytes]:
    if _STORES.match(address):
        yield read_bytes(address, backend_args=dict(backend='petrel'))
        return
    request = urllib.request.Request(address, headers={'User-Agent': 'mmsb'})
    count = 0
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as source:
            length = source.headers.get('Content-Length')
            while chunk := source.read(CHUNK_BYTES):
                count += len(chunk)
                yield chunk
    except Exception as error:  # of the network, of HTTP, of TLS
        raise ValueError(f'checkpoint {url!r} cannot be downloaded: {one_line(error)}') from error
    if length is not None and count != int(length):
        raise ValueError(f'checkpoint {url!r} came with {count:,} of {int(length):,} bytes: try again')
