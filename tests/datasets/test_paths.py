"""Help messages for missing data."""

import pytest

from mmsb.datasets.paths import missing_folder


@pytest.mark.parametrize('folder', ['data/coco', 'data/coco/', './data/coco', 'data/coco/2017'])
def test_a_folder_of_a_known_dataset_gets_its_help(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert 'COCO 2017' in missing_folder(dict(data_root=folder), 'key')[1]


@pytest.mark.parametrize('folder', ['data/coco128', 'data/coco-stuff', 'data/cifar100-lt'])
def test_a_name_that_only_begins_so_gets_general_help(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, text = missing_folder(dict(data_root=folder), 'key')
    assert found == folder
    assert text.startswith('put the dataset there')
