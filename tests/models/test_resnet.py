"""SBResNet and SBResNetCifar match torchvision, mmpretrain and mmsegmentation, and meet the needs of training."""

import copy
import functools
import importlib
import itertools
import re
import shutil
import subprocess
import sys

import mmpretrain.models
import pytest
import torch
import torchvision
from mmcv.cnn import fuse_conv_bn
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import digit_version
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsb.models import SBResNet, SBResNetCifar

GC = dict(type='ContextBlock', ratio=1 / 4)
DCN, DCN_STAGES = dict(type='DCN'), (False, True, True, True)
SIZES = [(2, 3, 64, 64), (1, 3, 33, 47), (3, 3, 71, 40)]


def narrow(**options):
    """A network with random weights and norms, wide enough for 32 groups."""
    torch.manual_seed(0)
    return scramble_norms(SBResNet(**{'base_channels': 16, **options}))


def scramble_norms(net):
    for norm in [m for m in net.modules() if isinstance(m, _BatchNorm)]:
        for value in [*norm.parameters(), norm.running_mean, norm.running_var]:
            nn.init.uniform_(value, 0.3, 1.2)
    return net


def image(*shape):
    torch.manual_seed(1)
    return torch.randn(shape or (2, 3, 64, 48))


def shapes(net):
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def same(outs, expected):
    return len(outs) == len(expected) and all(map(torch.equal, outs, expected))


# Against torchvision: name for name, bit for bit.


@functools.cache
def torchvision_pair(name):
    torch.manual_seed(0)
    theirs = scramble_norms(getattr(torchvision.models, name)())
    del theirs.fc
    depth = int(re.search(r'\d+', name)[0])
    widths = dict(resnext50_32x4d=dict(groups=32, base_width=4), wide_resnet50_2=dict(base_width=128))
    ours = SBResNet(depth, spatial_bias=None, **widths.get(name, {}))
    assert shapes(ours) == shapes(theirs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


NEEDS_HALF_AUTOCAST = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.3'), reason='float16 autocast on the CPU came with torch 2.3'
)
NEEDS_COMPILER = pytest.mark.skipif(
    not any(map(shutil.which, ('g++', 'clang++'))), reason='torch.compile with inductor needs a C++ compiler'
)
NEEDS_COMPILED_CHECKPOINT = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.2'),
    reason='torch 2.1 itself fails on a compiled checkpoint around any batch norm',
)


@pytest.mark.parametrize(
    ('name', 'size'),
    [
        *itertools.product(['resnet18', 'resnet50', 'resnet101', 'resnext50_32x4d'], SIZES),
        ('resnet34', SIZES[1]),
        ('wide_resnet50_2', SIZES[1]),
    ],
)
def test_without_spatial_bias_it_is_torchvisions(name, size):
    ours, theirs = map(copy.deepcopy, torchvision_pair(name))
    for training in (False, True):
        ours.train(training), theirs.train(training)
        x = image(*size)
        with torch.no_grad():
            outs = ours(x)
            x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
            expected = [x := getattr(theirs, f'layer{i}')(x) for i in (1, 2, 3, 4)]
        assert same(outs, expected)
    assert same(list(ours.state_dict().values()), list(theirs.state_dict().values()))


def test_shared_weights_keep_torchvisions_names_and_shapes_beside_spatial_bias():
    with torch.device('meta'):
        ours, theirs = shapes(SBResNet()), shapes(torchvision.models.resnet50())
    new = ours.keys() - theirs.keys()
    assert theirs.keys() - ours.keys() == {'fc.weight', 'fc.bias'}
    assert all(ours[key] == theirs[key] for key in ours.keys() - new)
    assert {key.split('.')[2] for key in new} == {'spatial_bias', 'bias_norm', 'bias_conv'}
    assert {key.split('.')[0] for key in new} == {'layer1', 'layer2', 'layer3'}


# Against the OpenMMLab libraries: the same arguments mean the same.


@pytest.mark.parametrize(('library', 'name', 'options'), [
    ('mmpretrain', 'ResNet', dict()),
    ('mmpretrain', 'ResNeXt', dict(groups=32, base_width=4)),
    ('mmseg', 'ResNetV1c', dict(deep_stem=True)),
    ('mmseg', 'ResNetV1d', dict(deep_stem=True, avg_down=True)),
])  # fmt: skip
def test_variants_have_the_libraries_names_and_shapes(library, name, options):
    extra = dict(groups=32) if name == 'ResNeXt' else {}
    theirs = getattr(importlib.import_module(f'{library}.models'), name)(depth=50, **extra)
    assert shapes(SBResNet(spatial_bias=None, **options)) == shapes(theirs)


