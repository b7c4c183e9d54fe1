"""A reader of the files of torch.save in which nothing of the file can run, the same on every version of torch.

Both formats: the zip of torch >= 1.6, and the pickles in a row before it. torch's own reader is not used, not even with
`weights_only=True`: before 2.6 it hands TorchScript over to be run and before 2.10 it reads beyond a record that is too
short; told to allow NumPy's types it makes arrays of arbitrary addresses out of forged dtypes in any version; and it
bounds neither time nor memory. The pickles inside are read by `data_pickle.py`.
"""

import io
import os
import struct
import zipfile
from typing import BinaryIO

import torch

from mmsb.checkpoints.data_pickle import DataUnpickler
from mmsb.checkpoints.data_values import are_sizes, require

_ZIP, _MAGIC, _PROTOCOL = b'PK\x03\x04', 0x1950A86A20F9469CFC6C, 1001


def read(path: str | os.PathLike | BinaryIO):
    """Read a file of torch.save onto the CPU.

    Raises:
        OSError: it can't be opened.
        Exception: of any kind, if it is no such file, is damaged, or holds what is not data.
    """
    if not isinstance(path, (str, os.PathLike)):
        return _read(path)
    with open(path, 'rb') as file:
        return _read(file)


def _read(file: BinaryIO):
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(len(_ZIP))
    file.seek(0)
    return _read_zip(file, size) if start == _ZIP else _read_row(file, size)


def _read_zip(file: BinaryIO, size: int):
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
        require(len(records) == len(archive.infolist()), 'zip: two records of one name')
        scripts = any(name.endswith('/constants.pkl') for name in records)
        require(not scripts, 'zip: TorchScript, which is code')
        stored = all(info.compress_type == zipfile.ZIP_STORED for info in records.values())
        require(stored and sum(info.file_size for info in records.values()) <= size, 'zip: records larger than it')
        folders = {name.partition('/')[0] for name in records}
        outside = any(name.startswith(('/', '\\')) or '..' in name.split('/') for name in records)
        require(len(folders) == 1 and not outside, 'zip: records in more than one folder')
        (folder,) = folders
        require(f'{folder}/data.pkl' in records, 'zip: no data.pkl')
        order = f'{folder}/byteorder'
        require(order not in records or archive.read(order).strip() == b'little', 'zip: byte order is not little')
        loaded: dict[str, torch.Tensor] = {}

        def record(key: str, nbytes: int) -> torch.Tensor:
            name = f'{folder}/data/{key}'
            fits = name in records and records[name].file_size == nbytes
            require(fits, f'storage {key!r}: its record has not {nbytes:,} bytes')
            if key not in loaded:
                loaded[key] = torch.empty(nbytes, dtype=torch.uint8)
                with archive.open(name) as source:
                    _fill(loaded[key], source)
            return loaded[key]

        return DataUnpickler(io.BytesIO(archive.read(f'{folder}/data.pkl')), record, size).load()


def _read_row(file: BinaryIO, size: int):
    loaded: dict[str, torch.Tensor] = {}
    item_sizes: dict[str, int] = {}
    views: dict[str, torch.Tensor] = {}
    left = size

    def record(key: str, nbytes: int, item_size: int = 1, view: tuple | None = None) -> torch.Tensor:
        nonlocal left
        if key not in loaded:
            left -= nbytes
            require(left >= 0, f'storage {key!r}: {nbytes:,} bytes in a file of {size:,}')
            loaded[key], item_sizes[key] = torch.empty(nbytes, dtype=torch.uint8), item_size
        require(len(loaded[key]) == nbytes and item_sizes[key] == item_size, f'storage {key!r}: two sizes')
        if view is None:
            return loaded[key]
        plain = type(view) is tuple and len(view) == 3 and type(view[0]) is str and are_sizes(view[1:])
        require(plain, 'view: not a name, an offset and a size')
        begin, count = (item_size * i for i in view[1:])
        require(begin + count <= nbytes, 'view: beyond its storage')
        return views.setdefault(view[0], loaded[key][begin : begin + count])

    def next_pickle():
        return DataUnpickler(file, record, size).load()

    require(next_pickle() == _MAGIC, 'no file of torch.save')
    require(next_pickle() == _PROTOCOL, 'no protocol of torch.save')
    system = next_pickle()
    require(type(system) is dict and system.get('little_endian', True) is True, 'byte order is not little')
    content = next_pickle()
    keys = next_pickle()
    plain = type(keys) is list and all(type(key) is str for key in keys)
    require(plain and sorted(keys) == sorted(loaded), 'storages: not those of the tensors')
    for key in keys:
        (count,) = struct.unpack('<q', file.read(8))
        require(
            count * item_sizes[key] == len(loaded[key]),
            f'storage {key!r}: its record has not {len(loaded[key]):,} bytes',
        )
        _fill(loaded[key], file)
    return content


def _fill(content: torch.Tensor, source: BinaryIO) -> None:
    target, done = memoryview(content.numpy()), 0
    while done < len(target):
        count = source.readinto(target[done:])
        require(bool(count), 'it ends too early')
        done += count
    source.read(1 if isinstance(source, zipfile.ZipExtFile) else 0)  # at its end a zip compares its checksum
