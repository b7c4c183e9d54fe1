"""CIFAR-100 as two arrays per split: read from the official pickles, checked, and stored as .npz.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

| file | images, uint8 RGB | labels, uint8 |
|---|---|---|
| train.npz | (50000, 32, 32, 3) | (50000,), 500 per class |
| test.npz | (10000, 32, 32, 3) | (10000,), 100 per class |
"""

import pickle
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR100
from torchvision.datasets.utils import check_integrity

from mmsb.files import write_whole
from mmsb.options import choose

SIDE_PX = 32
NUM_CLASSES = 100
PER_CLASS = {'train': 500, 'test': 100}
MEAN = (129.304, 124.070, 112.434)  # of the training images, as recipes commonly state it
PICKLES = 'cifar-100-python'


def read_source(folder: str | Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a split from a folder that holds the official `cifar-100-python`.

    Returns:
        images (n, 32, 32, 3), RGB, and labels (n,), both uint8.

    Raises:
        FileNotFoundError: if the file of the split is missing.
        ValueError: if it is not the official file.
    """
    path = Path(folder) / PICKLES / choose('split', split, PER_CLASS)
    if not path.is_file():
        raise FileNotFoundError(f'{str(path)!r} does not exist')
    return _read_pickle(path, split)


def _read_pickle(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    genuine = dict([*CIFAR100.train_list, *CIFAR100.test_list])[split]
    if not check_integrity(path, genuine):  # a pickle can run code: load only the official one
        raise ValueError(f'{str(path)!r} is not the official file of CIFAR-100: the MD5 must be {genuine}')
    with path.open('rb') as file:
        entry = pickle.load(file, encoding='latin1')
    images = entry['data'].reshape(-1, 3, SIDE_PX, SIDE_PX).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(entry['fine_labels'], np.uint8)


def check(images: np.ndarray, labels: np.ndarray, split: str) -> None:
    """Check that a split is complete and genuine: its shape, class counts, and the mean of the training images.

    Raises:
        ValueError: if it is not.
    """
    per_class = PER_CLASS[split]
    wanted = (NUM_CLASSES * per_class, SIDE_PX, SIDE_PX, 3)
    if images.shape != wanted or images.dtype != np.uint8:
        raise ValueError(f'{split}: images must be uint8 of shape {wanted}, got {images.dtype} of shape {images.shape}')
    counts = np.bincount(labels, minlength=NUM_CLASSES)
    if counts.shape != (NUM_CLASSES,) or (counts != per_class).any():
        raise ValueError(f'{split}: each of {NUM_CLASSES} classes must have {per_class} images, got {counts.tolist()}')
    mean = images.mean((0, 1, 2))
    if split == 'train' and not np.allclose(mean, MEAN, atol=1e-3):
        raise ValueError(f'{split}: the mean must be {MEAN}, got {tuple(mean.round(3).tolist())}')


def write(images: np.ndarray, labels: np.ndarray, path: str | Path) -> None:
    """Write a split as .npz atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def save(unfinished: Path) -> None:
        with unfinished.open('wb') as file:  # NumPy would append .npz to a path
            np.savez(file, images=images, labels=labels)

    write_whole(path, save)


def load(folder: str | Path, split: str, first_classes: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Load a split from .npz: images (n, 32, 32, 3), RGB, and labels (n,), both uint8.

    Args:
        folder: folder with train.npz and test.npz.
        split: 'train' or 'test'.
        first_classes: keep only the first classes, this many; None keeps all.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if first_classes is outside 1 to 100.
    """
    path = Path(folder) / f'{choose("split", split, PER_CLASS)}.npz'
    if not path.is_file():
        raise FileNotFoundError(f'{str(path)!r} does not exist: create it with `python -m benchmarks.cifar100.data`')
    with np.load(path, allow_pickle=False) as arrays:
        images, labels = arrays['images'], arrays['labels']
    if first_classes is not None:
        if not 1 <= first_classes <= NUM_CLASSES:
            raise ValueError(f'first_classes must be from 1 to {NUM_CLASSES}, got {first_classes}')
        images, labels = images[labels < first_classes], labels[labels < first_classes]
    return images, labels
