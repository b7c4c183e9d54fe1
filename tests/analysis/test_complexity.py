"""The counter against counts by hand."""

import torch
from torch import nn

from mmsb.analysis.complexity import count
from mmsb.models import SpatialBias
from mmsb.registry import MODELS


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
