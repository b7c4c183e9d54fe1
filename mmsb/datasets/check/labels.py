"""How often each class occurs in what a run learns from, and what that says of its labels."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from .findings import Finding, listed, warning

SHOWN = 5  # names, and counts, in a message
MOSTLY = 0.5  # share of the pixels


def count_labels(samples: Iterable[dict]) -> tuple[Counter, str]:
    """Count the labels of samples; also return what has them: 'image' or 'box'."""
    counts, what = Counter(), 'image'
    for sample in samples:
        if sample.get('gt_label') is not None:
            counts.update(np.ravel(sample['gt_label']).astype(int).tolist())
        if 'segments_info' in sample:  # panoptic, where most classes have no box
            continue
        for instance in sample.get('instances') or []:
            what = 'box'
            if not instance.get('ignore_flag'):
                counts[instance.get('bbox_label')] += 1
    return counts, what


def unused_classes(
    key: str, classes: Sequence[str], counts: Mapping[int, int], what: str, *, ignored: int = 0, cure: str = ''
) -> Iterator[Finding]:
    """Warn of classes that occur nowhere in a split that is trained on.

    Args:
        key: key of the split's dataset in the config.
        classes: names in the order of the labels.
        counts: how often each label occurs.
        what: what has the labels: 'image', 'box' or 'mask'.
        ignored: number of pixels that have no label.
        cure: what to do.
    """
    unused = [str(name) for label, name in enumerate(classes) if not counts.get(label)]
    total = sum(counts.get(label, 0) for label in range(len(classes)))
    if not unused or not total:
        return
    used = sorted(range(len(classes)), key=lambda label: -counts.get(label, 0))[:SHOWN]
    numbers = [(str(classes[label]), counts[label]) for label in used if counts.get(label)]
    numbers += [('ignored', ignored)] * bool(ignored)
    total += ignored
    shares = [f'{name} {number / total:.1%}' if what == 'mask' else f'{name} {number:,}' for name, number in numbers]
    text = f'class{"" if len(unused) == 1 else "es"} {listed(unused, SHOWN)} of {len(classes)} '
    text += 'occurs ' if len(unused) == 1 else 'occur '
    yield warning('class that never occurs', key, '', text + f'in no {what} ({", ".join(shares)}){cure}')


def softmax_of_one(heads: Iterable[tuple[str, dict]]) -> Iterator[Finding]:
    """Warn of a classifier or segmenter whose softmax has one class: its loss is 0, whatever it predicts.

    Args:
        heads: config keys and configs of the heads.
    """
    for key, head in heads:
        losses = head.get('loss') or head.get('loss_decode') or []
        for loss in losses if isinstance(losses, (list, tuple)) else [losses]:
            softmax = str(loss.get('type')).endswith('CrossEntropyLoss') and not loss.get('use_sigmoid')
            if softmax and head.get('num_classes') == 1 and 'bbox' not in key:
                two = 'num_classes=2, and name the background too'
                one = (
                    ', or num_classes=2, out_channels=1 and use_sigmoid=True in its loss'
                    if 'loss_decode' in head
                    else ''
                )
                text = f'is 1 under a softmax, whose loss is 0 whatever is predicted: set {two}{one}'
                yield warning('one class', f'{key}.num_classes', '', text)


def pixel_findings(
    key: str, pixels: np.ndarray, classes: Sequence[str] | None, ignored: set[int], *, training: bool, reduced: bool
) -> Iterator[Finding]:
    """Warn of classes that occur in no mask, and of masks that are mostly ignored.

    Args:
        key: key of the dataset in the config.
        pixels: number of pixels by label, as the pipeline reads them, [256].
        classes: names in the order of the labels; None if not all need to occur.
        ignored: labels that losses and metrics ignore.
        training: whether the split is trained on.
        reduced: whether label 0 is ignored and the others are lowered by one.
    """
    without = int(pixels[sorted(ignored)].sum())
    share = without / max(int(pixels.sum()), 1)
    cure = ''
    if without and reduced:
        cure = ': reduce_zero_label=True ignores label 0 of the files, and lowers the others by one'
    elif without:
        cure = f': if {max(ignored)} stands for a class in the masks, write the number of that class there'
    found = []
    if training and classes is not None:
        counts = {label: int(number) for label, number in enumerate(pixels) if label not in ignored}
        found = list(unused_classes(key, classes, counts, 'mask', ignored=without, cure=cure))
    yield from found
    if not found and MOSTLY < share < 1:
        yield warning('mostly ignored', key, '', f'{share:.1%} of the pixels of its masks are ignored{cure}')