@pytest.mark.parametrize('expansion', [1, 2])
def test_expansion_means_what_it_means_in_mmpretrain(expansion):
    options = dict(base_channels=32, stem_channels=16, expansion=expansion, out_indices=(0, 1, 2, 3))
    torch.manual_seed(0)
    theirs = scramble_norms(mmpretrain.models.ResNet(50, **options))
    theirs.eval()
    ours, biased = SBResNet(spatial_bias=None, **options).eval(), SBResNet(**options).eval()
    assert shapes(ours) == shapes(theirs)
    assert shapes(theirs).items() <= shapes(biased).items()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        assert same(ours(image()), theirs(image()))
        assert [out.shape for out in biased(image())] == [out.shape for out in theirs(image())]


@pytest.mark.parametrize('depth', [34, 50, 101, 152])
def test_layers_are_numbered_as_in_mmpretrain(depth):
    ours, theirs = SBResNet(depth, base_channels=4), mmpretrain.models.ResNet(depth, base_channels=4, stem_channels=4)
    names = [f'backbone.{name}' for name, _ in theirs.named_parameters()] + ['head.fc.weight']
    assert [ours.get_layer_depth(name, 'backbone.') for name in names] == [
        theirs.get_layer_depth(name, 'backbone.') for name in names
    ]
    assert ours.get_layer_depth('layer3.5.bias_conv.weight') == theirs.get_layer_depth('backbone.layer3.5.bn1.bias')


@pytest.mark.parametrize(('scope', 'norm_eval', 'out_indices'), [
    ('mmpretrain', False, (3,)),
    ('mmdet', True, (0, 1, 2, 3)),
    ('mmseg', False, (0, 1, 2, 3)),
    (None, False, (0, 1, 2, 3)),
])  # fmt: skip
def test_defaults_are_those_of_the_librarys_resnet(scope, norm_eval, out_indices):
    with DefaultScope.overwrite_default_scope(scope):
        kinds = ['mmsb.SBResNet', 'ResNet'] if scope else ['mmsb.SBResNet']
        nets = [MODELS.build(dict(type=kind, depth=50, base_channels=8)) for kind in kinds]
        chosen = MODELS.build(dict(type='mmsb.SBResNet', norm_eval=not norm_eval, out_indices=(1, 2)))
    for net in nets:
        assert (net.norm_eval, tuple(net.out_indices)) == (norm_eval, out_indices)
    assert (chosen.norm_eval, chosen.out_indices) == (not norm_eval, (1, 2))


def test_width_per_group_is_mmpretrains_name_of_base_width():
    theirs = mmpretrain.models.ResNeXt(50, groups=32, width_per_group=8)
    ours = SBResNet(50, None, groups=32, width_per_group=8)
    assert shapes(ours) == shapes(theirs)


def test_maps_train_beside_norms_without_an_epsilon():
    """As with Caffe weights, whose norms stay in eval mode."""
    net = narrow(norm_cfg=dict(type='BN', requires_grad=False, eps=0), norm_eval=True, zero_init_residual=False)
    net.spare(net.added_parts())  # as a warm start does
    net.train()(image())[-1].mean().backward()
    norms = [name for name, p in net.named_parameters() if p.requires_grad and ('bn' in name or 'bias_norm' in name)]
    assert len(norms) == 4 * 13
    assert all('spatial_bias' in name or 'bias_norm' in name for name in norms)
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.requires_grad and p.grad is not None)


