"""Make malformed files from valid ones: images, COCO annotations, class lists and masks."""

import copy
import functools
import io
import json

import numpy as np
from numpy.random import Generator
from PIL import Image

IMAGE_KINDS = ('png', 'jpg', 'webp', 'bmp', 'gif', 'tiff')
SIZE_PX = (40, 30)  # width, height
HEADER_BYTES = 48
_MODES = {'png': ('RGB', 'RGBA', 'L', 'P', 'I;16'), 'jpg': ('RGB', 'L', 'CMYK'), 'webp': ('RGB', 'RGBA'),
          'bmp': ('RGB', 'L', 'P'), 'gif': ('P', 'L'), 'tiff': ('RGB', 'CMYK', 'I;16', 'F')}  # fmt: skip
_FORMATS = {'jpg': 'JPEG'}
_JUNK = (None, True, -1, 0, 2**70, 1e308, float('nan'), float('inf'), '', 'x', '7', [], {}, [[]], {'a': 1}, [None] * 4)


@functools.cache
def sound_image(kind: str, mode: str) -> bytes:
    noise = np.random.default_rng(len(kind + mode)).integers(0, 256, (*SIZE_PX[::-1], 3), np.uint8)
    values = {'I;16': noise[..., 0].astype(np.uint16) * 257, 'F': noise[..., 0].astype(np.float32)}
    picture = Image.fromarray(values[mode]) if mode in values else Image.fromarray(noise).convert(mode)
    file = io.BytesIO()
    picture.save(file, _FORMATS.get(kind, kind.upper()))
    return file.getvalue()


def image(kind: str, random: Generator) -> bytes:
    """Make a malformed image file of one of IMAGE_KINDS."""
    return damaged(sound_image(kind, str(random.choice(_MODES[kind]))), random)


def damaged(content: bytes, random: Generator) -> bytes:
    """Flip bits, truncate, edit the header, or overwrite, repeat or remove a part."""
    data = bytearray(content)
    way = random.integers(6)
    if way == 0:
        for position in random.integers(0, len(data), random.integers(1, 9)):
            data[position] ^= 1 << random.integers(8)
    elif way == 1:
        del data[random.integers(len(data)) :]
    elif way == 2:
        for position in random.integers(0, min(HEADER_BYTES, len(data)), random.integers(1, 5)):
            data[position] = random.choice([0, 1, 127, 128, 255, random.integers(256)])
    else:
        begin = random.integers(len(data))
        end = min(begin + random.integers(1, 65), len(data))
        part = data[begin:end]
        data[begin:end] = (bytes(len(part)), part * 3, b'')[way - 3]
    return bytes(data)


def coco_text(random: Generator) -> bytes:
    """Make a COCO file with values of the wrong type, missing or duplicate values, or damaged text."""
    content = dict(
        images=[dict(id=i, file_name=f'{i}.png', width=SIZE_PX[0], height=SIZE_PX[1]) for i in range(2)],
        annotations=[
            dict(id=i, image_id=i % 2, category_id=7 + i // 2, bbox=[5, 5, 10, 8], area=80, iscrowd=0) for i in range(4)
        ],
        categories=[dict(id=7, name='cat'), dict(id=8, name='dog')],
    )
    if random.integers(8) == 0:
        return damaged(json.dumps(content).encode(), random)
    for _ in range(random.integers(1, 4)):
        _change(content, random)
    return json.dumps(content).encode()


def _change(node, random: Generator) -> None:
    """Change one place in a tree of lists and dicts."""
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = keys[random.integers(len(keys))]
        if not isinstance(node[key], (dict, list)) or random.integers(4) == 0:
            break
        node = node[key]
    way = random.integers(6)
    if way == 0:
        del node[key]
    elif way == 1 and isinstance(node, list):
        node.append(copy.deepcopy(node[key]))
    else:
        node[key] = copy.deepcopy(_JUNK[random.integers(len(_JUNK))])


def annotation_lines(random: Generator) -> bytes:
    """Make a damaged list of lines `FILE LABEL`."""
    lines = [f'{i % 2}.png {i % 2}' for i in range(8)]
    junk = (
        '',
        ' ',
        '0.png',
        '0.png -1',
        '0.png 9',
        '0.png 1.5',
        '0.png 1e3',
        'a b c 1',
        '../x.png 0',
        '\x00 0',
        '0.png \u0661',
    )
    for _ in range(random.integers(1, 4)):
        lines[random.integers(len(lines))] = junk[random.integers(len(junk))]
    content = '\n'.join(lines).encode()
    return damaged(content, random) if random.integers(2) else content


def mask(random: Generator) -> bytes:
    """Make a mask that has labels outside the classes, has the wrong size or type, or is damaged."""
    size = SIZE_PX if random.integers(4) else tuple(int(side) for side in random.integers(1, 60, 2))
    kind, highest = ((np.uint8, 151), (np.uint8, 256), (np.uint16, 300))[random.integers(3)]
    labels = random.integers(0, highest, size[::-1]).astype(kind)
    file = io.BytesIO()
    picture = Image.fromarray(labels)
    (picture.convert('RGB') if kind is np.uint8 and not random.integers(5) else picture).save(file, 'PNG')
    return damaged(file.getvalue(), random) if random.integers(2) else file.getvalue()
