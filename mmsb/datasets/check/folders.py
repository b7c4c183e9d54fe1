"""Check that a folder named like a class has the label of that class, and the same one in all splits.

MMPretrain numbers class folders in sorted order, whatever the names in `classes` are; lists of `FILE LABEL` and the
annotations of known datasets say labels on their own, but usually of files that lie in folders of classes too.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .findings import Finding, error, listed, warning

HIDDEN = re.compile(
    r'\.|@eaDir$|@Recycle$|#recycle$|__MACOSX$|__pycache__$|\$RECYCLE\.BIN$|lost\+found$|System Volume '
)
HIDDEN_FOLDER = 'hidden folder'
MIXED = 0.1  # share of other labels above which a folder is no class


@dataclass(frozen=True)
class Folders:
    """Class folders of a dataset.

    Args:
        root: path of the folder that holds them.
        labels: label of each folder, by its name; of most of its images, where images have labels of their own.
        numbered: whether each folder is a class, numbered in sorted order.
        others: number of images with another label than their folder, and of its images, by its name.
    """

    root: str
    labels: dict[str, int]
    numbered: bool
    others: dict[str, tuple[int, int]] = field(default_factory=dict)

    def is_mixed(self, name: str) -> bool:
        """Tell whether a folder has too many labels to be of one class."""
        count, total = self.others.get(name, (0, 1))
        return count > MIXED * total


def numbered(dataset) -> list[str]:
    """List the folders that a dataset numbers in this order; [] where something else says the labels."""
    prefix = _root(dataset)
    by_folder = hasattr(dataset, 'extensions') and getattr(dataset, 'with_label', True) and not dataset.ann_file
    if not by_folder or prefix is None or not os.path.isdir(prefix):
        return []
    with os.scandir(prefix) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def check_number(dataset, stated: Sequence[str], seen: Sequence[Folders]) -> Iterator[Finding]:
    """Find class folders that are missing or too many, of which MMPretrain only compares the number.

    Args:
        dataset: the dataset, which may not have read its folders yet.
        stated: names of the classes where they do not come from the folders; else empty.
        seen: the class folders of the datasets so far.
    """
    names = numbered(dataset)
    hidden = [(label, name) for label, name in enumerate(names) if HIDDEN.match(name) and name not in stated]
    for label, name in hidden:
        text = f'is not a class, but gets label {label}, and shifts those behind it: delete it, or move it elsewhere'
        yield error(HIDDEN_FOLDER, os.path.join(dataset.img_prefix, name), '', text)
    if hidden or not names or not stated or len(names) == len(stated):
        return
    expected = list(seen[0].labels) if seen and seen[0].numbered and not match(names, stated) else list(stated)
    known = match(names, expected)
    lacking = [name for label, name in enumerate(expected) if label not in known.values()]
    text = f'has {len(names):,} class folder{"s"[: len(names) > 1]}, but there are {len(stated):,} classes'
    if known and lacking:
        text += f'; no folder for {listed(lacking)}: an empty one keeps the labels'
    if known and (new := [name for name in names if name not in known]):
        text += f'; no class for {listed(new)}'
    yield error('number of classes', dataset.img_prefix, '', text if known else f'{text}: the first is {names[0]!r}')


def check_folders(
    key: str, dataset, samples: list[dict], classes: Sequence[str] | None, seen: list[Folders], *, training: bool
) -> Iterator[Finding]:
    """Check the class folders of a dataset.

    Args:
        key: key of the dataset in the config.
        dataset: the dataset.
        samples: its samples.
        classes: names of its classes by label.
        seen: the class folders of the datasets so far, the first of which is the reference; the new one is added.
        training: whether the split is trained on.
    """
    found = _find(dataset, samples)
    if found is None:
        return
    if found.numbered:
        yield from _empty(dataset, samples, training=training)
    reference = next(iter(seen), None)
    seen.append(found)
    differ = list(_compare(key, found, reference)) if reference is not None else []
    yield from differ or _check_order(found, classes)


def match(names: Iterable[str], classes: Sequence[str]) -> dict[str, int]:
    """Find the class that each name means.

    Names are the same if they differ in case, separators, leading zeros, a number in front or a plural's s at most.

    Returns:
        the label for each name that means one class.
    """
    found: dict[str, int] = {}
    classes, names = list(map(str, classes)), list(names)
    for form in (str, _folded, _bare, _joined):
        labels: dict[str, list[int]] = {}
        for label, name in enumerate(classes):
            labels.setdefault(form(name), []).append(label)
        taken = {*found.values()}
        for name in names:
            meant = labels.get(form(name), [])
            if name not in found and len(meant) == 1 and meant[0] not in taken:
                found[name] = meant[0]
    return found


def _folded(name: str) -> str:
    text = re.sub(r'[\s_\-./]+', '_', unicodedata.normalize('NFKC', name).casefold()).strip('_')
    return re.sub(r'\d+', lambda digits: digits[0].lstrip('0') or '0', text)


def _bare(name: str) -> str:
    return re.sub(r'^\d+_(?=\D)', '', _folded(name))


def _joined(name: str) -> str:
    return _bare(name).replace('_', '').removesuffix('s')


def _root(dataset) -> str | None:
    prefix = getattr(dataset, 'data_prefix', None)
    folder = prefix.get('img_path') if isinstance(prefix, Mapping) else prefix
    return folder if folder and isinstance(folder, str) else None


def _find(dataset, samples: list[dict]) -> Folders | None:
    if getattr(dataset, 'folder_to_idx', None):
        return Folders(dataset.img_prefix, dict(dataset.folder_to_idx), numbered=True)
    prefix = _root(dataset)
    if prefix is None:
        return None
    places = Counter(
        (os.path.dirname(sample['img_path'][len(prefix) :]), sample['gt_label'])
        for sample in samples
        if isinstance(sample.get('gt_label'), int) and str(sample.get('img_path', '')).startswith(prefix)
    )
    counts: dict[str, Counter] = {}
    for (place, label), count in places.items():
        parts = [part for part in place.split('/') if part]
        for name in {*parts, '/'.join(parts)} - {''}:
            counts.setdefault(name, Counter())[label] += count
    labels, others = {}, {}
    for name, count in counts.items():
        label, most = count.most_common(1)[0]
        if most > count.total() / 2:
            labels[name], others[name] = label, (count.total() - most, count.total())
    return Folders(prefix, labels, numbered=False, others=others) if labels else None


def _empty(dataset, samples: list[dict], *, training: bool) -> Iterator[Finding]:
    if dataset._indices is not None:  # a subset of the samples need not hold every class
        return
    counts = Counter(sample.get('gt_label') for sample in samples)
    level, effect = (error, 'never learnt') if training else (warning, 'not measured')
    for name, label in dataset.folder_to_idx.items():
        if not counts[label]:
            folder = os.path.join(dataset.img_prefix, name)
            text = f'has no image ({", ".join(sorted(dataset.extensions))}): class {label} is {effect}'
            yield level('empty class folder', folder, '', text)


def _check_order(found: Folders, classes: Sequence[str] | None) -> Iterator[Finding]:
    if not classes or isinstance(classes, str):
        return
    meant = match(found.labels, classes)
    wrong = [name for name, label in meant.items() if found.labels[name] != label and not found.is_mixed(name)]
    wrong.sort(key=lambda name: found.labels[name])
    if wrong and (found.numbered or len(meant) > 1):  # of a list, a single name may be chance, e.g. train/ and 'train'
        text = ', and '.join(
            f'folder {name!r} gets label {found.labels[name]}, {_class_of(found.labels[name], classes)}'
            for name in wrong[:2]
        )
        text += f' ({len(wrong):,} differ)' if len(wrong) > 2 else ''
        if found.numbered:
            rest = [name for label, name in enumerate(classes) if label not in meant.values()]
            rest = rest if len(rest) == 1 else [name for name in found.labels if name not in meant]
            order = [classes[meant[name]] if name in meant else rest.pop(0) for name in found.labels]
            text += f': folders are numbered in sorted order; write classes=({listed(order, None)})'
        else:
            text += ': the labels in the annotations and the classes of the config need the same order'
        yield error('order of the classes', found.root, '', text)
    elif found.numbered and not meant:
        yield from _unpadded(found, classes)
    elif len(meant) > 1:
        for name, label in meant.items():
            count, total = found.others.get(name, (0, 0))
            if count and found.labels[name] == label:
                text = f'{count:,} of its {total:,} images have other labels than its name says, {found.labels[name]}'
                yield warning('label of another class', found.root, f'folder {name!r}', text)


def _unpadded(found: Folders, classes: Sequence[str]) -> Iterator[Finding]:
    """Warn of folders such as 1, 10, 2, whose classes have names that say nothing of the order."""
    parts = [re.fullmatch(r'(\D*)(\d+)', name) for name in found.labels]
    if not all(parts) or len({part[1] for part in parts}) > 1:
        return
    for label, (name, part) in enumerate(zip(found.labels, sorted(parts, key=lambda one: int(one[2])), strict=True)):
        if name != part[0]:
            text = f'folders are numbered in sorted order: {name!r} gets label {label}, {_class_of(label, classes)}; '
            text += f'if {part[0]!r} is meant, write the numbers with leading zeros'
            yield warning('order of the folders', found.root, '', text)
            return


def _class_of(label: int, classes: Sequence[str]) -> str:
    return f'which is class {classes[label]!r}' if 0 <= label < len(classes) else 'which no class has'


def _compare(key: str, found: Folders, reference: Folders) -> Iterator[Finding]:
    names = sorted(reference.labels, key=reference.labels.get)
    known = {name: reference.labels[names[i]] for name, i in match(found.labels, names).items()}
    shifted = [name for name, label in found.labels.items() if label != known.get(name, label)]
    shifted = [name for name in shifted if not any(one.is_mixed(name) for one in (found, reference))]
    both = found.numbered and reference.numbered
    new = [name for name in found.labels if name not in known] if both else []
    lacking = [name for name in names if reference.labels[name] not in known.values()] if both else []
    if not shifted and not new:
        if lacking:
            text = f'{found.root} has no folder {listed(lacking)}, but {reference.root} has'
            yield warning('class folder missing', key, '', text)
        return
    text = f'the class folders of {found.root} differ from those of {reference.root}'
    text = (
        'the labels of class folders differ from those of the first dataset' if found.root == reference.root else text
    )
    if shifted:
        first = shifted[0]
        text += f': {first!r} gets label {found.labels[first]} here, but {known[first]} there'
    if lacking:
        text += f'; only there: {listed(lacking)}'
    if new:
        text += f'; only here: {listed(new)}'
    yield error('other classes', key, '', text)
