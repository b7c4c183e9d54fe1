"""The counter against counts by hand."""

import torch
from torch import nn

from mmsb.analysis.complexity import count
from mmsb.models import SpatialBias


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
    assert counts.macs == 6 * 2 * 9 * 12 + 2 * 6 * 6 * 12 + 12 * 6 * 5
    assert counts.ops == counts.macs


def test_counting_takes_no_memory_for_weights():
    net = nn.Sequential(nn.Conv2d(3, 4, 1))
    count(net, (3, 8, 8))
    assert net[0].weight.device == torch.device('meta')
