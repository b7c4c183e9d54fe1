"""The sweep over upstream configs: a few rows end to end, the faults that it must detect, and its page."""

import os
import socket
import time

import pytest
import torch

from benchmarks.upstream import networks, row
from benchmarks.upstream.page import page
from benchmarks.upstream.processes import run_all

QUICK = {  # a config of each kind of network
    'mmdet': 'yolof/yolof_r50-c5_8xb8-1x_coco.py',
    'mmseg': 'sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py',
    'mmpretrain': 'simsiam/simsiam_resnet50_8xb32-coslr-100e_in1k.py',
}


def run(function, *task, limit_s: float = 120) -> dict:
    told = []
    (result,) = run_all(function, [task], jobs=1, limit_s=limit_s, done=lambda *args: told.append(args))
    assert told == [(task, result)]
    return result


@pytest.fixture(scope='module', autouse=True)
def _libraries():
    row.prepare()


@pytest.mark.parametrize('library', QUICK)
def test_row(library):
    result = run(row.run_row, library, QUICK[library], {})
    seconds = result.pop('seconds')
    assert 0 < seconds < 120
    assert result.pop('replaced') == ['ResNetV1c' if library == 'mmseg' else 'ResNet']
    assert result == dict(built=True, step=True, prediction=True, gradients=True, objects=result['objects'], reason='')


def test_row_without_bias():
    result = run(row.run_row, 'mmdet', 'reid/reid_r50_8xb32-6e_mot15train80_test-mot15val20.py', None)
    assert result['prediction']
    assert result['gradients'] is None


def test_row_says_what_stopped_it():
    result = run(row.run_row, 'mmdet', QUICK['mmdet'], dict(maps=3))
    assert not result['built']
    assert result['reason'].startswith("building: ValueError: spatial_bias has no option 'maps'")


def test_parameters_that_no_gradient_reaches():
    cfg, _ = networks.load('mmpretrain', QUICK['mmpretrain'], {})
    model = row.build(cfg, 'mmpretrain')
    torch.nn.init.zeros_(model.backbone.layer2[1].bias_conv.weight)
    assert row.train_step(cfg, model)[0] == 'backbone.layer2.1.spatial_bias.reduce.conv.weight'


def crash() -> dict:
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
    about = dict(date='2026-11-24T12:00:00+00:00', cpu='CPU', cores=2, minutes=3, jobs=2, operations='compiled')
    text = page(dict(about={**about, 'versions': dict(torch='2.0')}, folders=dict(mmdet=5, mmseg=4), rows=rows))
    assert '**1 of 3 folders work**' in text
    assert '| mmdet | 5 | 2 | 2 | 1 | 1 |' in text
    assert '| mmseg | 4 | 1 | 1 | 0 | 0 |' in text
    assert '* `mmdet/b/b.py`: with spatial bias: the process ended with exit code 3' in text
    assert '`a/a.py` | ResNet   | works | works     | yes' in text
    assert '`b/b.py` |          | works | not built | -' in text
