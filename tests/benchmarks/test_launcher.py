"""The benchmark of the launchers: what it compares, and that its ratios are those of one round."""

import argparse

import pytest
from markdown_tables import cells
from mmengine.config import Config

from benchmarks import launcher


@pytest.mark.parametrize('biased', [True, False])
@pytest.mark.parametrize('task', launcher.TASKS)
def test_cases_differ_in_the_backbone_alone(task, biased, tmp_path):
    options = argparse.Namespace(task=task, data='data', batch=None, workers=0, iterations=5, size=[64, 96])
    cfg = Config.fromfile(launcher.write_config(tmp_path / 'case.py', options, biased))
    backbone = cfg.model.backbone
    if task == 'cifar':
        assert ('spatial_bias' in backbone and backbone.spatial_bias is None) == (not biased)
    else:
        assert backbone.type == ('mmsb.SBResNet' if biased else 'ResNet')
        assert backbone.init_cfg is None, 'nothing to download'
    assert cfg.train_dataloader.batch_size == launcher.TASKS[task][1]
    assert cfg.train_cfg.max_iters == launcher.WARMUP + 5
    assert cfg.val_cfg is None


def test_ratios_are_taken_within_a_round():
    stock, ours = next(iter(launcher.CASES)), 'sb, ours --fast'
    found = {stock: dict(images_per_s=[10, 40, 20], data_share=[0.0] * 3),
             ours: dict(images_per_s=[30, 80, 20], data_share=[0.5, 0.1, 0.2])}  # fmt: skip
    rows = [cells(line) for line in launcher.table(found).splitlines()]
    assert rows[2] == [stock, '20.0 (10.0 to 40.0)', '1.00', '0 %']
    assert rows[3] == [ours, '30.0 (20.0 to 80.0)', '2.00', '20 %']


@pytest.mark.parametrize(('args', 'named'), [
    (['cifar', '--data', 'nowhere'], "--data 'nowhere'"),
    (['cifar', '--rounds', '0'], '--rounds'),
])  # fmt: skip
def test_mistakes_are_named(args, named, monkeypatch):
    monkeypatch.setattr('sys.argv', ['launcher', *args])
    with pytest.raises((ValueError, FileNotFoundError), match=named):
        launcher.main()
