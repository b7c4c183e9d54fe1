"""The sweep over upstream configs: a few rows end to end, the faults that it must detect, and its page."""

import json
import os
import socket
import time

import pytest
import torch

from benchmarks.upstream import __main__ as command
from benchmarks.upstream import networks, row
from benchmarks.upstream.page import page
from benchmarks.upstream.processes import run_all

DETECTOR = 'yolof/yolof_r50-c5_8xb8-1x_coco.py'
SEGMENTER = 'sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py'
SIAMESE = 'simsiam/simsiam_resnet50_8xb32-coslr-100e_in1k.py'


def run(function, *task, limit_s: float = 300) -> dict:
    ((told, result),) = run_all(function, [task], jobs=1, limit_s=limit_s)
    assert told == task
    return result


@pytest.fixture(scope='module', autouse=True)
def _libraries():
    row.prepare()


@pytest.mark.parametrize(('library', 'config'), [('mmdet', DETECTOR), ('mmseg', SEGMENTER)])
def test_row(library, config):
    result = run(row.run_row, library, config, {})
    assert 0 < result.pop('seconds') < 300
    assert result.pop('replaced') == ['ResNetV1c' if library == 'mmseg' else 'ResNet']
    objects = result.pop('objects')
    assert (objects > 0) if library == 'mmdet' else (objects is None)
    assert result == dict(built=True, step=True, prediction=True, gradients=True, reason='')


def test_command(tmp_path, monkeypatch):
    """Two rows of one config; then another folder's, which fail, beside them; then with other packages."""
    results, text = tmp_path / 'some.json', tmp_path / 'some.md'
    files = ['--json', str(results), '--page', str(text)]
    command.main(['--folders', 'mmpretrain/simsiam', *files])
    (first,) = json.loads(results.read_text())['rows']
    assert (first['config'], first['plain']['gradients'], first['spatial_bias']['gradients']) == (SIAMESE, None, True)
    assert first['plain']['prediction']
    assert first['spatial_bias']['prediction']

    monkeypatch.setattr(command, 'run_row', crash)
    command.main(['--folders', 'mmdet/yolof', *files])
    second, kept = json.loads(results.read_text())['rows']
    assert kept == first
    assert (second['config'], second['plain']['reason']) == (DETECTOR, 'the process ended with exit code 3')
    assert '**1 of 2 folders work**' in text.read_text()

    monkeypatch.setattr(command, 'versions', lambda: dict(torch='1.0'))
    with pytest.raises(ValueError, match=r'some\.json is of other packages'):
        command.main(['--folders', 'mmdet/yolof', *files])
    assert len(json.loads(results.read_text())['rows']) == 2


@pytest.mark.parametrize(('name', 'valid'), [('mmx/dino', 'mmpretrain'), ('mmdet/dine', 'dino')])
def test_folder_that_does_not_exist(name, valid):
    with pytest.raises(ValueError, match=f'{valid}.*got {name.split("/")["mmdet" in name]!r}'):
        command.main(['--folders', name])


def test_row_says_what_stopped_it():
    result = run(row.run_row, 'mmdet', DETECTOR, dict(maps=3))
    assert not result['built']
    assert result['reason'].startswith("building: UnknownOptionError: spatial_bias has no option 'maps'")


def test_parameters_that_no_gradient_reaches():
    cfg, _ = networks.load('mmpretrain', SIAMESE, {})
    model = row.build(cfg, 'mmpretrain')
    torch.nn.init.zeros_(model.backbone.layer2[1].bias_conv.weight)
    assert row.train_step(cfg, model)[0] == 'backbone.layer2.1.spatial_bias.reduce.conv.weight'


def crash(*_) -> dict:
    os._exit(3)


def download() -> dict:
    try:
        socket.create_connection(('127.0.0.1', 9))
    except OSError as error:
        return dict(reason=str(error))


@pytest.mark.parametrize(
    ('function', 'task', 'reason'),
    [
        (crash, (), 'the process ended with exit code 3'),
        (time.sleep, (60,), 'not done after 1 s'),
        (download, (), 'it wants to download something'),
    ],
)
def test_a_process_that_fails_is_a_reason(function, task, reason):
    assert run(function, *task, limit_s=1 if task else 30)['reason'] == reason


def test_choice_of_configs():
    assert networks.choose_config('mmdet', 'ssd') is None
    assert networks.choose_config('mmdet', 'deformable_detr').startswith('deformable_detr/deformable-detr')
    assert networks.choose_config('mmpretrain', 'spark') == 'spark/benchmarks/resnet50_8xb256-coslr-300e_in1k.py'


@pytest.mark.parametrize(
    ('library', 'config', 'replaced'),
    [
        ('mmdet', 'ld/ld_r50-gflv1-r101_fpn_1x_coco.py', ['ResNet', 'ResNet']),  # the teacher is another config
        ('mmdet', 'strongsort/strongsort_yolox_x_8xb4-80e_crowdhuman-mot17halftrain_test-mot17halfval.py', ['ResNet']),
        ('mmpretrain', 'resnext/resnext50-32x4d_8xb32_in1k.py', ['ResNeXt']),
    ],
)
def test_no_resnet_and_no_weights_remain(library, config, replaced):
    cfg, found = networks.load(library, config, {})
    assert found == replaced
    text = str(cfg.model.to_dict())
    assert text.count("'type': 'mmsb.SBResNet'") == len(replaced)
    assert "'ResNet" not in text
    assert '://' not in text


def test_page():
    good = dict(replaced=['ResNet'], built=True, step=True, prediction=True, gradients=None, seconds=2.0, reason='')
    crashed = dict(seconds=1.0, reason='the process ended with exit code 3')
    rows = [
        dict(library='mmdet', folder='a', config='a/a.py', plain=good, spatial_bias={**good, 'gradients': True}),
        dict(library='mmdet', folder='b', config='b/b.py', plain=good, spatial_bias=crashed),
        dict(library='mmseg', folder='c', config='c/c.py', plain=good, spatial_bias={**good, 'gradients': False}),
    ]
    about = dict(date='2026-11-24T12:00:00+00:00', cpu='CPU', cores=2, operations='compiled')
    text = page(dict(about={**about, 'versions': dict(torch='2.0')}, folders=dict(mmdet=5, mmseg=4), rows=rows))
    assert '**1 of 3 folders work**' in text
    assert '| mmdet | 5 | 2 | 2 | 1 | 1 |' in text
    assert '| mmseg | 4 | 1 | 1 | 0 | 0 |' in text
    assert '* `mmdet/b/b.py`: with spatial bias: the process ended with exit code 3' in text
    assert '`a/a.py` | ResNet   | works | works     | yes' in text
    assert '`b/b.py` |          | works | not built | -' in text