def test_v1d_has_mmpretrains_shapes():  # but not its names: it wraps each convolution of the stem
    ours, theirs = SBResNet(spatial_bias=None, deep_stem=True, avg_down=True), mmpretrain.models.ResNetV1d(depth=50)
    assert list(shapes(ours).values()) == list(shapes(theirs).values())


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1)),
        dict(dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), contract_dilation=True),
        dict(dilations=(1, 1, 1, 2), strides=(1, 2, 2, 1), multi_grid=(1, 2, 4)),
        dict(dilations=(1, 1, 1, 2), strides=(1, 2, 2, 1), multi_grid=(1, 2, 4), contract_dilation=True),
        dict(style='caffe', norm_eval=True),
        dict(style='caffe', num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,)),
        dict(num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,)),
        dict(out_indices=(1, 3)),
        dict(frozen_stages=0),
        dict(frozen_stages=2, norm_eval=True),
        dict(frozen_stages=4),
        dict(deep_stem=True),
        dict(deep_stem=True, avg_down=True, frozen_stages=1),
        dict(in_channels=5, stem_channels=24),
        dict(norm_cfg=dict(type='BN', requires_grad=False)),
        dict(plugins=[dict(cfg=GC, stages=(False, True, True, False), position='after_conv3')]),
    ],
)
def test_arguments_mean_what_they_mean_in_mmsegmentation(options):
    import mmseg.models

    ours = narrow(spatial_bias=None, **options).train()
    theirs = mmseg.models.ResNet(
        50, **{'base_channels': 16, 'stem_channels': 16, 'out_indices': ours.out_indices, **options}
    )
    assert [value.shape for value in theirs.state_dict().values()] == [
        value.shape for value in ours.state_dict().values()
    ]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    theirs.train()
    x = image(2, options.get('in_channels', 3), 65, 90)
    assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in theirs.parameters()]
    with torch.no_grad():
        assert same(ours(x), theirs(x))
        ours.eval(), theirs.eval()
        assert same(ours(x), theirs(x))
    assert same(list(ours.state_dict().values()), list(theirs.state_dict().values()))  # the same norms updated


@pytest.mark.parametrize('options', [
    dict(dcn=dict(type='DCN', deform_groups=1, fallback_on_stride=False), stage_with_dcn=(False, True, True, True)),
    dict(dcn=dict(type='DCNv2', deformable_groups=4, fallback_on_stride=False),
         stage_with_dcn=(False, False, True, True), style='caffe'),
    dict(dcn=dict(type='DCN', fallback_on_stride=True), stage_with_dcn=(False, True, False, True)),
    dict(dcn=dict(type='DCNv2'), stage_with_dcn=(True, True, True), num_stages=3, strides=(1, 2, 2),
         dilations=(1, 1, 1), out_indices=(0, 1, 2)),
    dict(dcn=dict(type='DCN'), stage_with_dcn=(False, True, True, True), groups=4, base_width=8),
])  # fmt: skip
def test_deformable_convolutions_are_those_of_mmdetection(options):
    from mmdet.models.backbones import ResNet, ResNeXt

    given = copy.deepcopy(options)
    torch.manual_seed(0)
    kind = ResNeXt if 'groups' in options else ResNet
    theirs = scramble_norms(kind(depth=50, base_channels=16, **copy.deepcopy(options)))
    for name, value in theirs.named_parameters():
        if 'conv_offset' in name:
            nn.init.normal_(value, std=0.3)
    ours, biased = narrow(spatial_bias=None, **options), narrow(**options)
    assert options == given
    assert shapes(ours) == shapes(theirs)
    assert shapes(theirs).items() <= shapes(biased).items()
    ours.load_state_dict(theirs.state_dict())
    for training in (False, True):
        ours.train(training), theirs.train(training)
        for norm in [m for m in theirs.modules() if isinstance(m, _BatchNorm)]:
            norm.train(training)  # mmdet's norm_eval is True by default
        with torch.no_grad():
            assert same(ours(image()), theirs(image()))


@pytest.mark.parametrize('kind', ['DCN', 'DCNv2'])
def test_offsets_start_at_zero(kind):
    net = SBResNetCifar(11, dcn=dict(type=kind), stage_with_dcn=(False, True, True))
    net.init_weights()
    offsets = [value for name, value in net.named_parameters() if 'conv_offset' in name]
    assert len(offsets) == 4
    assert not any(value.any() for value in offsets)


def test_drop_path_rate_means_what_it_means_in_mmpretrain():
    rates = [
        [getattr(block.drop_path, 'drop_prob', 0) for block in net.modules() if hasattr(block, 'drop_path')]
        for net in (SBResNet(drop_path_rate=0.2), mmpretrain.models.ResNet(50, drop_path_rate=0.2))
    ]
    assert rates[0] == pytest.approx(rates[1])


# Any size, any batch, any precision.


