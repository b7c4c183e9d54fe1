"""What `--compile` compiles, by PyTorch's own compiler: its values and gradients are those of the eager part."""

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from mmdet.models.necks import FPN
from test_any_network import NETWORKS, biased, out, trained
from test_context import build, scramble
from torch import nn
from torch._dynamo.utils import counters

from mmsb.engine import speed
from mmsb.models import SpatialBias
from mmsb.models.any_network import type_name
from mmsb.models.basic_block import BasicBlock
from mmsb.models.bottleneck import Bottleneck
from mmsb.models.resizing import adaptive_pool2d, upsample_bilinear

NEEDS_COMPILER = pytest.mark.skipif(not any(map(shutil.which, ('g++', 'clang++'))), reason='no C++ compiler')
SIZES = [(12, 10), (14, 10), (10, 14), (16, 20), (20, 16), (32, 9), (9, 32), (17, 23), (40, 37), (64, 48)]
TWO_SIZES = [(12, 20), (16, 8)]


@pytest.fixture
def said(monkeypatch):
    """Return what the log says of parts that stay eager."""
    torch._dynamo.reset()
    counters.clear()
    lines = []
    monkeypatch.setattr(speed, 'print_log', lambda text, *_: lines.append(text))
    return lines


class Resizing(nn.Module):
    """What spatial bias does between its convolutions."""

    def forward(self, x):
        return upsample_bilinear(adaptive_pool2d(x, 3), x.shape[-2:])


class Bias(SpatialBias):
    """Spatial bias at the size of its input."""

    def forward(self, x):
        return super().forward(x, x.shape[-2:])


class Neck(FPN):
    """MMDetection's neck, for the maps of a pyramid that it makes of its input."""

    def forward(self, x):
        return super().forward((x, F.avg_pool2d(x, 2)))


def shortcut(channels):
    return nn.Sequential(nn.Conv2d(16, channels, 1, stride=2, bias=False), nn.BatchNorm2d(channels))


BIAS = dict(spatial_bias=dict(pool_size=3))
PARTS = {  # with 16 channels at the input
    'resizing': Resizing,
    'spatial bias': lambda: Bias(16, pool_size=3),
    'spatial bias of maxima': lambda: Bias(16, pool_size=3, pool='max', mix=False),
    'bottleneck': lambda: Bottleneck(16, 4, stride=2, downsample=shortcut(16), **BIAS),
    'basic block': lambda: BasicBlock(16, 8, stride=2, downsample=shortcut(8), **BIAS),
    'neck': lambda: Neck([16, 16], 8, num_outs=3),
}


def results(part, x):
    """Compute outputs, gradients of a random weighted sum of them, and statistics."""
    outs = part(x)
    outs = outs if isinstance(outs, tuple) else (outs,)
    random = torch.Generator().manual_seed(1)
    total = sum((out * torch.randn(out.shape, generator=random, dtype=out.dtype)).sum() for out in outs)
    learnt = [p for p in part.parameters() if p.requires_grad]
    return [*outs, *torch.autograd.grad(total, [x, *learnt]), *part.buffers()]


def compare(part, shapes, memory_format=torch.channels_last, rtol=1e-7):
    """Compile a part as detectors do, and compare it with itself at images of several shapes; both train."""
    part = part.double().train().to(memory_format=memory_format)
    eager = copy.deepcopy(part)
    speed._compile(part, dynamic=True, name='backbone')
    for seed, shape in enumerate(shapes):
        random = torch.Generator().manual_seed(seed)
        x = torch.randn(shape, generator=random, dtype=torch.double).to(memory_format=memory_format).requires_grad_()
        torch.testing.assert_close(results(part, x), results(eager, x), rtol=rtol, atol=1e-9)


@NEEDS_COMPILER
@pytest.mark.parametrize('name', PARTS)
def test_one_graph_for_ten_sizes(name, said):
    torch.manual_seed(0)
    compare(scramble(PARTS[name]()), [(2, 16, *size) for size in SIZES])
    assert said == []
    assert counters['stats']['unique_graphs'] == 1


BLOCKS = {  # a context block of 16 channels, or a layer in its place; what the log says if it stays eager
    **{name: (lambda name=name: build(name, 16, ratio=4), '') for name in ('SE', 'CBAM', 'GC')},
    **{name: (lambda name=name: build(name, 16), '') for name in ('SRM', 'ECA', 'SK')},
    'GE': (lambda: build('GE', 16, extent=TWO_SIZES[0]), ''),
    'ReducedNL': (lambda: build('ReducedNL', 16, pool_size=3), ''),
    'NL': (lambda: build('NL', 16), 'truth value'),
    'BAT': (lambda: nn.Sequential(shortcut(16), build('BAT', 16, block_size=2, drop_rate=0.0)), 'truth value'),
    'DCN': (lambda: DeformConv2dPack(16, 8, 3, padding=1), 'resize_'),
    'DCNv2': (lambda: ModulatedDeformConv2dPack(16, 8, 3, padding=1), ''),
}


@NEEDS_COMPILER
@pytest.mark.parametrize('name', BLOCKS)
def test_a_context_block_compiles_or_stays_eager(name, said):
    make, reason = BLOCKS[name]
    torch.manual_seed(0)
    compare(make(), [(2, 16, *size) for size in TWO_SIZES[: 1 if name == 'GE' else 2]])
    check_said(said, reason)


def check_said(said, reason):
    """Check that one line says why a part stays eager, where it does; the reason is in PyTorch's words."""
    assert len(said) == bool(reason)
    for line in said:
        assert line.startswith('backbone cannot be compiled as one graph, and stays eager: ')
        assert reason in line
        assert '\n' not in line
        assert len(line) < 500


COMPILED = 'timm.models.convnext.ConvNeXtBlock'  # the one with other norms


@NEEDS_COMPILER
@pytest.mark.parametrize('kind', NETWORKS)
def test_a_block_of_timm_compiles_or_stays_eager(kind, said, monkeypatch):
    """One by the whole compiler; the others by all of it but the last steps, which take half a minute for each."""
    if kind != COMPILED:
        compile = torch.compile
        monkeypatch.setattr(
            torch, 'compile',
            lambda *args, options, **others: compile(*args, backend='aot_eager', **others),
        )  # fmt: skip
    block, channels = block_of_timm(kind)
    compare(block, [(2, channels, *TWO_SIZES[0])])
    assert said == []


def block_of_timm(kind):
    """Return a block with spatial bias and without chance, and the channels of its input."""
    net = trained(kind)
    block = next(module for module in biased(net) if type_name(module) == kind)
    for module in block.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
        if hasattr(module, 'drop_prob'):
            module.drop_prob = 0.0
    shapes = []
    with torch.no_grad(), block.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape)):
        out(net)
    return block, shapes[0][1]
