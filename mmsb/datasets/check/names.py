"""Check the names of classes that a config gives, against the dataset's own and those of a checkpoint."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from .findings import Finding, error, warning
from .folders import match


def check_classes(key: str, leaf: Mapping, dataset, bases: set[str]) -> Iterator[Finding]:
    """Check the names of the classes that a config gives a dataset.

    Args:
        key: key of the dataset.
        leaf: its config.
        dataset: the dataset, which has read its annotations.
        bases: names of its class and of all the bases of that.
    """
    meta = leaf.get('metainfo') or {}
    if 'CLASSES' in meta and 'classes' not in meta:
        yield error('ignored classes', f'{key}.metainfo.CLASSES', '', "has no effect: the key is 'classes'")
    used, own = dataset.metainfo.get('classes'), (getattr(type(dataset), 'METAINFO', None) or {}).get('classes')
    stated = meta.get('classes') or leaf.get('classes')
    if not isinstance(used, (list, tuple)) or not stated:
        return
    where = f'{key}.metainfo.classes' if meta.get('classes') else f'{key}.classes'
    if isinstance(stated, (list, tuple)) and list(stated) != list(used):
        text = f'has no effect: the dataset reads other names from its own files ({some(used)})'
        yield error('ignored classes', where, '', text)
        return
    if own and list(used) == list(own):
        return
    for name, count in Counter(used).items():
        if count > 1:
            level = warning if 'CustomDataset' in bases else error  # which takes the labels from elsewhere
            yield level('class twice', where, repr(name), f'occurs {count} times: one name must mean one label')
        if isinstance(name, str) and name != name.strip():
            text = 'has a space at its start or end: no name in an annotation has it'
            yield warning('space in a class name', where, repr(name), text)
        if name == '':
            yield error('empty class name', where, repr(name), 'is no name: is there an empty line in the file?')
    theirs = any(
        base.__module__.startswith('mmpretrain.') and 'METAINFO' in vars(base) for base in type(dataset).__mro__
    )
    by_index = theirs and own and len(own) == len(used) and 'MultiLabelDataset' not in bases
    if by_index and (moved := _moved(own, used)):
        text = (
            f'{type(dataset).__name__} gives {moved[0]!r} label {moved[1]}, but here it is {moved[2]}: keep its order'
        )
        yield error('order of the classes', where, '', text)


def same_names(first: Sequence[str], second: Sequence[str]) -> bool:
    """Tell whether two lists of classes name the same at each label, but for case and separators."""
    known = match(second, first)
    return len(first) == len(second) and all(known.get(str(name)) == label for label, name in enumerate(second))


def compare_with_checkpoint(key: str, classes: Sequence[str] | None, path: str, learnt: Sequence[str]):
    """Compare the classes of a dataset with those that a checkpoint has learnt.

    Args:
        key: key of the dataset in the config.
        classes: names of its classes; None if unknown.
        path: path of the checkpoint.
        learnt: names of its classes.
    """
    if not classes or isinstance(classes, str) or same_names(learnt, classes):
        return
    if moved := _moved(learnt, classes):
        text = f'{moved[0]!r} has label {moved[2]}, but {moved[1]} in checkpoint {path!r}: use its order of the classes'
        yield error('order of the classes', key, '', text)
    else:
        text = f'its {len(classes)} classes ({some(classes)}) differ from the {len(learnt)} of checkpoint {path!r} '
        yield warning('classes of the checkpoint', key, '', f'{text}({some(learnt)})')


def _moved(first: Sequence[str], second: Sequence[str]) -> tuple[str, int, int] | None:
    """Find a name that has one label in the first list, and another one in the second."""
    for name, label in match(second, first).items():
        if list(first).count(first[label]) == 1 and (now := list(map(str, second)).index(name)) != label:
            return name, label, now
    return None


def some(names: Sequence[str]) -> str:
    return ', '.join(map(str, names[:3])) + (', ...' if len(names) > 3 else '')