@pytest.mark.parametrize('shape', [(1, 3, 33, 47), (2, 3, 32, 32), (1, 3, 64, 200), (5, 3, 37, 90)])
@pytest.mark.parametrize('options', [
    dict(),
    dict(spatial_bias=dict(position='conv1', fusion='add')),
    dict(deep_stem=True, avg_down=True),
])  # fmt: skip
def test_any_batch_and_size_trains(options, shape):
    outs = narrow(**options).train()(image(*shape))
    sizes = [[-(-side // 2 ** (i + 2)) for side in shape[2:]] for i in range(4)]
    assert [list(out.shape) for out in outs] == [[shape[0], 64 * 2**i, *size] for i, size in enumerate(sizes)]
    assert all(out.isfinite().all() for out in outs)


@pytest.mark.parametrize('shape', [(1, 3, 1, 1), (1, 3, 7, 300), (2, 3, 10, 10)])
def test_any_size_is_evaluated(shape):
    assert all(out.isfinite().all() for out in narrow().eval()(image(*shape)))
    assert all(out.isfinite().all() for out in SBResNetCifar(11).eval()(image(*shape)))


def test_cifar_network_keeps_the_size_in_its_stem():
    outs = SBResNetCifar(20).train()(image(1, 3, 32, 27))
    assert [tuple(out.shape) for out in outs] == [(1, 64, 32, 27), (1, 128, 16, 14), (1, 256, 8, 7)]


@pytest.mark.parametrize('dtype', [torch.bfloat16, pytest.param(torch.float16, marks=NEEDS_HALF_AUTOCAST)])
@pytest.mark.parametrize('bias', [dict(), dict(fusion='add'), dict(position='conv1', pool='max')])
def test_autocast_is_close_to_full_precision(bias, dtype):
    net, x = narrow(spatial_bias=bias).eval(), image()
    with torch.no_grad():
        expected = net(x)
        with torch.autocast('cpu', dtype):
            outs = net(x)
    for out, wanted in zip(outs, expected, strict=True):
        assert out.isfinite().all()
        assert (out - wanted).norm() < 0.02 * wanted.norm()
    with torch.autocast('cpu', dtype):
        net.train()(x)[-1].float().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in net.parameters())


@pytest.mark.parametrize('bias', [dict(), dict(position='conv1'), dict(fusion='add', pool='max')])
def test_channels_last_changes_nothing(bias):
    net, x = narrow(spatial_bias=bias).double().eval(), image(2, 3, 65, 47).double()
    with torch.no_grad():
        expected = net(x)
        outs = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(outs, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(('net', 'backend'), [
    pytest.param(SBResNetCifar(11), 'inductor', marks=NEEDS_COMPILER),
    (SBResNet(base_channels=16), 'aot_eager'),  # inductor takes a minute here and finds no other graph
])  # fmt: skip
def test_compiles_to_one_graph(net, backend):
    scramble_norms(net).double().eval()
    x = image(2, 3, 32, 32).double()
    with torch.no_grad():
        outs = torch.compile(net, fullgraph=True, backend=backend)(x)
        torch.testing.assert_close(outs, net(x), rtol=1e-9, atol=1e-9)


def test_sync_bn_evaluates_as_bn():
    sync, plain = narrow(norm_cfg=dict(type='SyncBN', requires_grad=True)).eval(), narrow().eval()
    norms = [m for m in sync.modules() if isinstance(m, _BatchNorm)]
    assert len(norms) > 53
    assert all(isinstance(m, nn.SyncBatchNorm) for m in norms)
    plain.load_state_dict(sync.state_dict())
    with torch.no_grad():
        assert same(sync(image()), plain(image()))


# Sizes, gradients, state.

# number, inputs and C of the blocks with bias of ResNet-50
BLOCKS_50 = [(1, 64, 64), (2, 256, 64), (1, 256, 128), (3, 512, 128), (1, 512, 256), (5, 1024, 256)]


def new_parameters(*, num_maps=3, pool_size=10, kernel_size=3, position='conv2', fusion='concat', mix=True):
    total = 0
    for number, inputs, channels in BLOCKS_50:
        reduced = num_maps + kernel_size - 1 if mix else num_maps
        total += number * reduced * ((inputs if position == 'conv1' else channels) + 2)
        total += number * (pool_size**4 * kernel_size + pool_size**2) * mix
        if fusion == 'concat':
            total += number * num_maps * (2 + (9 * channels if position == 'conv1' else 4 * channels))
    return total


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(num_maps=1),
        dict(num_maps=6, pool_size=6),
        dict(kernel_size=1),
        dict(position='conv1'),
        dict(position='conv1', num_maps=2, fusion='add'),
        dict(fusion='add'),
        dict(mix=False),
    ],
)
def test_parameter_counts_follow_the_table_of_the_operator(options):
    with torch.device('meta'):
        biased, plain = (SBResNet(spatial_bias=bias).parameters() for bias in (options, None))
    assert sum(p.numel() for p in biased) - sum(p.numel() for p in plain) == new_parameters(**options)


@pytest.mark.parametrize(
    ('make', 'classes', 'millions'),  # to the precision printed in the paper, tables 1 and 3 to 8
    [
        (lambda: SBResNet(spatial_bias=None), 1000, '25.56'),
        (lambda: SBResNet(), 1000, '25.99'),
        (lambda: SBResNet(sb_stages=(False, True, True, False)), 1000, '25.89'),
        (lambda: SBResNet(spatial_bias=dict(num_maps=2), sb_stages=(False, True, True, False)), 1000, '25.88'),
        (lambda: SBResNet(spatial_bias=dict(num_maps=4), sb_stages=(False, True, True, False)), 1000, '25.90'),
        (lambda: SBResNetCifar(38, spatial_bias=None), 100, '0.43'),
        (lambda: SBResNetCifar(38), 100, '0.46'),
        (lambda: SBResNetCifar(38, sb_stages=(True, True, True)), 100, '0.48'),
        (lambda: SBResNetCifar(65, sb_stages=(True, False, False)), 100, '0.74'),
        (lambda: SBResNetCifar(65, spatial_bias=dict(pool_size=10)), 100, '1.13'),
        (lambda: SBResNetCifar(65, spatial_bias=dict(fusion='add')), 100, '0.76'),
        (lambda: SBResNetCifar(65, spatial_bias=dict(pool='max')), 100, '0.77'),
        (lambda: SBResNetCifar(65, spatial_bias=dict(mix=False)), 100, '0.71'),
        (lambda: SBResNetCifar(110), 100, '1.28'),
        (lambda: SBResNetCifar(110, sb_stages=(True, True, True)), 100, '1.34'),
    ],
)
def test_parameter_counts_are_the_papers(make, classes, millions):
    with torch.device('meta'):
        net = make()
    features = 2048 if classes == 1000 else 256
    count = sum(p.numel() for p in net.parameters()) + (features + 1) * classes
    assert f'{count / 1e6:.2f}' == millions


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(spatial_bias=None),
        dict(spatial_bias=dict(position='conv1', num_maps=1)),
        dict(spatial_bias=dict(fusion='add', pool='max')),
        dict(spatial_bias=dict(mix=False), with_cp=True),
        dict(base_width=32),
        dict(sb_stages=(True,) * 4, style='caffe', groups=32, base_width=4),
        dict(deep_stem=True, avg_down=True, norm_cfg=dict(type='GN', num_groups=1)),
        dict(plugins=[dict(cfg=GC, position='after_conv2'), dict(cfg=dict(type='NonLocal2d'), position='after_block')]),
    ],
)
def test_backward_reaches_every_parameter(options):
    net = narrow(zero_init_residual=False, **options).train()
    for parameter in net.parameters():
        if not parameter.any():  # a zero in a product would stop the gradient of the other factor
            nn.init.normal_(parameter, std=0.1)
    sum((out * torch.rand_like(out)).mean() for out in net(image())).backward()
    unreached = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    # GC's mask goes through a softmax, which a common shift leaves as it is: the gradient of its bias is rounding
    assert [name for name in unreached if not name.endswith('conv_mask.bias')] == []


