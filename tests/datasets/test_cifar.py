"""CIFAR-100 as arrays: reading the pickles, refusing wrong files, and the dataset."""

import hashlib
import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from chaos.forge import Call, array, pickled
from mmengine.registry import DATASETS, init_default_scope

from mmsb.datasets import cifar

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)


class _Python2Pickler(pickle._Pickler):
    """Writes bytes like Python 2, which was used to make the official files."""

    def _save_string(self, data: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack('<i', len(data)) + data)

    dispatch = {**pickle._Pickler.dispatch, bytes: _save_string}


def _pickles(folder: Path, content: bytes) -> Path:
    (folder / cifar.PICKLES).mkdir()
    (folder / cifar.PICKLES / 'train').write_bytes(content)
    return folder


def test_the_official_pickle_is_read(tmp_path, monkeypatch):
    rows = PIXELS.transpose(0, 3, 1, 2).reshape(6, -1)
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(dict(data=rows, fine_labels=[5, 4, 3, 2, 1, 0], filenames=['a'] * 6))
    official = ['train', hashlib.md5(file.getvalue()).hexdigest()]
    monkeypatch.setattr(cifar.CIFAR100, 'train_list', [official])
    images, labels = cifar.read_source(_pickles(tmp_path, file.getvalue()), 'train')
    assert np.array_equal(images, PIXELS)
    assert labels.tolist() == [5, 4, 3, 2, 1, 0]


FORGED = array(Call(np.dtype, 'f8', False, True, state=(3, '|', None, None, None, -(2**40), 1, 63)), (2**40,), b'')


@pytest.mark.parametrize('entry', [dict(data=Call(print, 'run')), dict(data=FORGED), dict(data=PIXELS), [1]])
def test_other_pickles_are_refused_and_not_run(tmp_path, capsys, entry):
    with pytest.raises(ValueError, match='is not the official file of CIFAR-100') as error:
        cifar.read_source(_pickles(tmp_path, pickled(entry)), 'train')
    assert '\n' not in str(error.value)
    assert not capsys.readouterr().out


def test_missing_source_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'cifar-100-python/train. does not exist'):
        cifar.read_source(tmp_path, 'train')


def test_check_wants_the_whole_set():
    images, labels = np.zeros((10000, 32, 32, 3), np.uint8), np.repeat(np.arange(100, dtype=np.uint8), 100)
    cifar.check(images, labels, 'test')
    with pytest.raises(ValueError, match='must have 100 images'):
        cifar.check(images, np.roll(labels, 1) // 2, 'test')
    with pytest.raises(ValueError, match='shape'):
        cifar.check(images[:-1], labels[:-1], 'test')
    with pytest.raises(ValueError, match='mean'):
        cifar.check(np.zeros((50000, 32, 32, 3), np.uint8), labels.repeat(5), 'train')


def test_dataset_gives_the_pictures_of_the_first_classes(tmp_path):
    cifar.write(PIXELS, np.array([0, 9, 1, 2, 0, 5], np.uint8), tmp_path / 'train.npz')
    init_default_scope('mmpretrain')
    cfg = dict(type='mmsb.CIFAR100Arrays', data_root=str(tmp_path), first_classes=2, pipeline=[dict(type='PackInputs')])
    dataset = DATASETS.build(cfg)
    assert [dataset[i]['data_samples'].gt_label.item() for i in range(len(dataset))] == [0, 1, 0]
    assert np.array_equal(dataset[1]['inputs'].permute(1, 2, 0).numpy(), PIXELS[2])
    with pytest.raises(FileNotFoundError, match=r'benchmarks\.cifar100\.data'):
        DATASETS.build({**cfg, 'split': 'test'})
