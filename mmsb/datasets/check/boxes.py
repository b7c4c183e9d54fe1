"""Check the labels and boxes of samples as a dataset has parsed them, whatever format they come from."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from .coco import ROUNDING_PX
from .findings import Finding, error, warning

BEYOND = 'label beyond the classes'


def check_labels(
    key: str, samples: list[dict], count: int | None, file: str | None, check: Callable[[dict], list[Finding]]
) -> Iterator[Finding]:
    """Check the labels of whole images.

    Args:
        key: key of the dataset in the config.
        samples: samples of the dataset.
        count: number of classes of the network; None if that is unknown.
        file: the annotation file, if there is one.
        check: checks the label of one sample.
    """
    occurring, several, where = set(), False, file or key
    for sample in samples:
        label = sample.get('gt_label')
        label = label.tolist() if isinstance(label, np.ndarray) else label
        values = label if isinstance(label, (list, tuple)) else [label]
        if not all(isinstance(value, (int, str)) for value in values):  # none, or of several tasks
            continue
        if any(isinstance(value, str) for value in values):
            yield error('malformed label', where, str(sample.get('img_path', '')), f'must be a number, got {label!r}')
            return
        occurring.update(values)
        several |= isinstance(label, list)
    if several and not occurring:
        yield error('empty split', where, '', 'no image has a label left')
    if not occurring or count is None:
        return
    low, high = min(occurring), max(occurring)
    if low == 1 and high == count:
        text = f'labels go from 1 to {high}, but must go from 0 to {count - 1}, for {count} classes: subtract 1'
        yield error(BEYOND, where, '', text)
    elif low < 0 or high >= count:
        for sample in samples:
            yield from check(sample)
    elif file and low == 1 and high == count - 1 == len(occurring) > 1:
        text = (
            f'labels go from 1 to {high}, and 0, of {count} classes, occurs nowhere: if they are meant to start at 1, '
        )
        yield warning('label 0 occurs nowhere', where, '', f'{text}subtract 1 and set num_classes to {high}')


def check_boxes(key: str, samples: list[dict], count: int | None, *, extends: bool) -> Iterator[Finding]:
    """Check the boxes of samples, [x1, y1, x2, y2] in px, and their labels.

    Args:
        key: key of the dataset in the config.
        samples: samples of the dataset.
        count: number of its classes; None if labels mean something else.
        extends: whether boxes may extend past the image, as those of people behind its border.
    """
    for sample in samples:
        size = sample.get('width'), sample.get('height')
        file = str(sample.get('xml_path') or sample.get('img_path') or key)
        for number, instance in enumerate(sample.get('instances') or []):
            if not isinstance(instance, dict):
                continue
            item = f'box {number}'
            label = instance.get('bbox_label')
            if isinstance(label, int) and count is not None and not -1 <= label < count:
                text = f'label {label} is outside the {count} classes (0 to {count - 1})'
                yield error(BEYOND, file, item, text)
            if 'bbox' in instance and not instance.get('ignore_flag'):
                yield from _check_box(file, item, instance['bbox'], size, extends)


def has_boxes(samples: list[dict]) -> bool | None:
    """Tell whether any sample has a box; None if they are no samples for detection."""
    found = [sample['instances'] for sample in samples if isinstance(sample.get('instances'), list)]
    return any(map(len, found)) if found else None


def _check_box(file: str, item: str, box, size: tuple, extends: bool) -> Iterator[Finding]:
    values = np.asarray(box)
    if values.shape != (4,) or values.dtype.kind not in 'iuf':
        yield error('malformed box', file, item, f'must be 4 numbers (x1, y1, x2, y2), got {box!r}')
        return
    x1, y1, x2, y2 = box = values.tolist()
    if not all(map(math.isfinite, box)):
        yield error('non-finite box', file, item, f'{box} is not finite: nor would the loss be')
    elif x2 < x1 or y2 < y1:
        yield error('reversed box', file, item, f'{box} has its corners in the wrong order: must be x1, y1, x2, y2')
    elif x2 == x1 or y2 == y1:
        yield warning('empty box', file, item, f'{box} has zero area')
    elif all(isinstance(side, (int, float)) for side in size) and not extends:
        width, height = size
        beyond = max(-x1, -y1, x2 - width, y2 - height)
        if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
            yield warning('box outside', file, item, f'{box} is outside the image of {width} x {height} px')
        elif beyond > ROUNDING_PX:
            text = f'{box} extends past the image of {width} x {height} px by {beyond:g} px: clipped'
            yield warning('box partly outside', file, item, text)