@pytest.mark.parametrize('zero_init_residual', [True, False])
def test_residual_branches_start_at_zero_where_asked(zero_init_residual):
    net = SBResNetCifar(11, zero_init_residual=zero_init_residual)
    net.init_weights()
    assert {bool(block.bn3.weight.any()) for block in net.modules() if hasattr(block, 'bn3')} == {
        not zero_init_residual
    }
    assert all(block.bias_conv.weight.any() for block in net.modules() if hasattr(block, 'bias_conv'))


@pytest.mark.parametrize('make', [narrow, functools.partial(SBResNetCifar, 20)])
def test_state_dict_round_trip(make):
    net = make()
    net.train()(image())
    other = make(zero_init_residual=False)
    other.load_state_dict(net.state_dict())
    assert same(net.eval()(image()), other.eval()(image()))


# Configs: each library finds the networks, errors name the option, and nothing is mutated.

MISTAKES = [
    (dict(depth=49), ['depth', '49', '50', '101', '152']),
    (dict(depth='50'), ['depth', "'50'"]),
    (dict(num_stages=5), ['num_stages', '5', '4']),
    (dict(num_stages=0), ['num_stages', '0']),
    (dict(strides=(1, 2, 2)), ['strides', '4', '(1, 2, 2)']),
    (dict(dilations=(1, 1, 1, 1, 1)), ['dilations', '4']),
    (dict(sb_stages=(True, True)), ['sb_stages', '4', '(True, True)']),
    (dict(num_stages=3, sb_stages=(True,) * 4, strides=(1, 2, 2), dilations=(1, 1, 1)), ['sb_stages', '3']),
    (dict(multi_grid=(1, 2)), ['multi_grid', '3', '(1, 2)']),
    (dict(out_indices=(0, 4)), ['out_indices', '4', '3']),
    (dict(out_indices=(-1,)), ['out_indices', '-1']),
    (dict(frozen_stages=5), ['frozen_stages', '5', '4']),
    (dict(style='torch'), ['style', "'torch'", 'pytorch', 'caffe']),
    (dict(spatail_bias=None), ['SBResNet', 'spatail_bias', "mean 'spatial_bias'", 'sb_stages', 'norm_cfg']),
    (dict(spatial_bias=dict(pool_sise=6)), ['spatial_bias', 'pool_sise', "mean 'pool_size'", 'num_maps', 'mix']),
    (dict(spatial_bias=dict(position='conv3')), ['position', "'conv3'", 'conv1', 'conv2']),
    (dict(spatial_bias=dict(fusion='cat')), ['fusion', "'cat'", 'concat', 'add']),
    (dict(spatial_bias=dict(num_maps=0)), ['num_maps', '0']),
    (dict(plugins=[dict(cfg=GC, position='after_conv3', stage=(True,) * 4)]), ['plugin', 'stage', "mean 'stages'"]),
    (dict(plugins=[dict(cfg=GC, position='after_conv3', stages=(True,))]), ['stages', '4', '(True,)']),
    (dict(plugins=[dict(cfg=GC, position='before_conv3')]), ['position', "'before_conv3'", 'after_block']),
    (
        dict(plugins=[dict(cfg=GC, position='after_conv3', blocks=(7,))]),
        ['blocks of a plugin', '(7,)', 'at most 6 blocks'],
    ),
    (
        dict(plugins=[dict(cfg=GC, position='after_conv3', blocks=(0, 3), stages=(True, False, False, True))]),
        ['blocks of a plugin', '(0, 3)', 'at most 3 blocks', '(True, False, False, True)'],
    ),
    (dict(plugins=[dict(cfg=GC, position='after_conv3', blocks=(-1,))]), ['blocks of a plugin', '(-1,)']),
    (dict(plugins=[dict(cfg=GC, position='after_conv3', blocks=())]), ['blocks of a plugin', '()']),
    (dict(plugins=[dict(cfg=GC, position='after_conv3', blocks=2)]), ['blocks of a plugin', '2']),
    (
        dict(plugins=[dict(cfg=GC, position='after_conv3', stages=(False,) * 4)]),
        ['plugin', 'stages', '(False, False, False, False)'],
    ),
    (dict(plugins=['GC']), ['plugins', "['GC']", 'list of dicts']),
    (dict(plugins={}), ['plugins', '{}', 'list of dicts']),
    (dict(spatial_bias=dict(mix=False, kernel_size=5)), ['kernel_size', '5', 'no effect']),
    (dict(sb_stages=(False,) * 4), ['spatial_bias', 'no effect', 'sb_stages=(False, False, False, False)']),
    (dict(out_indices=(3, 1)), ['out_indices', 'ascending', '(3, 1)']),
    (dict(out_indices=(1, 1)), ['out_indices', 'ascending', '(1, 1)']),
    (dict(out_indices=()), ['out_indices', 'at least one', '()']),
    (dict(groups=32, base_width=4, width_per_group=8), ['width_per_group', 'base_width', '8']),
    (dict(stem_channels=0), ['stem_channels', '0', 'at least 1']),
    (dict(base_channels=64.0), ['base_channels', '64.0', 'integer']),
    (dict(base_width=0), ['base_width', '0', 'at least 1']),
    (dict(groups=0), ['groups', '0', 'at least 1']),
    (dict(expansion=0), ['expansion', '0', 'at least 1']),
    (dict(strides=(1, 2, 2, 0)), ['strides', '0', 'at least 1']),
    (dict(dilations=(1, 1, 1, '2')), ['dilations', "'2'", 'integer']),
    (dict(multi_grid=(1, 0, 2)), ['multi_grid', '0', 'at least 1']),
    (
        dict(pretrained='a.pth', init_cfg=dict(type='Pretrained', checkpoint='b.pth')),
        ['init_cfg and pretrained', "'b.pth' and 'a.pth'"],
    ),
    (
        dict(init_cfg=[dict(type='Pretrained', checkpoint='a.pth'), dict(type='Pretrained', checkpoint='b.pth')]),
        ['init_cfg', "'a.pth' and 'b.pth'"],
    ),
    (dict(dcn='DCN', stage_with_dcn=(True,) * 4), ['dcn', "'DCN'", 'dict']),
    (dict(dcn=dict(deform_groups=1), stage_with_dcn=(True,) * 4), ['dcn.type', 'None', 'DCN', 'DCNv2']),
    (dict(dcn=dict(type='DCNv3'), stage_with_dcn=(True,) * 4), ['dcn.type', "'DCNv3'", 'DCN', 'DCNv2']),
    (
        dict(dcn=dict(type='DCN', deform_group=1), stage_with_dcn=(True,) * 4),
        ['dcn', 'deform_group', "mean 'deform_groups'", 'fallback_on_stride'],
    ),
    (dict(dcn=dict(type='DCN'), stage_with_dcn=(True,) * 3), ['stage_with_dcn', '4', '(True, True, True)']),
    (dict(dcn=dict(type='DCN'), stage_with_dcn=True), ['stage_with_dcn', '4', 'True']),
    (dict(dcn=dict(type='DCN')), ['dcn', 'stage_with_dcn', 'no effect']),
    (dict(dcn=DCN, stage_with_dcn=DCN_STAGES, conv_cfg=dict(type='Conv2d')), ['conv_cfg', 'None with dcn', 'Conv2d']),
    (dict(dcn=DCN, stage_with_dcn=DCN_STAGES, conv2=dict(type='mmsb.SK')), ['conv2', 'None with dcn', 'mmsb.SK']),
    (
        dict(dcn=dict(DCN, fallback_on_stride=True), stage_with_dcn=DCN_STAGES, groups=2),
        ['fallback_on_stride', 'groups=2'],
    ),
    (
        dict(dcn=DCN, stage_with_dcn=DCN_STAGES, spatial_bias=dict(position='conv1')),
        ['position', "'conv1'", 'conv2'],
    ),
]


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
@pytest.mark.parametrize(('options', 'named'), MISTAKES)
def test_mistakes_are_named_from_every_library(options, named, scope):
    with DefaultScope.overwrite_default_scope(scope), pytest.raises(ValueError) as error:
        MODELS.build(dict(type='mmsb.SBResNet', **options))
    assert all(word in str(error.value) for word in named), error.value
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        (dict(depth=50), ['depth', '50', '9n + 2']),
        (dict(depth=2), ['depth', '2', '9n + 2']),
        (dict(deep_stem=True), ['deep_stem', 'False']),
        (dict(bias=dict()), ['SBResNetCifar', 'bias', 'spatial_bias', 'sb_stages', 'base_channels']),
        (dict(sb_stages=(True,) * 4), ['sb_stages', '3']),
        (dict(num_stages=4, strides=(1, 2, 2, 2), dilations=(1,) * 4, sb_stages=(True,) * 3), ['sb_stages', '4']),
        (dict(out_indices=(3,)), ['out_indices', '3']),
        (dict(dcn=DCN, stage_with_dcn=DCN_STAGES), ['stage_with_dcn', '3 stages']),
    ],
)
def test_mistakes_of_the_cifar_network_are_named(options, named):
    with pytest.raises(ValueError) as error:
        MODELS.build(dict(type='mmsb.SBResNetCifar', **options))
    assert all(word in str(error.value) for word in named), error.value


