"""Load images that may be damaged: raise an error that names the file, or use another sample instead.

mmcv's LoadImageFromFile does not name the file when a decoder fails, and fills the missing part of a truncated image
with grey. The transforms that load masks name no file either, and so `load_sample` does.
"""

import io
import logging
import warnings
import zlib
from collections.abc import Callable
from typing import Literal

import mmcv
import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.logging import print_log
from PIL import Image, UnidentifiedImageError

from mmsb.datasets.check.samples import damage
from mmsb.options import choose, known_options, one_line, positive_integer
from mmsb.registry import TRANSFORMS

MAX_PIXELS = 178_956_970  # Pillow's limit for a decompression bomb: half a gigabyte
_SLOTS = 2**16
_TAIL_BYTES = 64  # some cameras append data to a file
_ENDS = {b'\xff\xd8\xff': b'\xff\xd9', b'\x89PNG': b'IEND\xaeB`\x82', b'GIF8': b';'}  # by how a file starts


class BadImageError(ValueError):
    """An image cannot be loaded; the message, one line, names the file and the reason."""


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """Load an image as 8-bit BGR whatever its file holds: CMYK, 16 bits, a palette, transparency (which is dropped).

    It loads the first frame of an animation. These are errors: a truncated file, an empty file, floating-point pixels
    (their range is unknown), and too many pixels. For an intact file, the only extra cost over mmcv's transform is a
    look at the header and the end. Only `tools/check_data.py` finds damage inside a file that the decoder tolerates.

    With `on_error='skip'`, the dataset uses another random sample (`BaseDataset.max_refetch` of mmengine, in all three
    libraries), and each skipped file is logged once. Skipping changes the class frequencies. MMEngine does not allow
    skipping in a test, where every sample counts.

    Adds to the sample: img [H, W, 3], img_shape and ori_shape (height, width in px).

    Args:
        on_error: 'raise' or 'skip'.
        max_pixels: larger images are errors.
        to_float32, color_type, imdecode_backend, backend_args: see mmcv's LoadImageFromFile.

    Raises:
        ValueError: if an image cannot be loaded; one line that names the file.
    """

    @known_options
    def __init__(
        self,
        *,
        on_error: Literal['raise', 'skip'] = 'raise',
        max_pixels: int = MAX_PIXELS,
        to_float32: bool = False,
        color_type: str = 'color',
        imdecode_backend: str = 'cv2',
        backend_args: dict | None = None,
    ) -> None:
        super().__init__(to_float32, color_type, imdecode_backend, backend_args=backend_args)
        self.on_error = choose('on_error', on_error, ('raise', 'skip'))
        self.max_pixels = positive_integer('max_pixels', max_pixels)
        # Hashes of the paths of skipped files, shared by all workers of this process in all epochs.
        self._skipped = torch.zeros(_SLOTS, dtype=torch.uint8).share_memory_()

    @property
    def skipped_files(self) -> int:
        """Number of files skipped so far by this process and its workers."""
        return int(self._skipped.sum())

    def transform(self, results: dict) -> dict | None:
        path = results['img_path']
        try:
            image = self._load(path)
        except BadImageError as error:
            if self.on_error == 'raise':
                raise
            slot = zlib.crc32(str(path).encode()) % _SLOTS
            if not self._skipped[slot]:
                self._skipped[slot] = 1
                text = f'{error}; skipped ({self.skipped_files:,} files so far)'
                print_log(text, logger='current', level=logging.WARNING)
            return None
        results['img'] = image.astype(np.float32) if self.to_float32 else image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def _load(self, path: str) -> np.ndarray:
        try:
            content = fileio.get(path, backend_args=self.backend_args)
        except Exception as error:  # from any storage backend
            raise BadImageError(f'image {path!r} cannot be read: {one_line(error)}') from error
        if self.imdecode_backend == 'tifffile':  # it reads more than Pillow knows, such as six channels
            flaw = None if content else 'is empty (0 bytes)'
        else:
            flaw = _flaw(content, self.max_pixels)
        if flaw:
            raise BadImageError(f'image {path!r} {flaw}')
        try:
            image = mmcv.imfrombytes(content, flag=self.color_type, backend=self.imdecode_backend)
            if image is None:  # OpenCV < 4.12 does not read GIF
                image = mmcv.imfrombytes(content, flag=self.color_type, backend='pillow')
        except Exception as error:  # decoders raise exceptions of any type
            raise BadImageError(f'image {path!r} cannot be decoded: {one_line(error)}') from error
        if image.dtype != np.uint8 and self.color_type != 'unchanged':
            said = f"must have 8-bit pixels, got {image.dtype}: color_type='unchanged' takes them"
            raise BadImageError(f'image {path!r} {said}')
        return image

    def __repr__(self) -> str:
        return f'{super().__repr__()[:-1]}, on_error={self.on_error!r}, max_pixels={self.max_pixels})'


