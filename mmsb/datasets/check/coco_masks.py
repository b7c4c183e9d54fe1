"""Check COCO's instance masks without drawing them, because pycocotools reads past its memory where they are malformed.

A mask is a list of polygons `[x, y, x, y, ...]`, or a run-length code of the image in columns: the lengths of runs that
are alternately outside and inside, as a list or as the text of pycocotools' `rleToString`, six bits a character.
`LoadAnnotations` of MMDetection ignores objects or parts that have no polygon; pycocotools takes 4 numbers for a box.
"""

import itertools
import math
import re
from collections.abc import Iterator

import numpy as np

from .coco import is_finite, item_of
from .findings import Finding, error, warning

CHUNK = 10_000  # annotations at a time: so many fit into memory as arrays
FAR_PX = 1e6  # pycocotools allocates in proportion to the length of an edge
RLE_TEXT = re.compile('(?:[P-o]{0,6}[0-O])+')  # numbers of 5 bits a character, whose sixth bit says that more follow
MALFORMED = 'malformed mask'


def check(
    path: str, annotations: list[dict], sizes: dict, *, poly2mask: bool = True, evaluated: bool = False
) -> Iterator[Finding]:
    """Check the masks of annotations.

    Args:
        path: path of their file.
        annotations: those whose masks are read.
        sizes: width and height (px) of the images, by id.
        poly2mask: option of `LoadAnnotations`; without it, only polygons are read.
        evaluated: whether pycocotools reads the masks, which, unlike `LoadAnnotations`, drops no part.
    """
    for start in range(0, len(annotations), CHUNK):
        polygons, codes = [], []  # pairs: annotation, its sound polygons or run-length code
        for annotation in annotations[start : start + CHUNK]:
            mask = annotation.get('segmentation')
            found = None
            if not mask:
                text = f'has no mask (segmentation {mask!r}), but instance masks are read'
                found = error('annotation without mask', path, item_of(annotation), text)
            elif isinstance(mask, list):
                found, parts = _polygons(path, annotation, mask, evaluated)
                polygons.append((annotation, parts))
            elif isinstance(mask, dict):
                codes.append((annotation, mask))
                if not poly2mask and not annotation.get('iscrowd'):
                    text = 'is a run-length code, but poly2mask=False reads polygons alone: the object is ignored'
                    found = warning('ignored mask', path, item_of(annotation), text)
            else:
                text = f'segmentation must be a list of polygons or a run-length code, got {mask!r:.60}'
                found = error(MALFORMED, path, item_of(annotation), text)
            if found:
                yield found
        yield from _outside(path, polygons, sizes)
        yield from _codes(path, codes, sizes)


def _polygons(path: str, annotation: dict, mask: list, evaluated: bool) -> tuple[Finding | None, list[list]]:
    """Return what is wrong with a list of polygons, and those that are sound."""
    parts = [part for part in mask if isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0]
    parts = [part for part in parts if _is_sound(part)]
    if len(parts) == len(mask):
        return None, parts
    wrong = next(part for part in mask if part not in parts)
    skipped = isinstance(wrong, list) and (len(wrong) < 6 or len(wrong) % 2)
    text = f'polygon {wrong!r:.60} must be at least 3 points as a list [x, y, x, y, ...] of finite numbers (px)'
    if parts and skipped and not evaluated:
        return warning('polygon dropped', path, item_of(annotation), f'{text}: dropped'), parts
    return error(MALFORMED, path, item_of(annotation), text), []


def _is_sound(part: list) -> bool:
    if {*map(type, part)} <= {int, float}:
        low, high = min(part), max(part)
        return low >= -FAR_PX and high <= FAR_PX and not math.isnan(sum(part))
    return False