def test_options_that_upstream_configs_set_without_effect_are_accepted():
    net = SBResNet(base_channels=8, contract_dilation=True, spatial_bias=None, sb_stages=(True, False, True, False))
    assert {block.conv2.dilation for block in net.modules() if hasattr(block, 'conv2')} == {(1, 1)}
    assert not net.added_parts()


@pytest.mark.parametrize(('make', 'with_bias'), [
    (SBResNet, '1 2 3'),
    (functools.partial(SBResNet, num_stages=2, strides=(1, 2), dilations=(1, 1)), '1 2'),
    (functools.partial(SBResNet, sb_stages=None), '1 2 3'),
    (functools.partial(SBResNet, sb_stages=(False, True, False, True)), '2 4'),
    (functools.partial(SBResNetCifar, 11), '1 2'),
    (functools.partial(SBResNetCifar, 11, num_stages=1, strides=(1,), dilations=(1,)), '1'),
])  # fmt: skip
def test_stages_with_bias(make, with_bias):
    with torch.device('meta'):
        net = make()
    found = {name.split('.')[0] for name in net.added_parts()}
    assert found == {f'layer{i}' for i in with_bias.split()}


def test_found_from_every_library_without_custom_imports():
    script = """
import sys
import mmsb  # first, as before every detector
from mmengine.registry import MODELS, init_default_scope
assert 'mmsb.models' not in sys.modules
for scope in ('mmpretrain', 'mmdet', 'mmseg'):
    init_default_scope(scope)
    for name in ('SBResNet', 'SBResNetCifar', 'SpatialBias'):
        cfg = dict(type='mmsb.' + name) | (dict(in_channels=8) if name == 'SpatialBias' else {})
        assert type(MODELS.build(cfg)).__name__ == name
assert 'mmsb.models' in sys.modules
"""
    subprocess.run([sys.executable, '-W', 'ignore', '-c', script], check=True, timeout=300)