def load_sample(dataset, index: int):
    """Load a sample of a dataset; an error in any step of its pipeline names the sample's files.

    Raises:
        BadImageError: one of its files is damaged; one line with the index and that file.
        ValueError: it can't be loaded for another reason; one line with the index and all of its files.
    """
    try:
        return dataset[index]
    except Exception as error:  # from any transform
        text, files = one_line(error), _files(dataset, index)
        if any(path in text for _, path in files):
            raise
        flaws = [f'{key} {path!r} {flaw}' for key, path in files if (flaw := flaw_of(path))]
        named = ', '.join(f'{key} {path!r}' for key, path in files)
        if flaws:
            raise BadImageError(f'sample {index}: {flaws[0]}') from error
        raise ValueError(f'sample {index}{f" ({named})" if named else ""} cannot be loaded: {text}') from error


def _files(dataset, index: int) -> list[tuple[str, str]]:
    """List the key and path of each file of a sample."""
    try:
        info = dataset.get_data_info(index)
        paths = {key: value for key, value in info.items() if key.endswith('path')}
    except Exception:  # a dataset of another kind, or what could not be loaded is the annotation
        return []
    return [
        (key, path)
        for key, value in paths.items()
        for path in (value if isinstance(value, (list, tuple)) else [value])
        if isinstance(path, str) and path
    ]


def flaw_of(path: str) -> str | None:
    """Describe why a local file is not a sound image; None if it may be one, or is stored elsewhere."""
    return _judge(path, lambda content: _flaw(content, MAX_PIXELS))


def missing_pixels(path: str) -> str | None:
    """Describe why pixels of a local image are lost, which decoders fill with grey; None if none seem to be."""
    return _judge(path, _lost)


def _judge(path: str, judge: Callable[[bytes], str | None]) -> str | None:
    if '://' in path:
        return None
    try:
        with open(path, 'rb') as file:
            content = file.read()
    except OSError as error:
        return f'cannot be read: {error.strerror}'
    return judge(content)


def _flaw(content: bytes, max_pixels: int) -> str | None:
    """Describe why an image file should not be decoded; None for an intact file."""
    if not content:
        return 'is empty (0 bytes)'
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with Image.open(io.BytesIO(content)) as image:  # reads only the header
                mode, (width, height) = image.mode, image.size
    except Image.DecompressionBombError as error:
        return f'has too many pixels: {one_line(error)}'
    except UnidentifiedImageError:
        return f'is not an image: it starts with {content[:8]!r}'
    except Exception as error:  # an inconsistent header
        return f'is damaged: {one_line(error)}'
    if width * height > max_pixels:
        return f'has {width} x {height} px, more than max_pixels={max_pixels:,}'
    if mode.startswith('F'):
        return 'has floating-point pixels: save it with 8 or 16 bits'
    return _lost(content)


def _lost(content: bytes) -> str | None:
    """Describe why pixels of an image file are lost; None if none seem to be."""
    if _ends_well(content):
        return None
    found = damage(content)  # decodes the whole file
    return found[0] if found and found[1] else None


def _ends_well(content: bytes) -> bool:
    """Check cheaply that a file is not truncated; False does not prove that it is."""
    if content.startswith(b'RIFF'):  # WebP
        return int.from_bytes(content[4:8], 'little') + 8 <= len(content)
    return any(content.startswith(start) and end in content[-_TAIL_BYTES:] for start, end in _ENDS.items())
