"""Makes data/cifar100/{train,test}.npz for this benchmark and for `mmsb.CIFAR100Arrays`.

python -m benchmarks.cifar100.data SOURCE [OUT]

SOURCE holds the official `cifar-100-python` (its MD5 is checked), or mosaics: tars of lossless SPLIT/CLASS.webp, each
with the 32 x 32 images of a class row by row, and `classes.txt`, the classes in the order of their labels. Both give
the same images, but their order within a class may differ.
"""

import argparse
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from mmsb.datasets import cifar
from mmsb.engine.launcher import run_tool

TARS = {'train': ('train-1of2.tar', 'train-2of2.tar'), 'test': ('test.tar',)}


def read(folder: str | Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a split from a folder with the official files or with mosaics.

    Returns:
        images (n, 32, 32, 3), RGB, and labels (n,), both uint8.

    Raises:
        FileNotFoundError: if the folder has neither.
        ValueError: if the pickle is not the official one, or if the mosaics do not match classes.txt.
    """
    folder = Path(folder)
    if (folder / cifar.PICKLES / split).is_file():
        return cifar.read_source(folder, split)
    missing = [name for name in ('classes.txt', *TARS[split]) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f'{str(folder)!r} has neither {cifar.PICKLES}/{split} nor {missing[0]}')
    return _read_mosaics(folder, split)


def _read_mosaics(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    classes = (folder / 'classes.txt').read_text().split()
    found = {}
    for name in TARS[split]:
        with tarfile.open(folder / name) as tar:
            for member in tar:
                path = Path(member.name)
                if path.suffix == '.webp' and path.parent.name == split:
                    found[path.stem] = cut_mosaic(np.asarray(Image.open(io.BytesIO(tar.extractfile(member).read()))))
    if set(found) != set(classes):
        raise ValueError(f'{split}: {len(found)} mosaics do not match the {len(classes)} classes in classes.txt')
    labels = np.repeat(np.arange(len(classes), dtype=np.uint8), [len(found[name]) for name in classes])
    return np.concatenate([found[name] for name in classes]), labels


def cut_mosaic(mosaic: np.ndarray) -> np.ndarray:
    """Cut a mosaic (rows * 32, columns * 32, 3) into its tiles, row by row: (n, 32, 32, 3)."""
    side = cifar.SIDE_PX
    rows, columns = mosaic.shape[0] // side, mosaic.shape[1] // side
    tiles = mosaic.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(-1, side, side, 3)


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.cifar100.data', description=__doc__.splitlines()[0])
    parser.add_argument('source', help='folder with cifar-100-python, or with mosaics')
    parser.add_argument('out', nargs='?', default='data/cifar100', help='folder to write (default: data/cifar100)')
    args = parser.parse_args()
    for split in cifar.PER_CLASS:
        images, labels = read(args.source, split)
        cifar.check(images, labels, split)
        cifar.write(images, labels, f'{args.out}/{split}.npz')
        mean = ' / '.join(f'{value:.3f}' for value in images.mean((0, 1, 2)))
        print(f'{args.out}/{split}.npz: {len(images):,} images, {cifar.PER_CLASS[split]} a class, mean {mean}')


if __name__ == '__main__':
    run_tool(main)