@pytest.mark.parametrize('cls', [SBResNet, SBResNetCifar])
def test_configs_that_are_handed_in_stay_as_they_are(cls, tmp_path):
    torch.save(cls(spatial_bias=None, base_channels=8).state_dict(), tmp_path / 'plain.pth')
    cfg = dict(
        spatial_bias=dict(num_maps=2, position='conv1', fusion='concat'),
        plugins=[dict(cfg=dict(GC, postfix='_x'), position='after_conv2', blocks=[0])],
        base_channels=8,
        conv_cfg=dict(type='Conv2d'),
        norm_cfg=dict(type='BN', requires_grad=True),
        init_cfg=[dict(type='Pretrained', checkpoint=str(tmp_path / 'plain.pth'))],
    )
    before = copy.deepcopy(cfg)
    first, second = cls(**cfg), cls(**cfg)
    first.init_weights()
    assert cfg == before
    assert shapes(first) == shapes(second)


def test_what_a_user_froze_stays_frozen():
    net = SBResNetCifar(11, frozen_stages=1).requires_grad_(False)
    net.train()
    net.eval()
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize('options', [dict(), dict(fusion='add'), dict(position='conv1')])
def test_a_norm_folded_into_one_convolution_alone_is_refused(options):
    net = SBResNetCifar(11, options).eval()
    fused = fuse_conv_bn(copy.deepcopy(net))
    with pytest.raises(ValueError, match='use switch_to_deploy'):
        fused(image(1, 3, 32, 32))
    plain = SBResNetCifar(11, None).double().eval()
    x = image(1, 3, 32, 32).double()
    torch.testing.assert_close(fuse_conv_bn(copy.deepcopy(plain))(x), plain(x), rtol=1e-9, atol=1e-9)


