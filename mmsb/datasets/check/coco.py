"""Check COCO annotations in the file itself, because MMDetection's dataset crashes on errors or drops them silently.

MMDetection's behaviour is defined in `CocoDataset.parse_data_info`: it skips boxes outside the image or below 1 px, and
the pipeline clips boxes that are partly outside. Boxes in COCO itself extend past the image by less than 1 px, so that
is not reported.
"""

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator

from .findings import Finding, error, warning

ROUNDING_PX = 1.0
MANY_BOXES = 10  # with fewer boxes, the share that extends past the image means little
LARGEST = sys.float_info.max
FILE_KEYS = ('images', 'annotations', 'categories')
IMAGE_KEYS = ('id', 'file_name', 'width', 'height')
ID_KEYS = ('id', 'image_id', 'category_id')
BOX_KEYS = ('bbox', 'area')
FLAGS = ('iscrowd', 'ignore')
SKIPPED = ('empty box', 'box outside')  # kinds of boxes that MMDetection leaves out


def read(path: str, *, training: bool) -> tuple[dict | None, list[Finding]]:
    """Read an annotation file.

    Returns:
        the content, or None if it cannot be checked further; and the findings.
    """
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as failure:
        return None, [error('unreadable annotations', path, '', f'is not valid JSON ({failure})')]
    if not isinstance(content, dict):
        return None, [error('unreadable annotations', path, '', f'must hold an object, got {type(content).__name__}')]
    missing = [key for key in FILE_KEYS if not isinstance(content.get(key), list)]
    findings = [error('missing key', path, '', f'list {key!r} is missing') for key in missing]
    if missing == ['annotations'] and 'annotations' not in content and not training:
        content['annotations'], missing = (), []  # no list: the file does not claim to have the truth
        findings = [warning('missing key', path, '', "has no 'annotations': the metric has nothing to measure")]
    for key in sorted({*FILE_KEYS} - {*missing}):
        for number, entry in enumerate(content[key]):
            if not isinstance(entry, dict):
                findings.append(error('malformed entry', path, f'{key}[{number}]', f'must be an object, got {entry!r}'))
                continue
            for name in ID_KEYS:
                if not _is_id(entry.get(name, 0)):
                    known = name != 'id' and _is_id(entry.get('id'))
                    item = f'annotation id {entry["id"]}' if known else f'{key}[{number}]'
                    text = f'{name} must be an integer, got {entry[name]!r}'
                    findings.append(error('malformed entry', path, item, text))
            if key == 'categories' and not _is_id(entry.get('name', '')):
                text = f'name must be a string, got {entry["name"]!r}'
                findings.append(error('malformed entry', path, f'category id {entry.get("id")}', text))
    return None if any(one.level == 'error' for one in findings) else content, findings


def check_file(
    path: str, content: dict, *, image_keys: tuple[str, ...] = IMAGE_KEYS, classes: tuple | None = None
) -> tuple[list[Finding], list[dict]]:
    """Check the images, categories and boxes of a file.

    Args:
        path: path of the file.
        content: as returned by `read`.
        image_keys: what each image must have (LVIS has URLs instead of a file_name).
        classes: names from the config; None for all.

    Returns:
        the findings; and the annotations of these classes that MMDetection keeps.
    """
    findings = [*_check_keys(path, content, image_keys), *_check_unique(path, content)]
    sizes = image_sizes(content)
    names = {category.get('id'): category.get('name') for category in content['categories']}
    image_alike, category_alike = ({plain(one): one for one in ids} for ids in (sizes, names))
    kept, boxes, sticking_out = [], [], 0
    for annotation in content['annotations']:
        image, category = annotation.get('image_id'), annotation.get('category_id')
        if image is not None and image not in sizes:
            findings.append(_no_image(path, annotation, image_alike))
            continue
        if category is not None and category not in names:
            text = f'category_id {category!r} is not the id of any category{other_type(category, category_alike)}'
            findings.append(error('unknown category_id', path, item_of(annotation), text))
        if image is None or annotation.get('ignore') or not all(key in annotation for key in BOX_KEYS):
            continue
        found = _check_box(path, annotation, sizes[image])
        if found:
            findings.append(found)
            sticking_out += found.kind == 'box partly outside'
        if found is None or found.level == 'warning':
            boxes.append((annotation['bbox'], annotation['area']))
        if (found is None or found.kind == 'box partly outside') and (
            classes is None or names.get(category) in classes
        ):
            kept.append(annotation)
    if wrong := _check_format(path, boxes, sticking_out):
        findings = [one for one in findings if one.kind not in SKIPPED] + [wrong]
    return findings, kept


def item_of(annotation: dict) -> str:
    return f'annotation id {annotation.get("id")}'


def image_sizes(content: dict) -> dict:
    """Map the ids of the images of a file to their width and height (px), as the file has them."""
    return {image.get('id'): (image.get('width'), image.get('height')) for image in content['images']}


def plain(number: int | str) -> str:
    """Return what is common to an id that is a number and the same one as text, e.g. 7 and '07'."""
    text = str(number).strip()
    return text.lstrip('0') or '0' if text.isdigit() else text


def other_type(number: int | str, alike: dict) -> str:
    """Describe the id among `alike` (its keys are `plain`) that is `number` in another type; '' if there is none."""
    other = alike.get(plain(number))
    return '' if other is None else f', but {other!r} is: write both as numbers'


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_finite(value) -> bool:
    return is_number(value) and -LARGEST <= value <= LARGEST


