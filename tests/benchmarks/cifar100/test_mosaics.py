"""Mosaics are split into the images and labels of a data split."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from benchmarks.cifar100 import data

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)


def _add(tar: tarfile.TarFile, name: str, mosaic: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(mosaic).save(buffer, 'webp', lossless=True)
    member = tarfile.TarInfo(name)
    member.size = buffer.tell()
    buffer.seek(0)
    tar.addfile(member, buffer)


def test_mosaics_are_cut_row_by_row_in_the_order_of_the_classes(tmp_path):
    (tmp_path / 'classes.txt').write_text('pear\napple\n')
    with tarfile.open(tmp_path / 'test.tar', 'w') as tar:
        for name, tiles in (('apple', PIXELS[3:]), ('pear', PIXELS[:3])):
            _add(tar, f'cifar100/test/{name}.webp', np.concatenate(list(tiles), axis=1))
    images, labels = data.read(tmp_path, 'test')
    assert np.array_equal(images, PIXELS)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    grid = np.block([[[PIXELS[0]], [PIXELS[1]]], [[PIXELS[2]], [PIXELS[3]]]])
    assert np.array_equal(data.cut_mosaic(grid), PIXELS[:4])
    (tmp_path / 'classes.txt').write_text('pear\napple\nplum\n')
    with pytest.raises(ValueError, match=r'2 mosaics do not match the 3 classes in classes\.txt'):
        data.read(tmp_path, 'test')


def test_missing_source_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'neither cifar-100-python/train nor classes\.txt'):
        data.read(tmp_path, 'train')
