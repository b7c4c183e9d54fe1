"""Check what a COCO metric takes for the truth: its annotation file, and whether that is the truth of its split.

`CocoMetric` evaluates all images of its file, known by their ids alone: an image that was not predicted counts as
missed. The evaluation (`pycocotools.cocoeval`, and lvis likewise) stores the matched annotation's id, 0 for no match.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np
from mmengine.registry import METRICS

from . import coco, coco_masks
from .findings import Finding, error
from .names import some
from .samples import type_of

if TYPE_CHECKING:
    from .dataset import DatasetCheck

BY_SAMPLES = {'CocoMetric', 'VOCMetric', 'OpenImagesMetric'}  # take the truth from the samples if they have no file
OTHER_IMAGES = 'metric of other images'
EMPTY = 'empty split'


def check(key: str, metric: dict, path: str | None, checks: list['DatasetCheck']) -> Iterator[Finding]:
    """Check a metric of COCO's family against the datasets whose predictions it gets; silent for any other metric.

    Args:
        key: key of the metric in the config.
        metric: config of the metric.
        path: path of its annotation file, which exists; None if it has none, or a remote one.
        checks: the datasets.
    """
    bases = {base.__name__ for base in getattr(type_of(METRICS, metric), '__mro__', ())}
    whole = 'CocoMetric' in bases
    if whole:
        yield from _shared_ids(key, checks)
    listed = [sample for one in checks for sample in one.samples]
    if path is None:
        if bases & BY_SAMPLES and not metric.get('ann_file') and listed and not any(map(_is_labelled, listed)):
            yield error(EMPTY, key, '', 'has nothing to measure: no sample of the split has a box of a class')
        return
    if not (whole or 'CocoPanopticMetric' in bases):
        return
    same = next((one for one in checks if one.path and os.path.realpath(one.path) == os.path.realpath(path)), None)
    content, found = (same.content, []) if same else coco.read(path, training=False)
    yield from found
    if content is None:
        return
    yield from _check_images(key, path, content, checks)
    if whole:
        yield from _check_truth(key, metric, path, content, checks, own=same is None, all_classes='LVISMetric' in bases)


def _is_labelled(sample: dict) -> bool:
    return any(not instance.get('ignore_flag') for instance in sample.get('instances') or [])


def _ids(one: 'DatasetCheck') -> set:
    return {sample['img_id'] for sample in one.samples if 'img_id' in sample}


def _more(found: Collection) -> str:
    return f', as are {len(found) - 1:,} more' if len(found) > 1 else ''


def _shared_ids(key: str, checks: list['DatasetCheck']) -> Iterator[Finding]:
    counts = Counter(number for one in checks for number in _ids(one))
    shared = [number for number, count in counts.items() if count > 1]
    if shared:
        text = f'is in several datasets of the split{_more(shared)}: {key} takes them for one image; '
        text += 'number the images apart, or give each dataset its metric (mmdet.MultiDatasetsEvaluator)'
        yield error('shared image ids', checks[0].key, f'image id {shared[0]}', text)


def _check_images(key: str, path: str, content: dict, checks: list['DatasetCheck']) -> Iterator[Finding]:
    """Check that the images of the split are in the file, and are the same images there."""
    known = {image.get('id'): image for image in content['images']}
    alike = {coco.plain(number): number for number in known}
    for one in checks:
        ours = _ids(one)
        if one.content is not None and one.content is not content:
            differing = sorted(_differing(one, content, known, ours & known.keys()), key=str)
            if differing:
                text = f'is another one than in {one.path}{_more(differing)}: {key} measures against other data; '
                text += f'set {key}.ann_file={one.path!r}'
                yield error(OTHER_IMAGES, path, f'image id {differing[0]}', text)
        for number in sorted(ours - known.keys(), key=str):
            text = f'is in the split, but not in {key}.ann_file{coco.other_type(number, alike)}'
            yield error(OTHER_IMAGES, path, f'image id {number}', text)


def _differing(one: 'DatasetCheck', content: dict, known: dict, numbers: set) -> set:
    """Return the ids whose file name, size or boxes differ between the file of a dataset and that of its metric."""
    differing = set()
    for image in one.content['images']:
        number = image.get('id')
        if number in numbers:
            other = known[number]
            names = [os.path.basename(str(entry.get('file_name'))) for entry in (image, other)]
            sizes = [(entry.get('width'), entry.get('height')) for entry in (image, other)]
            if (other.get('file_name') and names[0] != names[1]) or (None not in sizes[1] and sizes[0] != sizes[1]):
                differing.add(number)
    if one.content['annotations']:
        order = sorted(numbers - differing, key=str)
        places = {number: place for place, number in enumerate(order)}
        mine, theirs = (_rows(file, places, one.classes) for file in (one.content, content))
        differing.update(order[place] for place in _differing_rows(mine, theirs, len(one.classes or ()) + 1))
    return differing


def _rows(content: dict, places: dict, classes: tuple | None) -> np.ndarray:
    """Return the boxes of some images and classes as rows: place of the image and class, x, y, w, h (px)."""
    names = {category['id']: category.get('name') for category in content['categories'] if 'id' in category}
    labels = {name: label for label, name in enumerate(classes or ())}
    rows = []
    for annotation in content['annotations']:
        place, name = places.get(annotation.get('image_id')), names.get(annotation.get('category_id'))
        box = annotation.get('bbox')
        if place is None or (classes and name not in labels) or not isinstance(box, list) or len(box) != 4:
            continue
        if all(map(coco.is_finite, box)):
            rows.append((place * (len(labels) + 1) + labels.get(name, 0), *box))
    return np.array(rows, float).reshape(-1, 5)


def _differing_rows(mine: np.ndarray, theirs: np.ndarray, groups: int) -> set[int]:
    """Return the places of images whose rows differ, but for rounding, in any order."""
    counts = [Counter(rows[:, 0].astype(int).tolist()) for rows in (mine, theirs)]
    differing = {key // groups for key in (counts[0] - counts[1]) | (counts[1] - counts[0])}
    mine, theirs = (rows[~np.isin(rows[:, 0] // groups, list(differing))] for rows in (mine, theirs))
    for column in range(1, 5):  # each one sorted by itself: rounding moves no sorted value by more than itself
        pair = [rows[np.lexsort((rows[:, column], rows[:, 0]))] for rows in (mine, theirs)]
        other = abs(pair[0][:, column] - pair[1][:, column]) > coco.ROUNDING_PX
        differing.update((pair[0][other, 0] // groups).astype(int).tolist())
    return differing


def _check_truth(
    key: str, metric: dict, path: str, content: dict, checks: list['DatasetCheck'], *, own: bool, all_classes: bool
) -> Iterator[Finding]:
    """Check the annotations that the metric measures against.

    Args:
        key: key of the metric in the config.
        metric: config of the metric.
        path: path of its annotation file.
        content: what it holds.
        checks: the datasets.
        own: whether no dataset reads this file, so that nothing has checked it yet.
        all_classes: whether the metric numbers all categories of the file, not only those of the config.
    """
    classes = next((one.classes for one in checks if isinstance(one.classes, (list, tuple))), None)
    metrics = metric.get('metric')
    masks = 'segm' in (metrics if isinstance(metrics, (list, tuple)) else [metrics])
    sizes = coco.image_sizes(content)
    if own:
        keys = ('id', 'width', 'height') if masks else ('id',)
        errors = [one for one in coco.check_file(path, content, image_keys=keys)[0] if one.level == 'error']
        yield from errors
        if errors:
            return
    names = {category.get('id'): category.get('name') for category in content['categories']}
    if own and classes is not None:
        order = (
            sorted(names, key=lambda number: (isinstance(number, str), number))
            if metric.get('sort_categories')
            else names
        )
        used = [number for number in order if all_classes or names[number] in classes]
        found = coco.check_classes(path, content, classes, used, training=False)
        yield from (one for one in found if one.level == 'error')
    if metric.get('format_only'):
        return
    kept = {number for number, name in names.items() if classes is None or name in classes}
    measured = [
        annotation
        for annotation in content['annotations']
        if annotation.get('image_id') in sizes and annotation.get('category_id') in kept
    ]
    yield from _check_ids(path, content, measured)
    for annotation in measured:
        if 'iscrowd' not in annotation:
            yield error('missing key', path, coco.item_of(annotation), f"has no 'iscrowd', which {key} needs")
    if masks:
        yield from coco_masks.check(path, measured, sizes, evaluated=True)
    yield from _check_extent(key, path, content, measured, checks)


def _check_ids(path: str, content: dict, measured: list[dict]) -> Iterator[Finding]:
    """Check that all ids survive the arrays in which the evaluation keeps them."""
    for annotation in measured:
        text = None
        try:
            if float(annotation.get('id', 1)) == 0:
                text = "is COCO's sign of no match: a right detection counts as wrong; number annotations from 1"
        except (ValueError, OverflowError):
            text = 'is not a number that the evaluation can store: number annotations from 1'
        if text:
            yield error('annotation id', path, coco.item_of(annotation), text)
    for name in ('images', 'categories'):
        numbers = [entry['id'] for entry in content[name] if 'id' in entry]
        if numbers and {*np.unique(numbers).tolist()} != {*numbers}:
            text = f'the ids of its {name} are text and numbers, or beyond 64 bits: the evaluation mixes them up'
            yield error('id of another type', path, '', text)


def _check_extent(
    key: str, path: str, content: dict, measured: list[dict], checks: list['DatasetCheck']
) -> Iterator[Finding]:
    """Check that the annotations are those of the images that are predicted, neither fewer nor more."""
    split = set().union(*map(_ids, checks))
    if not split:
        return
    truth = [annotation['image_id'] for annotation in measured if not annotation.get('iscrowd')]
    if isinstance(content['annotations'], list) and not any(number in split for number in truth):
        names = some([category.get('name') for category in content['categories']])
        text = f'has nothing to measure: none of its {len(content["annotations"]):,} annotations is in an image of the '
        text += f'split and of a class of the config (its categories: {names})'
        yield error(EMPTY, path, '', text)
    missed = {number: None for number in truth if number not in split}
    if missed:
        text = f'has objects, but is not in the split{_more(missed)}: {key} counts them as missed; '
        text += 'write an annotation file of the split for the metric'
        options = [f'{one.key}.{name}' for one in checks for name in ('indices', 'filter_cfg') if one.leaf.get(name)]
        text += f', or remove {" and ".join(options)}' if options else ''
        yield error('metric of more images', path, f'image id {next(iter(missed))}', text)