def _is_id(value) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _no_image(path: str, annotation: dict, alike: dict) -> Finding:
    number = annotation['image_id']
    if same := other_type(number, alike):
        text = f'image_id {number!r} is not the id of any image{same}'
        return error('id of another type', path, item_of(annotation), text)
    text = f'image_id {number} is not the id of any image: skipped'
    return warning('annotation without image', path, item_of(annotation), text)


def _check_keys(path: str, content: dict, image_keys: tuple[str, ...]) -> Iterator[Finding]:
    for image in content['images']:
        item = f'image id {image.get("id")}'
        yield from _missing(path, item, image, image_keys)
        for key in ('width', 'height'):
            if key in image and key in image_keys and not (is_finite(image[key]) and image[key] > 0):
                yield error('image of another size', path, item, f'{key} must be a positive number, got {image[key]!r}')
        name = image.get('file_name', 'x')
        if 'file_name' in image_keys and not (isinstance(name, str) and name):
            yield error('malformed entry', path, item, f'file_name must be a non-empty string, got {name!r}')
    for annotation in content['annotations']:
        keys = ID_KEYS if annotation.get('ignore') else (*ID_KEYS, *BOX_KEYS)
        yield from _missing(path, item_of(annotation), annotation, keys)
        for key in FLAGS:
            if annotation.get(key, 0) not in (0, 1):
                yield error(
                    'malformed entry', path, item_of(annotation), f'{key} must be 0 or 1, got {annotation[key]!r}'
                )
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
        counts = Counter(entry['id'] for entry in content[key] if 'id' in entry)
        for number, count in counts.items():
            if count > 1:
                text = f'occurs {count} times: {effect[key]}'
                yield error(f'duplicate {name} id', path, f'{name} id {number}', text)
    files: dict[str, list] = {}
    for image in content['images']:
        if isinstance(image.get('file_name'), str):
            files.setdefault(image['file_name'], []).append(image.get('id'))
    for name, numbers in files.items():
        if len({*numbers}) > 1:
            text = f'is {name!r} again, as image id {numbers[0]}: what is labelled in one is background in the other'
            yield warning('image listed twice', path, f'image id {numbers[1]}', text)


def _check_box(path: str, annotation: dict, size: tuple) -> Finding | None:
    box, area = annotation['bbox'], annotation['area']
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, [*box, area]))):
        text = f'box {box} of area {area!r} must be 4 numbers and a number'
        return error('malformed box', path, item_of(annotation), text)
    if not all(map(is_finite, [*box, area])):
        text = f'box {box} of area {area} is not finite: nor would the loss be'
        return error('non-finite box', path, item_of(annotation), text)
    x, y, w, h = box
    if w < 1 or h < 1 or area <= 0:
        side = f'w {w:g} px' if w < 1 else f'h {h:g} px' if h < 1 else f'area {area:g}'
        empty = 'zero' if min(w, h, area) == 0 else 'negative' if min(w, h, area) < 0 else 'too small an'
        return warning('empty box', path, item_of(annotation), f'box {box} has {empty} area ({side}): skipped')
    if not all(map(is_number, size)):
        return None
    width, height = size
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        text = f'box {box} is outside the image of {width} x {height} px: skipped'
        return warning('box outside', path, item_of(annotation), text)
    beyond = max(-x, -y, x + w - width, y + h - height)
    if beyond > ROUNDING_PX:
        text = f'box {box} extends past the image of {width} x {height} px by {beyond:g} px: clipped'
        return warning('box partly outside', path, item_of(annotation), text)
    return None


def _check_format(path: str, boxes: list[tuple[list, float]], sticking_out: int) -> Finding | None:
    """Check that boxes are [x, y, width, height] in px, by their areas and by what extends past the images.

    Args:
        path: path of the file.
        boxes: boxes and areas.
        sticking_out: how many of them extend past their images.
    """
    wanted = 'boxes must be [x, y, width, height]'
    if any(any(box) for box, _ in boxes) and all(min(box) >= 0 and max(box) <= 1 for box, _ in boxes):
        text = f'all {len(boxes):,} boxes lie between 0 and 1: {wanted} in px, not in shares of the image'
        return error('box format', path, '', text)
    if len(boxes) >= MANY_BOXES and sticking_out > len(boxes) / 2:
        text = f'{sticking_out:,} of {len(boxes):,} boxes extend past their images: {wanted}'
        return error('box format', path, '', text)
    corners = 0
    for (x, y, w, h), area in boxes:
        if w > x and h > y and not math.isclose(area, w * h, rel_tol=1e-3):
            corners += math.isclose(area, (w - x) * (h - y), rel_tol=1e-3)
    if corners > 1 and corners > len(boxes) / 2:
        text = f'{corners:,} of {len(boxes):,} boxes have the area of [x1, y1, x2, y2]: {wanted}'
        return error('box format', path, '', text)
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
    for name, times in Counter(names.values()).items():
        if times > 1 and name in classes:
            numbers = [number for number in names if names[number] == name]
            text = f'is {name!r}, as category id {numbers[0]} is: the labels of all later classes shift'
            yield error('duplicate category name', path, f'category id {numbers[1]}', text)
            return
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
    if shifted or not training:  # else, a class that is never learnt is counted for all types of datasets
        effect = 'the labels shift' if training else 'the metric fails when it is predicted'
        for name in classes:
            if name not in names.values():
                text = f'has no category {name!r}, a class of the config: {effect}'
                yield error('class without category', path, '', text)


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
