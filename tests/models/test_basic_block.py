"""The basic block matches the formula with one wide convolution; networks of basic blocks match the libraries'."""

import copy
import importlib

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsb.models import SBResNet
from mmsb.models.basic_block import BasicBlock


def scramble_norms(net):
    for norm in [m for m in net.modules() if isinstance(m, _BatchNorm)]:
        for value in [*norm.parameters(), norm.running_mean, norm.running_var]:
            nn.init.uniform_(value, 0.3, 1.2)
    return net


def make(**options):
    torch.manual_seed(0)
    if options.get('stride', 1) > 1:
        options['downsample'] = nn.Sequential(nn.Conv2d(6, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6))
    return scramble_norms(BasicBlock(6, 6, **options)).double()


def wide_reading(block, x):
    """`conv2` of 6 + N channels reads `relu(norm([conv1(x); maps]))`."""
    y = block.conv1(x)
    maps = block.spatial_bias(x, y.shape[-2:])
    read = torch.cat([block.bn1(y).relu(), block.bias_norm(maps).relu()], 1)
    weight = torch.cat([block.conv2.weight, block.bias_conv.weight], 1)
    out = block.bn2(torch.conv2d(read, weight, padding=1))
    return ((x if block.downsample is None else block.downsample(x)) + out).relu()


@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize('bias', [dict(), dict(num_maps=5, pool='max'), dict(num_maps=2, mix=False)])
@pytest.mark.parametrize('geometry', [dict(), dict(stride=2), dict(dilation=2), dict(stride=2, with_cp=True)])
def test_equals_one_wide_convolution(geometry, bias, training):
    block = make(spatial_bias=dict(pool_size=3, **bias), **geometry).train(training)
    theirs = copy.deepcopy(block)
    xs = [torch.randn(3, 6, 9, 7, dtype=torch.double, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    out, expected = block(xs[0].requires_grad_()), wide_reading(theirs, xs[1].requires_grad_())
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-10)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y, x in zip((out, expected), xs, strict=True)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


def test_plugins_stand_behind_each_convolution_and_the_block():
    class Scale(nn.Module):
        def __init__(self, in_channels, by):
            super().__init__()
            self.by = by

        def forward(self, x):
            return self.by * x

    positions = ('after_conv1', 'after_conv2', 'after_block')
    scales = [dict(cfg=dict(type=Scale, by=by, postfix=f'_{by}'), position=p) for by, p in zip((2, 3, 5), positions)]  # noqa: B905
    block, x = make(plugins=scales).eval(), torch.randn(2, 6, 5, 4, dtype=torch.double)
    inner = 3 * block.bn2(block.conv2(2 * block.bn1(block.conv1(x)).relu()))
    torch.testing.assert_close(block(x), 5 * (x + inner).relu())


@pytest.mark.parametrize(('library', 'options'), [
    ('mmpretrain', dict()),
    ('mmpretrain', dict(deep_stem=True, avg_down=True, frozen_stages=1)),
    ('mmdet', dict(dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1))),
    ('mmseg', dict(deep_stem=True, contract_dilation=True, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1))),
])  # fmt: skip
@pytest.mark.parametrize('depth', [18, 34])
def test_networks_are_the_libraries(library, options, depth):
    kind = importlib.import_module(f'{library}.models').backbones.ResNet
    narrow = dict(base_channels=8, out_indices=(0, 1, 2, 3), **options)
    torch.manual_seed(0)
    theirs = scramble_norms(kind(depth, stem_channels=8, **narrow))
    ours, biased = SBResNet(depth, None, **narrow), SBResNet(depth, **narrow)
    x = torch.randn(2, 3, 65, 47)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    for training in (False, True):
        ours.train(training), theirs.train(training)
        for norm in [m for m in theirs.modules() if isinstance(m, _BatchNorm)]:
            norm.train(norm.training or (training and library == 'mmdet'))  # its norm_eval is True by default
        with torch.no_grad():
            assert all(map(torch.equal, ours(x), theirs(x)))
    assert [out.shape for out in biased(x)] == [out.shape for out in theirs(x)]


def test_the_bias_adds_what_the_operator_and_its_reader_have():
    with torch.device('meta'):
        counts = [sum(p.numel() for p in SBResNet(18, bias).parameters()) for bias in (dict(), None)]
    widths = [(64, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256)]
    expected = sum(5 * (c_in + 2) + 100 * 100 * 3 + 100 + 3 * 2 + 9 * 3 * c for c_in, c in widths)
    assert counts[0] - counts[1] == expected


def test_backward_reaches_every_parameter():
    net = scramble_norms(SBResNet(18, base_channels=8, sb_stages=(True,) * 4)).train()
    sum((out * torch.rand_like(out)).mean() for out in net(torch.randn(2, 3, 64, 64))).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_residual_branches_start_at_zero():
    net = SBResNet(18, base_channels=8)
    net.init_weights()
    blocks = [m for m in net.modules() if isinstance(m, BasicBlock)]
    assert len(blocks) == 8
    assert not any(block.bn2.weight.any() for block in blocks)
    assert all(block.bn1.weight.all() for block in blocks)


@pytest.mark.parametrize(('options', 'named'), [
    (dict(groups=32), ['groups', 'basic block', '32']),
    (dict(base_width=128), ['base_width', 'basic block', '128']),
    (dict(expansion=4), ['expansion', 'basic block', '4']),
    (dict(style='caffe'), ['style', 'basic block', 'caffe']),
    (dict(conv2=dict(type='mmsb.SK')), ['conv2', 'basic block', 'SK']),
    (dict(spatial_bias=dict(position='conv2')), ['position', 'conv1', "'conv2'"]),
    (dict(plugins=[dict(cfg=dict(type='mmsb.SE'), position='after_conv3')]), ['after_conv3', 'after_conv2']),
])  # fmt: skip
def test_what_only_a_bottleneck_has_is_refused(options, named):
    with pytest.raises(ValueError) as error:
        SBResNet(18, **options)
    assert all(word in str(error.value) for word in named), error.value
