"""Check COCO annotations in the file itself, because MMDetection's dataset crashes on errors or drops them silently.

MMDetection's behaviour is defined in `CocoDataset.parse_data_info`: it skips boxes outside the image or below 1 px, and
the pipeline clips boxes that are partly outside. Boxes in COCO itself extend past the image by less than 1 px, so that
is not reported.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator

from .findings import Finding, error, warning

ROUNDING_PX = 1.0
MANY_BOXES = 10  # with fewer boxes, the share that extends past the image means little
FILE_KEYS = ('images', 'annotations', 'categories')
IMAGE_KEYS = ('id', 'file_name', 'width', 'height')
ID_KEYS = ('id', 'image_id', 'category_id')
ANNOTATION_KEYS = ID_KEYS
NO_MASK = 'annotation without mask'
BOX_KEYS = ('bbox', 'area')


def read(path: str, *, training: bool) -> tuple[dict | None, list[Finding]]:
    """Read an annotation file.

    Returns:
        the content, or None if it cannot be checked further; and the findings.
    """
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except (OSError, ValueError) as failure:
        return None, [error('unreadable annotations', path, '', f'is not valid JSON ({failure})')]
    if not isinstance(content, dict):
        return None, [error('unreadable annotations', path, '', f'must hold an object, got {type(content).__name__}')]
    missing = [key for key in FILE_KEYS if not isinstance(content.get(key), list)]
    findings = [error('missing key', path, '', f'list {key!r} is missing') for key in missing]
    if missing == ['annotations'] and 'annotations' not in content and not training:
        content['annotations'], missing = [], []
        findings = [warning('missing key', path, '', "has no 'annotations': the metric has nothing to measure")]
    for key in sorted({*FILE_KEYS} - {*missing}):
        for number, entry in enumerate(content[key]):
            if not isinstance(entry, dict):
                findings.append(error('malformed entry', path, f'{key}[{number}]', f'must be an object, got {entry!r}'))
                continue
            for name in ID_KEYS:
                if not isinstance(entry.get(name, 0), (int, str)):
                    text = f'{name} must be an integer, got {entry[name]!r}'
                    findings.append(error('malformed entry', path, f'{key}[{number}]', text))
    return None if any(one.level == 'error' for one in findings) else content, findings


def check_file(path: str, content: dict, *, masks: bool, names: bool) -> Iterator[Finding]:
    """Check the images, categories and boxes of a file.

    Args:
        path: path of the file.
        content: as returned by `read`.
        masks: whether the pipeline reads instance masks.
        names: whether images need a file_name (LVIS has URLs instead).
    """
    yield from _check_keys(path, content, names)
    yield from _check_unique(path, content)
    sizes = {image.get('id'): (image.get('width'), image.get('height')) for image in content['images']}
    known = {category.get('id') for category in content['categories']}
    sticking_out = boxes = 0
    for annotation in content['annotations']:
        item = f'annotation id {annotation.get("id")}'
        if 'image_id' in annotation and annotation['image_id'] not in sizes:
            text = f'image_id {annotation["image_id"]} is not the id of any image: skipped'
            yield warning('annotation without image', path, item, text)
            continue
        if 'category_id' in annotation and annotation['category_id'] not in known:
            text = f'category_id {annotation["category_id"]} is not the id of any category'
            yield error('unknown category_id', path, item, text)
        if annotation.get('ignore') or not all(key in annotation for key in (*BOX_KEYS, 'image_id')):
            continue
        boxes += 1
        found = _check_box(path, item, annotation, sizes[annotation['image_id']])
        if found:
            sticking_out += found.kind == 'box partly outside'
            yield found
        elif masks and not annotation.get('segmentation'):
            yield error(NO_MASK, path, item, "has no 'segmentation', but the pipeline reads instance masks")
    if boxes >= MANY_BOXES and sticking_out > boxes / 2:
        text = f'{sticking_out:,} of {boxes:,} boxes extend past their images: boxes must be [x, y, width, height]'
        yield error('box format', path, '', text)


def _check_keys(path: str, content: dict, names: bool) -> Iterator[Finding]:
    image_keys = [key for key in IMAGE_KEYS if names or key != 'file_name']
    for image in content['images']:
        item = f'image id {image.get("id")}'
        yield from _missing(path, item, image, image_keys)
        for key in ('width', 'height'):
            if key in image and not (_is_number(image[key]) and 0 < image[key] < math.inf):
                yield error('image of another size', path, item, f'{key} must be a positive number, got {image[key]!r}')
        if not isinstance(image.get('file_name', 'x'), str) or not image.get('file_name', 'x'):
            yield error(
                'malformed entry', path, item, f'file_name must be a non-empty string, got {image["file_name"]!r}'
            )
    for annotation in content['annotations']:
        keys = ANNOTATION_KEYS if annotation.get('ignore') else (*ANNOTATION_KEYS, *BOX_KEYS)
        yield from _missing(path, f'annotation id {annotation.get("id")}', annotation, keys)
    for category in content['categories']:
        yield from _missing(path, f'category id {category.get("id")}', category, ('id', 'name'))


def _missing(path: str, item: str, entry: dict, keys) -> Iterator[Finding]:
    for key in keys:
        if key not in entry:
            yield error('missing key', path, item, f'has no {key!r}')


def _check_unique(path: str, content: dict) -> Iterator[Finding]:
    what = dict(images='image', annotations='annotation', categories='category')
    effect = dict(images='one hides the other', annotations='MMDetection stops', categories='one hides the other')
    for key, name in what.items():
        counts = Counter(entry['id'] for entry in content[key] if isinstance(entry.get('id'), (int, str)))
        for number, count in counts.items():
            if count > 1:
                text = f'occurs {count} times: {effect[key]}'
                yield error(f'duplicate {name} id', path, f'{name} id {number}', text)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_box(path: str, item: str, annotation: dict, size: tuple) -> Finding | None:
    box, area = annotation['bbox'], annotation['area']
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, [*box, area]))):
        return error('malformed box', path, item, f'box {box} of area {area!r} must be 4 numbers and a number')
    if not all(map(math.isfinite, [*box, area])):
        return error('non-finite box', path, item, f'box {box} of area {area} is not finite: nor would the loss be')
    x, y, w, h = box
    if w < 1 or h < 1 or area <= 0:
        side = f'w {w:g} px' if w < 1 else f'h {h:g} px' if h < 1 else f'area {area:g}'
        empty = 'zero' if min(w, h, area) == 0 else 'negative' if min(w, h, area) < 0 else 'too small an'
        return warning('empty box', path, item, f'box {box} has {empty} area ({side}): skipped')
    if not all(_is_number(side) for side in size):
        return None
    width, height = size
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return warning('box outside', path, item, f'box {box} is outside the image of {width} x {height} px: skipped')
    beyond = max(-x, -y, x + w - width, y + h - height)
    if beyond > ROUNDING_PX:
        text = f'box {box} extends past the image of {width} x {height} px by {beyond:g} px: clipped'
        return warning('box partly outside', path, item, text)
    return None


def check_classes(path: str, content: dict, classes: tuple, cat_ids: list, *, training: bool) -> Iterator[Finding]:
    """Check the categories of a file against the classes of the dataset.

    MMDetection numbers the known categories in the order of the file, not in the order of the classes.

    Args:
        path: path of the file.
        content: as returned by `read`.
        classes: names from the config.
        cat_ids: category ids by label, as the dataset has numbered them.
        training: whether the split is trained on.
    """
    names = {category['id']: category['name'] for category in content['categories']}
    counts = Counter(annotation['category_id'] for annotation in content['annotations'])
    for number, name in names.items():
        if number not in cat_ids:
            text = f'{name!r} is not a class of the config: its {counts[number]:,} annotations are dropped'
            yield warning('category without class', path, f'category id {number}', text)
    shifted = False
    for label, number in enumerate(cat_ids):
        name = classes[label] if label < len(classes) else None
        if names[number] != name:
            shifted = True
            text = f"{names[number]!r} gets label {label}, which is class {name!r}: metainfo must use the file's order"
            yield error('order of the classes', path, f'category id {number}', text)
    if training and not shifted:  # what occurs is counted for all types of datasets
        return
    for name in classes:
        if name not in names.values():
            effect = 'it is never learnt' if training else 'the metric fails when it is predicted'
            yield error(
                'class without category', path, '', f'has no category {name!r}, a class of the config: {effect}'
            )


def samples(content: dict, folder: str) -> Iterator[dict]:
    """Yield the images of a file whose annotations the dataset class rejects."""
    for image in content['images']:
        if isinstance(image.get('file_name'), str):
            yield dict(
                img_path=os.path.join(folder, image['file_name']),
                img_id=image.get('id'),
                width=image.get('width'),
                height=image.get('height'),
            )


def check_metric(key: str, metric: dict, path: str, content: dict, images: set) -> Iterator[Finding]:
    """Check the annotation file of a metric.

    Args:
        key: key of the metric in the config.
        metric: config of the metric.
        path: path of its annotation file.
        content: as returned by `read`.
        images: ids of the images in the split.
    """
    known = {image.get('id') for image in content['images']}
    for number in sorted(images - known, key=str):
        yield error('metric of other images', path, f'image id {number}', f'is in the split, but not in {key}.ann_file')
    metrics = metric.get('metric', 'bbox')
    needed = ['iscrowd', *(['segmentation'] if 'segm' in ([metrics] if isinstance(metrics, str) else metrics) else [])]
    for annotation in content['annotations']:
        for name in needed:
            if name not in annotation:
                text = f'has no {name!r}, which {key} needs'
                kind = NO_MASK if name == 'segmentation' else 'missing key'
                yield error(kind, path, f'annotation id {annotation.get("id")}', text)