def test_group_norm_of_the_maps_has_as_many_groups_as_fit():
    net = SBResNet(base_channels=64, norm_cfg=dict(type='GN', num_groups=32))
    groups = {m.num_groups for part in net.bias_modules() for m in part.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {1}
    assert all(out.isfinite().all() for out in net(image(1, 3, 64, 64)))


@pytest.mark.parametrize('options', [
    dict(spatial_bias=True), dict(sb_stages=True), dict(strides=2), dict(out_indices=3), dict(drop_path_rate=1.5),
    dict(plugins=dict(cfg=GC)), dict(spatial_bias=dict(mix='False')), dict(init_cfg='resnet50.pth'),
    dict(init_cfg=dict(type='Pretrained')), dict(init_cfg=dict(type='Pretrained', checkpoint='x', prefx='backbone')),
])  # fmt: skip
def test_values_of_the_wrong_kind_are_named(options):
    key, value = next(iter(options.items()))
    value = value['mix'] if key == 'spatial_bias' and isinstance(value, dict) else value
    with pytest.raises(ValueError) as error:
        SBResNet(**options)
    assert key in str(error.value) or 'mix' in str(error.value)


@pytest.mark.parametrize('compiled', [False, pytest.param(True, marks=NEEDS_COMPILED_CHECKPOINT)])
def test_checkpointing_allows_a_second_backward_and_a_compiled_graph(compiled):
    net = SBResNetCifar(11, with_cp=True).train()
    run = torch.compile(net, backend='aot_eager') if compiled else net
    loss = run(image(2, 3, 16, 16))[-1].square().mean()
    loss.backward(retain_graph=not compiled)
    first = {name: p.grad.clone() for name, p in net.named_parameters()}
    if not compiled:
        loss.backward()
        for name, p in net.named_parameters():
            torch.testing.assert_close(p.grad, 2 * first[name])
    assert int(net.bn1.num_batches_tracked) == 1
    assert all(int(m.num_batches_tracked) == 1 for m in net.modules() if isinstance(m, _BatchNorm))
