"""What a pipeline makes of the numbers in image files: how bright they are, and which way up."""

import io
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image

from .findings import Finding, warning

ORIENTATION = 0x0112  # the EXIF tag
TURNS = {2: 'mirrors', 3: 'turns by 180 degrees', 4: 'mirrors', 5: 'mirrors and turns', 6: 'turns by 90 degrees',
         7: 'mirrors and turns', 8: 'turns by 90 degrees'}  # fmt: skip
KEEP_SIZE = (2, 3, 4)  # the others swap width and height, which the size in the annotations or the mask's shows
BYTES = ('JPEG', 'WEBP', 'GIF', 'BMP', 'MPO')  # formats without more than 8 bits
FULL = 2**15  # 16-bit files that use their range have larger values


def turned(content: bytes, loader, square: bool) -> str:
    """Say what EXIF makes a loader do to an image without changing its size; '' for nothing.

    Args:
        content: of the image file.
        loader: the pipeline's transform that loads images.
        square: whether width and height are equal.
    """
    if loader.color_type not in ('color', 'grayscale') or loader.imdecode_backend not in ('cv2', 'pillow', None):
        return ''
    with Image.open(io.BytesIO(content)) as image:
        found = image.getexif().get(ORIENTATION, 1)
    return TURNS.get(found, '') if square or found in KEEP_SIZE else ''


class Ranges:
    """The ranges of the pixels of a dataset: in files of more than 8 bits, and as the pipeline reads all files."""

    def __init__(self) -> None:
        self.images = self.deep = 0
        self.highest = self.deepest = -np.inf
        self.kind = self.deep_kind = ''

    def add(self, content: bytes, image: np.ndarray) -> None:
        """Note an image: the content of its file, and what the pipeline has made of it."""
        self.images += 1
        if image.size:
            self.kind, self.highest = str(image.dtype), max(self.highest, float(image.max()))
        if _may_be_deep(content):
            raw = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
            if raw is not None and raw.dtype != np.uint8 and raw.size:
                self.deep += 1
                self.deep_kind, self.deepest = str(raw.dtype), max(self.deepest, float(raw.max()))

    def findings(self, key: str, preprocessor: dict) -> Iterator[Finding]:
        """Warn of images that are nearly black, or far too bright, to the network.

        Args:
            key: key of the dataset in the config.
            preprocessor: config of the model's data preprocessor.
        """
        if not self.images:
            return
        mean, std = (np.ravel(preprocessor.get(name) or []) for name in ('mean', 'std'))
        read = f'the pipeline reads {self.kind} values up to {self.highest:,.6g}'
        cure = 'scale the files to 0 to 255, or set mean and std of the data_preprocessor to their range'
        if self.deep and self.kind == 'uint8' and self.deepest < FULL:
            text = f'{self.deep:,} of {self.images:,} images hold {self.deep_kind} values up to {self.deepest:,.6g}, '
            text += f'of which {read}: scale the files to 8 bits, 0 to 255'
            yield warning('range of the pixels', key, '', text)
        elif mean.size and self.highest < mean.min():
            text = f'{read} in {self.images:,} images, all below the mean {mean.tolist()} that is subtracted: {cure}'
            yield warning('range of the pixels', key, '', text)
        elif mean.size and self.highest > 255 >= max(mean.max(), *std):
            text = f'{read}, but mean {mean.tolist()} and std {std.tolist()} are for 0 to 255: {cure}'
            yield warning('range of the pixels', key, '', text)


def _may_be_deep(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content)) as image:  # reads only the header
            return image.format not in BYTES and not (image.format == 'PNG' and content[24] == 8)
    except Exception:  # a format that Pillow does not know
        return True
