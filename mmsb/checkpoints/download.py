"""Download checkpoints atomically, verify them by the hash in their name, and cache them.

The schemes are those of MMEngine's CheckpointLoader: http(s)://, torchvision://, open-mmlab://, mmcls://, s3://,
petrel://. The hash follows the convention of torchvision and OpenMMLab: NAME-HASH.pth, where HASH is the first eight or
more hexadecimal digits of the SHA-256 of the file. It is verified at every use, because a cached file can be damaged.

Differs from mmengine: the file is then loaded as data (`load.py`); a file without a hash in its name is cached under
the hash of its URL, so `model.pth` from two sites gives two files; all processes of a machine share one download.
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
except ImportError:  # Windows: each process downloads separately
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
        url: URL, or a name in the catalogue of a library such as 'torchvision://resnet50'.

    Returns:
        path of the local file.

    Raises:
        ValueError: if the scheme or name is unknown, the download fails or is incomplete, or the content does not match
            the hash in the name.
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
            text = f'{file} does not match the hash in {url!r}: downloading it again'
            print_log(text, logger='current', level=logging.WARNING)
        if damaged or not there:
            _download(url, address, file, expected)
    if expected is None:
        text = f'{url!r} has no hash in its name (NAME-HASH.pth): {file} cannot be verified; it is loaded as data'
        print_log(text, logger='current', level=logging.WARNING)
    return str(file)


def resolve(url: str) -> str:
    """Return the URL of a checkpoint, or the local path given by a catalogue."""
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
    raise ValueError(f'checkpoint {url!r} must be a file or start with one of {", ".join(SCHEMES)}')


def _look_up(url: str, name: str, addresses: dict[str, str]) -> str:
    if name not in addresses:
        near = difflib.get_close_matches(name, addresses, n=3)
        hint = f' (did you mean {" or ".join(near)}?)' if near else ''
        raise ValueError(f'checkpoint {url!r} is not among the {len(addresses)} names in its catalogue{hint}')
    return addresses[name]


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Let only one process of a machine enter at a time."""
    if fcntl is None:
        yield
        return
    with open(file.with_name(f'.{file.name}.lock'), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(url: str, address: str, file: Path, expected: str | None) -> None:
    """Download to a temporary file, verify it, and only then rename it."""
    print_log(f'downloading {address} to {file}', logger='current')

    def write(unfinished: Path) -> None:
        with unfinished.open('wb') as out:
            for chunk in _chunks(url, address):
                out.write(chunk)
        got = sha256_of(unfinished)
        if expected and not got.startswith(expected):
            raise ValueError(
                f'checkpoint {url!r} does not match the hash in its name: SHA-256 {got[:16]}..., needs {expected}...'
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
    except Exception as error:  # from the network, HTTP or TLS
        raise ValueError(f'checkpoint {url!r} cannot be downloaded: {one_line(error)}') from error
    if length is not None and count != int(length):
        raise ValueError(f'checkpoint {url!r} is incomplete: got {count:,} of {int(length):,} bytes: try again')
