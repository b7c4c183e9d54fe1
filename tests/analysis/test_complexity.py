"""The counter matches counts by hand."""

import json
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmsb.analysis import zoo
from mmsb.analysis.complexity import Complexity, count, count_parts
from mmsb.models import SpatialBias
from mmsb.registry import MODELS

SB_RESNET38 = 'cifar100/sb-resnet38_b64-300e_cifar100.py'


class _Beside(nn.Module):
    def __init__(self, out_size: tuple[int, int], **options):
        super().__init__()
        self.bias = SpatialBias(8, **options)
        self.out_size = out_size

    def forward(self, x):
        return self.bias(x, self.out_size)


def test_spatial_bias_by_hand():
    height, width, n, s, k = 20, 30, 2, 5, 3
    r = n + k - 1
    counts = count(_Beside((10, 15), num_maps=n, pool_size=s, kernel_size=k), (8, height, width))
    macs = 8 * r * height * width + s**2 * s**2 * k * n
    norm = 2 * r * height * width
    pool = r * height * width + r * s**2  # 20 and 30 are multiples of 5: each element is read once
    upsample = 11 * n * 10 * 15
    assert counts.macs == macs
    assert counts.ops == macs + norm + pool + upsample
    assert counts.params == 8 * r + 2 * r + s**2 * s**2 * k + s**2
    assert counts.activations == r * height * width + s**2 * n


def test_convolution_linear_and_attention_by_hand():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
            self.fc = nn.Linear(6, 5)

        def forward(self, x):
            x = self.conv(x).flatten(2)  # (1, 6, 12)
            return self.fc((x @ x.transpose(1, 2) @ x).transpose(1, 2))

    counts = count(Net(), (4, 6, 8))
    products = 2 * 6 * 6 * 12
    assert counts.macs == 6 * 2 * 9 * 12 + products + 12 * 6 * 5
    assert counts.ops == counts.macs + products, 'a multiplication and an addition each'


def context(name: str, **options) -> nn.Module:
    return MODELS.build(dict(type=f'mmsb.{name}', in_channels=8, **options))


def test_non_local_block_by_hand():
    counts = count(context('NL', ratio=4), (8, 5, 7))
    projections, products = 4 * 8 * 2 * 35, 2 * 35 * 35 * 2
    assert counts.macs == projections + products
    assert counts.ops == counts.macs + products + 2 * 8 * 35
    assert counts.params == 3 * (8 * 2 + 2) + 2 * 8 + 8 + 2 * 8


def test_bilinear_transform_by_hand():
    counts = count(context('BAT', block_size=3, groups=2), (8, 6, 9))
    area, inner, side, groups = 6 * 9, 4, 3, 2
    convs = 2 * 8 * inner * area + inner * groups * area + inner * inner * area
    convs += 2 * groups * side**2 * groups * side
    products = 2 * inner * side * area  # each pixel is a sum over a row, then over a column of blocks
    maxima = 2 * groups * side * (2 * 9 + 1), 2 * groups * side * (3 * 6 + 1)
    assert counts.macs == convs + products
    assert counts.ops == counts.macs + products + 2 * area * (inner + groups + inner + 8) + sum(maxima) // 2


def test_style_recalibration_and_channel_convolution_by_hand():
    counts = count(context('SRM'), (8, 5, 7))
    assert (counts.params, counts.macs) == (4 * 8, 0)
    assert counts.ops == (1 + 3) * 8 * 35 + 2 * 8
    counts = count(context('ECA'), (8, 5, 7))
    assert (counts.params, counts.macs) == (3, 3 * 8)
    assert counts.ops == 3 * 8 + 8 * 35 + 8


def test_counting_takes_no_memory_for_weights():
    net = nn.Sequential(nn.Conv2d(3, 4, 1))
    count(net, (3, 8, 8))
    assert net[0].weight.device == torch.device('meta')


class _Product(nn.Module):
    """A network without inputs: a function of weights of the given shapes."""

    def __init__(self, function, *shapes: tuple[int, ...]):
        super().__init__()
        self.function = function
        self.operands = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for shape in shapes)

    def forward(self, x):
        return self.function(*self.operands)


