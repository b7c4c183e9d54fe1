"""Check annotation files in which names, or indices into a list of names, say the labels.

Most datasets silently drop a box whose name is not among the classes, and crash on a malformed one without
naming the file. The COCO format is in `coco.py`.

| dataset | what says a label | checked by |
|---|---|---|
| MMDetection: XMLDataset, VOC, WIDERFace; MMPretrain: VOC | `name` in XML | `_xml` |
| CrowdHuman | `tag` in lines of JSON | `_crowdhuman` |
| OpenImages | MID in CSV, through its label_file | `_open_images` |
| ODVG | key of its label_map_file | `_odvg` |
| MultiLabelDataset, BaseDetDataset, any without a reader of its own | index into the classes of its JSON | `_json` |
"""

import csv
import difflib
import json
import math
import os
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mmengine.dataset import BaseDataset
from mmengine.fileio import list_from_file

from mmsb.options import one_line

from .findings import Finding, error, warning
from .folders import match
from .names import same_names, some

CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')
CROWDHUMAN_IGNORED = ('mask',)  # its tag of regions that are to be ignored
FOREIGN = 'name without class'
MALFORMED = 'malformed annotation'


def check_file(dataset, bases: set[str]) -> Iterator[Finding]:
    """Check the names in the annotation files of a dataset that has not read them yet.

    Args:
        dataset: the dataset.
        bases: names of its class and of all the bases of that.
    """
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    own_reader = getattr(type(dataset), 'load_data_list', None) is not BaseDataset.load_data_list
    if isinstance(classes, str):
        return
    try:
        if not own_reader:
            yield from _json(dataset.ann_file, classes)
        elif 'XMLDataset' in bases or {'VOC', 'MultiLabelDataset'} <= bases:
            yield from _xml(dataset, classes or (), bases)
        elif 'CrowdHumanDataset' in bases:
            yield from _crowdhuman(dataset.ann_file, classes)
        elif 'OpenImagesDataset' in bases and 'OpenImagesChallengeDataset' not in bases:
            yield from _open_images(dataset)
        elif 'ODVGDataset' in bases and hasattr(dataset, 'label_map'):
            yield from _odvg(dataset.ann_file, dataset.label_map)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error) as failure:
        yield error('unreadable annotations', str(dataset.ann_file), '', f'is malformed: {one_line(failure)}')


def _json(path: str, classes: Sequence[str] | None) -> Iterator[Finding]:
    """Compare the classes in an OpenMMLab 2.0 file, into which its labels are indices, with those of the config."""
    if not str(path).endswith('.json') or not os.path.isfile(path):
        return
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except ValueError as failure:
        yield error('unreadable annotations', path, '', f'is not valid JSON ({failure})')
        return
    meta = content.get('metainfo') if isinstance(content, dict) else None
    if not isinstance(meta, dict):
        return  # the library says what is missing
    theirs = next((meta[key] for key in ('classes', 'CLASSES') if isinstance(meta.get(key), list)), None)
    if theirs is None and isinstance(meta.get('categories'), list):
        entries = [one for one in meta['categories'] if isinstance(one, dict) and {'id', 'category_name'} <= {*one}]
        theirs = [one['category_name'] for one in sorted(entries, key=lambda one: one['id'])]
    if not theirs or classes is None or same_names(theirs, classes):
        return
    label = next((i for i, (a, b) in enumerate(zip(theirs, classes, strict=False)) if not same_names([a], [b])), None)
    if label is None:
        text = f'names {len(theirs)} classes, but the config {len(classes)}'
        level = error if len(theirs) > len(classes) else warning
        yield level('number of classes', path, 'metainfo.classes', text)
    else:
        text = f'label {label} is {theirs[label]!r}, but {classes[label]!r} in the config: the order must be the same'
        yield error('order of the classes', path, 'metainfo.classes', text)


def _dropped(path: str, names: Counter, classes: Sequence[str], ignored: Sequence[str] = ()) -> Iterator[Finding]:
    """Report the names that are not among the classes."""
    foreign = Counter({name: count for name, count in names.items() if name not in (*classes, *ignored)})
    if not foreign:
        return
    first = foreign.most_common(1)[0][0]
    total, lost = sum(count for name, count in names.items() if name not in ignored), foreign.total()
    near = [classes[label] for label in match([str(first)], classes).values()]
    near = near or difflib.get_close_matches(str(first), list(map(str, classes)), n=1)
    text = ', '.join(f'{name!r} {count:,}' for name, count in foreign.most_common(3))
    text += f' and {len(foreign) - 3:,} more are' if len(foreign) > 3 else ' are' if len(foreign) > 1 else ' is'
    text += f' not among the classes: {lost:,} of {total:,} boxes are dropped'
    text += f'; did you mean {near[0]!r}?' if near else f' (the classes: {some(classes)})'
    yield error('empty split', path, '', text) if lost == total else warning(FOREIGN, path, '', text)


