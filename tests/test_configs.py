"""Every shipped config parses, states its differences in a few lines, builds, and trains one step on tiny inputs."""

import functools
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData

from mmsb.analysis import zoo
from mmsb.analysis.complexity import Complexity
from mmsb.configs import build_model

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = json.loads((ROOT / 'tests/golden/complexity.json').read_text())
CONFIGS = sorted(
    str(path.relative_to(zoo.CONFIGS)) for path in zoo.CONFIGS.glob('*/*.py') if path.parent.name != '_base_'
)
FIXED_NAMES = [
    *(f'cifar100/{sb}resnet{depth}_b64-300e_cifar100.py' for sb in ('', 'sb-') for depth in (38, 65, 110)),
    *(f'cifar100/{sb}{block}-resnet38_b64-300e_cifar100.py' for sb in ('', 'sb-') for block in ('se', 'gc', 'nl')),
    *(f'imagenet/{name}_b256-100e_in1k.py' for name in ('resnet50', 'sb-resnet50', 'sb-resnet101')),
    *(f'imagenet/{name}-resnet50_b256-100e_in1k.py' for name in ('srm', 'ge', 'reduced-nl')),
    *(
        f'imagenet/{sb}{block}-resnet50_b256-100e_in1k.py'
        for sb in ('', 'sb-')
        for block in ('se', 'sk', 'nl', 'gc', 'bat')
    ),
    *(f'imagenet/{sb}resnet50_b512-rsb-100e_in1k.py' for sb in ('', 'sb-')),
]


def test_fixed_names_are_there():
    assert set(FIXED_NAMES) <= set(CONFIGS)


@pytest.mark.parametrize('name', [name for name in CONFIGS if not name.startswith('demo/')])
def test_config_is_a_short_diff(name):
    lines = (zoo.CONFIGS / name).read_text().splitlines()
    assert lines[0].startswith('#')
    assert any(name in line for line in lines[:4]), 'the header shows the command'
    body = [line for line in lines if line and not line.startswith('#')]
    assert len(body) <= 15


def _tiny_batch(cfg: Config, size: int = 64) -> dict:
    shape = (3, size, size)
    images = [torch.from_numpy(np.random.default_rng(i).integers(0, 255, shape, np.uint8)) for i in range(2)]
    if cfg.default_scope == 'mmseg':
        from mmseg.structures import SegDataSample

        classes = cfg.model.decode_head.num_classes
        samples = []
        for image in images:
            sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, classes, (1, 64, 64))))
            sample.set_metainfo(dict(img_shape=image.shape[1:], ori_shape=image.shape[1:]))
            samples.append(sample)
    else:
        from mmpretrain.structures import DataSample

        samples = [DataSample().set_gt_label(label) for label in (1, 3)]
    return dict(inputs=images, data_samples=samples)


FIXED_SIZES = {'ge': 224, 'bat': 112}  # of the images of networks whose blocks do not take every size
# Theirs are tests/test_downstream.py and, of the demo's detectors, tests/test_distributed.py.
DOWNSTREAM = ('coco/', 'ade20k/', 'camvid/', 'demo/faster-rcnn')


TIMM = 'imagenet/sb-convnext'  # tests/models/test_timm_backbone.py


@pytest.mark.parametrize('name', [name for name in CONFIGS if not name.startswith((*DOWNSTREAM, TIMM))])
def test_config_trains_a_step(name):
    cfg = zoo.load(name)
    if name.startswith('demo/') and cfg.default_scope == 'mmseg':
        pytest.importorskip('mmseg')
    model = build_model(cfg)
    model.init_weights()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {key: value.clone() for key, value in model.named_parameters()}
    block = Path(name).name.removeprefix('sb-').split('-')[0]
    losses = model.train().train_step(_tiny_batch(cfg, FIXED_SIZES.get(block, 64)), optim_wrapper)
    assert torch.isfinite(losses['loss'])
    after = dict(model.named_parameters())
    assert not torch.equal(before['backbone.conv1.weight'], after['backbone.conv1.weight'])
    if Path(name).name.startswith('sb-'):
        key = 'backbone.layer1.0.bias_conv.weight'
        assert not torch.equal(before[key], after[key])


@functools.cache
def measured(name: str, backbone_options: str = '') -> tuple[Complexity, tuple[int, int, int]]:
    cfg = zoo.load(name, backbone_options)
    return zoo.measure(cfg), zoo.input_shape(cfg)


@pytest.mark.parametrize('name', zoo.shipped())
def test_counts_are_the_golden_ones(name):
    assert asdict(measured(name)[0]) == GOLDEN[name]


def test_golden_file_has_no_stale_entry():
    assert set(GOLDEN) == set(zoo.shipped())


PAPER_ROWS = [row for row in zoo.paper_rows() if row['config']]


@pytest.mark.parametrize('row', PAPER_ROWS, ids=lambda row: f'{row["table"]}-{row["system"]}-{row["setting"]}')
def test_counts_are_the_papers(row):
    counts, shape = measured(row['config'], row['backbone_options'])
    assert shape == (zoo.CIFAR_SHAPE if row['config'].startswith('cifar100/') else (3, 224, 224))
    assert zoo.as_printed(counts.params / 1e6, row['params_m']) == row['params_m']
    if row['mflops']:
        # SK's figures fit the multiply-adds alone: with the rest SB-SK has 1.1 % more
        count, tight = (counts.macs, True) if 'SK-' in row['system'] else (counts.ops, row['table'] == '1')
        assert count / 1e6 == pytest.approx(float(row['mflops']), rel=0.005 if tight else 0.01)


def test_every_row_of_the_tables_is_there():
    rows = [(row['table'], row['system'], row['setting']) for row in zoo.paper_rows()]
    assert len(rows) == 43
    assert [(row['table'], row['system'], row['setting']) for row in PAPER_ROWS] == rows