PRODUCTS = {
    'mm': (torch.mm, [(5, 4), (4, 6)], 5 * 4 * 6),
    'mv': (torch.mv, [(5, 4), (4,)], 5 * 4),
    'matmul with a vector': (torch.matmul, [(2, 5, 4), (4,)], 2 * 5 * 4),
    'dot': (torch.dot, [(5,), (5,)], 5),
    'addmm': (torch.addmm, [(6,), (5, 4), (4, 6)], 5 * 4 * 6),
    'addmv': (torch.addmv, [(5,), (5, 4), (4,)], 5 * 4),
    'bmm': (torch.bmm, [(3, 5, 4), (3, 4, 6)], 3 * 5 * 4 * 6),
    'baddbmm': (torch.baddbmm, [(3, 5, 6), (3, 5, 4), (3, 4, 6)], 3 * 5 * 4 * 6),
    'addbmm': (torch.addbmm, [(5, 6), (3, 5, 4), (3, 4, 6)], 3 * 5 * 4 * 6),
    'einsum': (lambda a, b: torch.einsum('bij,bkj->bik', a, b), [(3, 5, 4), (3, 6, 4)], 3 * 5 * 4 * 6),
    'attention': (
        F.scaled_dot_product_attention,
        [(2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)],
        2 * 3 * 5 * 7 * (4 + 6),
    ),
    'conv1d': (F.conv1d, [(2, 5, 7), (6, 5, 3)], 2 * 6 * 5 * 5 * 3),
}


@pytest.mark.parametrize('name', PRODUCTS)
def test_every_kind_of_product_is_counted(name):
    function, shapes, macs = PRODUCTS[name]
    assert count(_Product(function, *shapes), (3, 2, 2)).macs == macs


def test_parts_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, padding=1)))
    counts = count_parts(net, (3, 6, 8), ['0', '1', '1.1'])
    area = 6 * 8
    assert counts['0'] == Complexity(params=16, macs=12 * area, ops=12 * area, activations=4 * area)
    assert counts['1.1'] == Complexity(params=185, macs=180 * area, ops=180 * area, activations=5 * area)
    assert counts['1'] - counts['1.1'] == Complexity(params=8, macs=0, ops=8 * area, activations=0)
    assert counts[''] - counts['0'] == counts['1']


def test_stages_sum_up_to_the_network():
    cfg = zoo.load(SB_RESNET38)
    stages = zoo.measure_stages(cfg)
    assert list(stages) == ['stem', 'layer1', 'layer2', 'layer3', 'head']
    whole = zoo.measure(cfg)
    for name, value in asdict(whole).items():
        assert sum(getattr(stage, name) for stage in stages.values()) == value
    assert stages['stem'].macs == 3 * 16 * 9 * 32 * 32
    assert stages['head'].params == 256 * 100 + 100


def test_bias_by_hand():
    """SB-ResNet-38, stages 1 and 2: per stage, C channels at the block's input width and 4 blocks."""
    n, s, r = 3, 6, 5
    bias = zoo.measure_bias(zoo.load(SB_RESNET38))
    mix = s**4 * 3 + s**2
    assert bias.params == sum(4 * (c * r + 2 * r + mix + 2 * n + n * 4 * c) for c in (16, 32))
    reduced_px = {16: [1024] * 4, 32: [1024] + [256] * 3}  # the first 3x3 of a stage has the stride
    read_px = {16: 1024, 32: 256}
    macs = sum(sum(c * r * px for px in reduced_px[c]) + 4 * (s**4 * 3 * n + n * 4 * c * read_px[c]) for c in (16, 32))
    assert bias.macs == macs
    assert bias.activations == sum(r * px for c in (16, 32) for px in reduced_px[c]) + 8 * s**2 * n


def test_bias_of_a_plain_network_is_none():
    assert zoo.measure_bias(zoo.load('cifar100/resnet38_b64-300e_cifar100.py')) is None


def test_backbone_of_a_detector():
    cfg = zoo.load('coco/faster-rcnn_sb-r50_fpn_1x_coco.py')
    with pytest.raises(ValueError, match='pass the size of its images'):
        zoo.measure(cfg)
    counts = zoo.measure(cfg, (3, 224, 224))
    classifier = zoo.measure_stages(zoo.load('imagenet/sb-resnet50_b256-100e_in1k.py'))
    head = classifier.pop('head')
    assert head.params == 2048 * 1000 + 1000
    assert zoo.measure_stages(cfg, (3, 224, 224)) == classifier
    assert counts.params == 25_986_620 - head.params


def test_tool_writes_json_and_csv(tmp_path, run_tool):
    options = ('--stages', '--bias', '--json', 'counts.json', '--csv', 'counts.csv')
    done = run_tool('analysis/complexity.py', SB_RESNET38, *options, cwd=tmp_path, fresh=True)
    assert done.returncode == 0, done.stderr
    assert 'activations M' in done.stdout
    assert '| bias ' in done.stdout
    counts = json.loads((tmp_path / 'counts.json').read_text())[SB_RESNET38]
    assert counts['params'] == 463_764
    assert list(counts['stages']) == ['stem', 'layer1', 'layer2', 'layer3', 'head']
    assert counts['bias']['params'] == 463_764 - 428_980
    lines = (tmp_path / 'counts.csv').read_text().splitlines()
    assert lines[0] == 'config,part,params,macs,ops,activations'
    assert [line.split(',')[1] for line in lines[1:]] == ['network', *counts['stages'], 'bias']