def _xml(dataset, classes: Sequence[str], bases: set[str]) -> Iterator[Finding]:
    detection = 'XMLDataset' in bases
    listed = dataset.ann_file if detection else dataset.image_set_path
    if detection:
        folder = os.path.join(dataset.sub_data_root, dataset.ann_subdir)
        folder = os.path.join(dataset.data_prefix['img'], 'Annotations') if 'WIDERFaceDataset' in bases else folder
    else:
        folder = dataset.ann_prefix
    if folder is None or '://' in folder or not os.path.isfile(listed):
        return
    names: Counter = Counter()
    for name in list_from_file(listed):
        path = os.path.join(folder, f'{name}.xml')
        try:
            root = ET.parse(path).getroot()
        except FileNotFoundError:
            yield error('missing annotations', path, '', f'does not exist, but {listed} names {name!r}')
            continue
        except (ET.ParseError, ValueError, LookupError) as failure:  # the latter for an unknown encoding
            yield error('unreadable annotations', path, '', f'is not valid XML ({failure})')
            continue
        if detection:
            size = ('size/width', 'size/height') if 'WIDERFaceDataset' in bases or root.find('size') is not None else ()
            for place in size:
                if not _positive(root.findtext(place)):
                    text = f'{place} must be a positive integer, got {root.findtext(place)!r}'
                    yield error(MALFORMED, path, '', text)
        for number, entry in enumerate(root.findall('object')):
            names[entry.findtext('name')] += 1
            if flaw := _flaw(entry, classes, detection=detection):
                yield error(MALFORMED, path, f'object {number}', flaw)
    yield from _dropped(listed, names, classes)


def _flaw(entry: ET.Element, classes: Sequence[str], *, detection: bool) -> str | None:
    """Say what is wrong with an object in XML; None if nothing is."""
    name, difficult = entry.findtext('name'), entry.findtext('difficult')
    if name is None:
        return 'has no name'
    if name not in classes:
        return None
    if (difficult is not None or not detection) and not _is_number(difficult, int):
        return f'difficult must be 0 or 1, got {difficult!r}'
    for corner in CORNERS if detection else ():
        if not _is_number(entry.findtext(f'bndbox/{corner}'), float):
            return f'bndbox/{corner} must be a number, got {entry.findtext(f"bndbox/{corner}")!r}'
    return None


def _is_number(text: str | None, kind: type) -> bool:
    try:
        return math.isfinite(kind(text))
    except (TypeError, ValueError):
        return False


def _positive(text: str | None) -> bool:
    return _is_number(text, int) and int(text) > 0


def _lines(path: str) -> Iterator[tuple[int, dict, str]]:
    """Yield the number, the object and the flaw of each line of a file of JSON objects."""
    with open(path, encoding='utf-8') as file:
        for number, line in enumerate(file, start=1):
            try:
                content, flaw = json.loads(line), ''
            except ValueError as failure:
                content, flaw = {}, f'is not valid JSON ({failure})'
            yield number, content if isinstance(content, dict) else {}, flaw


def _crowdhuman(path: str, classes: Sequence[str]) -> Iterator[Finding]:
    names: Counter = Counter()
    for number, content, flaw in _lines(path):
        boxes = content.get('gtboxes')
        if not flaw and not (isinstance(boxes, list) and 'ID' in content):
            flaw = "must have an 'ID' and a list of 'gtboxes'"
        for box in [] if flaw else boxes:
            lacking = [key for key in ('tag', 'fbox', 'hbox', 'vbox') if key not in box]
            wrong = [key for key in ('fbox', 'hbox', 'vbox') if not lacking and not _four_numbers(box[key])]
            flaw = flaw or (f'a box has no {lacking[0]!r}' if lacking else '')
            flaw = flaw or (f'{wrong[0]} must be 4 numbers, got {box[wrong[0]]!r}' if wrong else '')
            names[box.get('tag')] += 1
        if flaw:
            yield error(MALFORMED, path, f'line {number}', flaw)
    yield from _dropped(path, names, classes, CROWDHUMAN_IGNORED)


def _four_numbers(box) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(isinstance(value, (int, float)) for value in box)


def _open_images(dataset) -> Iterator[Finding]:
    _, labels = dataset._parse_label_file(dataset.label_file)
    with open(dataset.ann_file, encoding='utf-8') as file:
        rows: Iterable = csv.reader(file)
        for number, row in enumerate(rows, start=1):
            if number == 1:
                continue
            if len(row) < 13 or not all(_is_number(value, float) for value in row[4:8]):
                text = f'must have 13 columns with numbers in columns 5 to 8, got {",".join(row)!r}'
                yield error(MALFORMED, dataset.ann_file, f'line {number}', text)
            elif row[2] not in labels:
                text = f'label {row[2]!r} is not in {dataset.label_file}'
                yield error(FOREIGN, dataset.ann_file, f'line {number}', text)


def _odvg(path: str, labels: Mapping[str, str]) -> Iterator[Finding]:
    for number, content, flaw in _lines(path):
        found = (content.get('detection') or {}).get('instances') or []
        foreign = [one.get('label') for one in found if str(one.get('label')) not in labels]
        if flaw or foreign:
            text = flaw or f'label {foreign[0]!r} is not a key of the label_map_file'
            yield error(MALFORMED if flaw else FOREIGN, path, f'line {number}', text)