def _outside(path: str, polygons: list[tuple[dict, list[list]]], sizes: dict) -> Iterator[Finding]:
    """Report annotations all of whose polygons are outside of their images."""
    polygons = [(annotation, parts) for annotation, parts in polygons if parts]
    if not polygons:
        return
    flat = [part for _, parts in polygons for part in parts]
    points = np.array(list(itertools.chain.from_iterable(flat)), float).reshape(-1, 2)
    first = _starts([len(part) // 2 for part in flat])  # point of each part
    low, high = np.minimum.reduceat(points, first), np.maximum.reduceat(points, first)
    first = _starts([len(parts) for _, parts in polygons])  # part of each annotation
    sides = np.array([_side(sizes.get(annotation.get('image_id'))) for annotation, _ in polygons], float)
    sides = np.repeat(sides, np.diff([*first, len(flat)]), axis=0)
    outside = np.logical_and.reduceat(((low >= sides) | (high <= 0)).any(1), first)
    for i in np.flatnonzero(outside):
        text = 'all polygons are outside the image: the mask is empty'
        yield warning('mask outside', path, item_of(polygons[i][0]), text)


def _starts(lengths: list[int]) -> np.ndarray:
    return np.cumsum([0, *lengths[:-1]])


def _side(size: tuple | None) -> tuple:
    """Return the width and height of an image; infinite where the file has none, which is reported elsewhere."""
    return size if size is not None and all(map(is_finite, size)) else (np.inf, np.inf)


def _codes(path: str, codes: list[tuple[dict, dict]], sizes: dict) -> Iterator[Finding]:
    """Check run-length codes: their size, form and sum."""
    texts = []
    for annotation, mask in codes:
        width, height = _side(sizes.get(annotation.get('image_id')))
        size, counts = mask.get('size'), mask.get('counts')
        text = None
        if not (isinstance(size, list) and len(size) == 2 and {*map(type, size)} == {int}):
            text = f'size of the run-length code must be [height, width], got {size!r:.60}'
        elif width < np.inf and size != [height, width]:
            swapped = ' (swapped)' if size == [width, height] else ''
            text = f'size {size} of the run-length code must be [height, width] of the image{swapped}, '
            text += f'[{height}, {width}]'
        elif isinstance(counts, list):
            sound = {*map(type, counts)} <= {int, float} and all(count >= 0 for count in counts)
            text = _sum_error(sum(counts), size) if sound else 'counts of the run-length code must be lengths in px'
        elif isinstance(counts, str) and RLE_TEXT.fullmatch(counts):
            texts.append((annotation, size, counts))
        else:
            text = f'counts {counts!r:.60} are not a run-length code'
        if text:
            yield error(MALFORMED, path, item_of(annotation), text)
    if texts:
        lowest, totals = decode([counts for _, _, counts in texts])
        for (annotation, size, _), low, total in zip(texts, lowest.tolist(), totals.tolist(), strict=True):
            text = 'counts of the run-length code decode to a negative length' if low < 0 else _sum_error(total, size)
            if text:
                yield error(MALFORMED, path, item_of(annotation), text)


def _sum_error(total: float, size: list[int]) -> str | None:
    if total == size[0] * size[1]:
        return None
    return f'counts of the run-length code sum to {total:,} px, but {size[0]} x {size[1]} has {size[0] * size[1]:,}'


def decode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Decode run-length codes as pycocotools' `rleFrString` does.

    Args:
        texts: codes, each of which matches `RLE_TEXT`.

    Returns:
        the shortest run and the sum of all runs (px) of each code.
    """
    bits = np.frombuffer(''.join(texts).encode('ascii'), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(bits < 32)
    begins = np.concatenate(([0], ends[:-1] + 1))
    place = np.arange(len(bits)) - np.repeat(begins, ends - begins + 1)
    numbers = np.add.reduceat((bits & 31) << (5 * place), begins)
    numbers -= np.where(bits[ends] & 16, 1 << (5 * (place[ends] + 1)), 0)
    first = np.searchsorted(begins, _starts([len(text) for text in texts]))  # number of each code
    place = np.arange(len(numbers)) - np.repeat(first, np.diff([*first, len(numbers)]))
    for odd in (0, 1):  # from the fourth run on, the difference to the run before the last is stored
        chain = (place % 2 == odd) & (place > 0)
        sums = np.cumsum(np.where(chain, numbers, 0))
        before = np.repeat(sums[first], np.diff([*first, len(numbers)]))
        numbers = np.where(chain, sums - before, numbers)
    return np.minimum.reduceat(numbers, first), np.add.reduceat(numbers, first)
