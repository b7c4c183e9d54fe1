"""The names of classes are those of the checkpoint, else of the config, else of the type of its dataset."""

import numpy as np
import pytest
from mmengine.config import Config

from mmsb.analysis import zoo
from mmsb.datasets.test_set import class_names, dataset_meta

IMAGENET = Config.fromfile(zoo.CONFIGS / 'imagenet/sb-resnet50_b256-100e_in1k.py')


def config(**dataset) -> Config:
    return Config(dict(default_scope='mmpretrain', test_dataloader=dict(dataset=dataset)))


@pytest.mark.parametrize(
    'checkpoint', [None, 3, {}, dict(meta=None), dict(meta=dict(dataset_meta=dict(CLASSES='a.txt')))]
)
def test_a_checkpoint_may_name_none(checkpoint):
    names = class_names(IMAGENET, checkpoint)
    assert (len(names), names[0].split(',')[0]) == (1000, 'tench')


@pytest.mark.parametrize('key', ['classes', 'CLASSES'])
def test_the_checkpoint_goes_first(key):
    checkpoint = dict(meta=dict(dataset_meta={key: np.array(['cat', 'dog'])}))
    cfg = config(type='ImageNet', metainfo=dict(classes=['one', 'two'], palette=[[1, 2, 3], [4, 5, 6]]))
    assert class_names(cfg, checkpoint) == ('cat', 'dog')
    assert class_names(cfg) == ('one', 'two')
    assert [one.get('palette') for one in dataset_meta(cfg, checkpoint)] == [None, [[1, 2, 3], [4, 5, 6]], None]


def test_wrapped_and_unknown_datasets():
    inner = dict(type='ImageNet', metainfo=dict(classes=('one',)))
    assert class_names(config(type='RepeatDataset', times=2, dataset=inner)) == ('one',)
    assert class_names(config(type='NoSuchDataset')) == ()
    assert class_names(Config()) == ()
