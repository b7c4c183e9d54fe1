"""The residual block matches both readings of the formula in plain PyTorch; checkpointing; positions of plugins."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from mmsb.models import Bottleneck, SBResNet, SBResNetCifar

GC = dict(type='ContextBlock', ratio=1 / 4)
NL = dict(type='NonLocal2d')

GEOMETRIES = [
    dict(),
    dict(stride=2),
    dict(stride=2, style='caffe'),
    dict(dilation=2),
    dict(groups=4, width=8),
    dict(stride=2, groups=2, width=12, dilation=3),
    dict(stride=2, style='caffe', groups=3, width=6, dilation=2),
    dict(stride=2, conv_cfg=dict(type='Conv2d', padding_mode='reflect')),
    dict(dilation=2, groups=2, width=8, conv_cfg=dict(type='Conv2d', padding_mode='circular')),
]
BIASES = [
    dict(position='conv1'),
    dict(position='conv2'),
    dict(position='conv1', num_maps=5, pool='max'),
    dict(position='conv2', num_maps=2, mix=False),
]


def make(in_channels=16, channels=4, **options):
    torch.manual_seed(0)
    if options.get('stride', 1) > 1:
        shortcut = nn.Conv2d(in_channels, 4 * channels, 1, stride=options['stride'], bias=False)
        options['downsample'] = nn.Sequential(shortcut, nn.BatchNorm2d(4 * channels))
    block = Bottleneck(in_channels, channels, **options)
    for norm in [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]:
        for value in [*norm.parameters(), norm.running_mean, norm.running_var]:
            nn.init.uniform_(value, 0.3, 1.5)
    return block.double()


def image():
    torch.manual_seed(1)
    return torch.randn(3, 16, 9, 7, dtype=torch.double, requires_grad=True)


class ConcatReading(nn.Module):
    """`conv(relu(norm([y; b])))` with one wide norm and one wide convolution of C + N channels."""

    def __init__(self, norm, bias_norm, conv, bias_conv):
        super().__init__()
        self.norm = nn.BatchNorm2d(norm.num_features + bias_norm.num_features)
        wide = {key: torch.cat([norm.state_dict()[key], bias_norm.state_dict()[key]]) for key in norm_tensors(norm)}
        self.norm.load_state_dict(wide | {'num_batches_tracked': norm.num_batches_tracked})
        inputs, per_group = conv.in_channels // conv.groups, conv.out_channels // conv.groups
        dense = conv.weight.new_zeros(conv.out_channels, conv.in_channels, *conv.kernel_size)
        for group in range(conv.groups):  # every group reads all the maps
            rows, columns = (
                slice(group * per_group, (group + 1) * per_group),
                slice(group * inputs, (group + 1) * inputs),
            )
            dense[rows, columns] = conv.weight.detach()[rows]
        geometry = dict(stride=conv.stride, padding=conv.padding, dilation=conv.dilation, bias=False)
        geometry['padding_mode'] = conv.padding_mode
        self.conv = nn.Conv2d(self.norm.num_features, conv.out_channels, conv.kernel_size, **geometry)
        self.conv.weight.data = torch.cat([dense, bias_conv.weight.detach()], dim=1)
        self.double()

    def forward(self, y, b):
        return self.conv(self.norm(torch.cat([y, b], dim=1)).relu())

    def statistics(self):
        return self.norm.running_mean, self.norm.running_var


class SumReading(nn.Module):
    """`conv(relu(norm(y))) + bias_conv(relu(bias_norm(b)))`."""

    def __init__(self, norm, bias_norm, conv, bias_conv):
        super().__init__()
        self.norm, self.bias_norm, self.conv, self.bias_conv = norm, bias_norm, conv, bias_conv

    def forward(self, y, b):
        return self.conv(self.norm(y).relu()) + self.bias_conv(self.bias_norm(b).relu())

    def statistics(self):
        return tuple(
            torch.cat(both)
            for both in zip(
                (self.norm.running_mean, self.norm.running_var),
                (self.bias_norm.running_mean, self.bias_norm.running_var),
                strict=True,
            )
        )


def norm_tensors(norm):
    return [key for key in norm.state_dict() if key != 'num_batches_tracked']


def written_out(block, x, position, read):
    """The block's formula; `read` maps the output of the convolution at `position` and the maps to the next output."""
    if position == 'conv1':
        y = block.conv1(x)
        out = read(y, block.spatial_bias(x, y.shape[-2:]))
        out = block.conv3(block.bn2(out).relu())
    else:
        x2 = block.bn1(block.conv1(x)).relu()
        y = block.conv2(x2)
        out = read(y, block.spatial_bias(x2, y.shape[-2:]))
    return ((x if block.downsample is None else block.downsample(x)) + block.bn3(out)).relu()


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize('reading', [ConcatReading, SumReading])
@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize('bias', BIASES)
@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_weights_apart_equal_both_readings(geometry, bias, training, reading):
    block = make(spatial_bias=dict(pool_size=3, **bias), **geometry).train(training)
    theirs = copy.deepcopy(block)
    norm, conv = (theirs.bn1, theirs.conv2) if bias['position'] == 'conv1' else (theirs.bn2, theirs.conv3)
    read = reading(norm, theirs.bias_norm, conv, theirs.bias_conv).train(training)

    x, x_theirs = image(), image()
    out, expected = block(x), written_out(theirs, x_theirs, bias['position'], read)
    close(out, expected)
    close(torch.autograd.grad(out.square().sum(), x), torch.autograd.grad(expected.square().sum(), x_theirs))

    norm = block.bn1 if bias['position'] == 'conv1' else block.bn2
    for ours, theirs in zip(('running_mean', 'running_var'), read.statistics(), strict=True):
        close(torch.cat([getattr(norm, ours), getattr(block.bias_norm, ours)]), theirs)


@pytest.mark.parametrize('position', ['conv1', 'conv2'])
@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_add_is_one_sum_over_the_maps_for_every_channel(geometry, position):
    block = make(spatial_bias=dict(pool_size=3, fusion='add', position=position), **geometry)
    theirs = copy.deepcopy(block)
    assert not any('bias_norm' in name or 'bias_conv' in name for name in block.state_dict())
    norm, conv = (theirs.bn1, theirs.conv2) if position == 'conv1' else (theirs.bn2, theirs.conv3)

    def read(y, b):
        return conv(norm(y + b[:, 0:1] + b[:, 1:2] + b[:, 2:3]).relu())

    close(block(image()), written_out(theirs, image(), position, read))


READERS = [('conv2', 'conv3'), ('conv1', 'conv2')]


@pytest.mark.parametrize('listens', ['register_forward_hook', 'register_forward_pre_hook'])
@pytest.mark.parametrize('part', ['reader', 'bias_conv'])
@pytest.mark.parametrize(('position', 'reader'), READERS)
def test_hooks_of_the_convolutions_that_read_the_maps_fire(position, reader, part, listens):
    block, calls = make(spatial_bias=dict(pool_size=3, position=position)), []
    conv = getattr(block, reader if part == 'reader' else part)
    expected = block(image())
    getattr(conv, listens)(lambda module, *_: calls.append(module))
    close(block(image()), expected)
    assert calls.count(conv) == 1


@pytest.mark.parametrize('part', ['reader', 'bias_conv'])
@pytest.mark.parametrize(('position', 'reader'), READERS)
def test_hooks_may_change_what_a_convolution_that_reads_the_maps_returns(position, reader, part):
    block = make(spatial_bias=dict(pool_size=3, position=position))
    doubled = copy.deepcopy(block)
    conv = reader if part == 'reader' else part
    getattr(doubled, conv).weight.data *= 2
    getattr(block, conv).register_forward_hook(lambda module, args, out: 2 * out)
    close(block(image()), doubled(image()))
    gradients = []
    getattr(block, conv).register_full_backward_hook(lambda module, inputs, outputs: gradients.append(outputs[0].shape))
    block(image()).sum().backward()
    assert len(gradients) == 1


class Deformable(nn.Module):
    """torchvision's deformable convolution with the weights of mmcv's layer."""

    def __init__(self, layer, modulated):
        super().__init__()
        self.conv_offset, self.weight, self.modulated = layer.conv_offset, layer.weight, modulated
        self.geometry = dict(stride=layer.stride, padding=layer.padding, dilation=layer.dilation)

    def forward(self, x):
        offsets, mask = self.conv_offset(x), None
        if self.modulated:
            offsets, mask = offsets.split([offsets.shape[1] // 3 * 2, offsets.shape[1] // 3], 1)
            mask = mask.sigmoid()
        return torchvision.ops.deform_conv2d(x, offsets, self.weight, mask=mask, **self.geometry)


def bend(net, std=0.3):
    """Give deformable convolutions nonzero offsets."""
    torch.manual_seed(3)
    layers = [module.conv_offset for module in net.modules() if hasattr(module, 'conv_offset')]
    for layer in layers:
        nn.init.normal_(layer.weight, std=std), nn.init.normal_(layer.bias, std=std)
    return layers


@pytest.mark.parametrize('reading', [ConcatReading, SumReading])
@pytest.mark.parametrize('bias', [dict(), dict(num_maps=2, pool='max'), dict(mix=False)])
@pytest.mark.parametrize(
    'geometry',
    [dict(), dict(stride=2), dict(stride=2, style='caffe'), dict(dilation=2), dict(groups=4, width=8), dict(width=12)],
)
@pytest.mark.parametrize(
    'conv2',
    [dict(type='DCN'), dict(type='DCNv2'), dict(type='DCN', deform_groups=2), dict(type='DCNv2', deformable_groups=4)],
)
def test_maps_beside_a_deformable_convolution_equal_both_readings(conv2, geometry, bias, reading):
    import mmcv.ops  # noqa: F401

    block = make(conv2=conv2, spatial_bias=dict(pool_size=3, **bias), **geometry)
    assert len(bend(block)) == 1
    theirs = copy.deepcopy(block)
    read = reading(theirs.bn2, theirs.bias_norm, theirs.conv3, theirs.bias_conv)
    theirs.conv2 = Deformable(theirs.conv2, 'v2' in conv2['type'])
    x, x_theirs = image(), image()
    out, expected = block(x), written_out(theirs, x_theirs, 'conv2', read)
    close(out, expected)
    close(torch.autograd.grad(out.square().sum(), x), torch.autograd.grad(expected.square().sum(), x_theirs))


@pytest.mark.parametrize('kind', ['DCN', 'DCNv2'])
def test_a_whole_network_of_deformable_convolutions_equals_the_composed_one(kind):
    options = dict(spatial_bias=dict(pool_size=3), dcn=dict(type=kind), stage_with_dcn=(False, True, True))
    net = SBResNetCifar(20, base_channels=4, zero_init_residual=False, **options).double().eval()
    assert len(bend(net)) == 4
    x = torch.randn(2, 3, 20, 14, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    expected = []
    out = net.bn1(net.conv1(x)).relu()
    for stage in (net.layer1, net.layer2, net.layer3):
        for block in copy.deepcopy(stage):
            if hasattr(block.conv2, 'conv_offset'):
                block.conv2 = Deformable(block.conv2, kind == 'DCNv2')
            if hasattr(block, 'spatial_bias'):
                read = ConcatReading(block.bn2, block.bias_norm, block.conv3, block.bias_conv).eval()
                out = written_out(block, out, 'conv2', read)
            else:
                inner = block.bn2(block.conv2(block.bn1(block.conv1(out)).relu())).relu()
                out = (block.bn3(block.conv3(inner)) + (block.downsample or nn.Identity())(out)).relu()
        expected.append(out)
    close(net(x), tuple(expected))


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(spatial_bias=None),
        dict(spatial_bias=dict(pool_size=3, position='conv1'), stride=2),
        dict(spatial_bias=dict(pool_size=3, fusion='add')),
        dict(drop_path_rate=0.5),
        dict(norm_cfg=dict(type='GN', num_groups=1)),
        dict(plugins=[dict(cfg=GC, position='after_conv3'), dict(cfg=NL, position='after_block')]),
    ],
)
@pytest.mark.parametrize('norm_eval', [False, True])
def test_checkpointing_changes_nothing(options, norm_eval):
    block = make(**{'spatial_bias': dict(pool_size=3), **options})
    results = []
    for one in (block, copy.deepcopy(block)):
        one.with_cp = bool(results)
        for norm in [m for m in one.modules() if isinstance(m, nn.BatchNorm2d)]:
            norm.train(not norm_eval)
        x = image()
        torch.manual_seed(2)
        for _ in range(2):
            out = one(x)
            out.square().sum().backward()
        gradients = {f'gradient of {name}': value.grad for name, value in one.named_parameters()}
        results.append({'output': out, 'gradient of x': x.grad, **gradients, **one.state_dict()})
    plain, checkpointed = results
    assert plain.keys() == checkpointed.keys()
    assert all(value is not None for value in plain.values())
    assert [name for name in plain if not torch.equal(plain[name], checkpointed[name])] == []


class Negate(nn.Module):
    """A plugin whose position can be observed."""

    def __init__(self, in_channels):
        super().__init__()
        self.in_channels = in_channels

    def forward(self, x):
        assert x.shape[1] == self.in_channels
        return -x


@pytest.mark.parametrize('spatial_bias', [None, dict(pool_size=3)])
@pytest.mark.parametrize('position', ['after_conv1', 'after_conv2', 'after_conv3', 'after_block'])
def test_plugins_have_their_places(position, spatial_bias):
    block = make(plugins=[dict(cfg=dict(type=Negate), position=position)], spatial_bias=spatial_bias, width=6)
    sign = {
        name: -1 if name == position else 1 for name in ('after_conv1', 'after_conv2', 'after_conv3', 'after_block')
    }
    theirs, x = copy.deepcopy(block), image()
    x2 = theirs.bn1(theirs.conv1(x)).relu() * sign['after_conv1']
    y = theirs.conv2(x2)
    out = theirs.conv3(theirs.bn2(y).relu() * sign['after_conv2'])
    if spatial_bias:  # a plugin refines C channels, not the maps
        out = out + theirs.bias_conv(theirs.bias_norm(theirs.spatial_bias(x2, y.shape[-2:])).relu())
    expected = (x + theirs.bn3(out) * sign['after_conv3']).relu() * sign['after_block']
    close(block(x), expected)


@pytest.mark.parametrize(
    ('where', 'blocks'),
    [
        (dict(position='after_conv3'), '1.0 1.1 1.2 2.0 2.1 2.2 2.3 3.0 3.1 3.2 3.3 3.4 3.5 4.0 4.1 4.2'),
        (dict(position='after_conv1', stages=(False, True, False, True)), '2.0 2.1 2.2 2.3 4.0 4.1 4.2'),
        (dict(position='after_conv2', blocks=(0, 3)), '1.0 2.0 2.3 3.0 3.3 4.0'),
        (dict(position='after_block', stages=(False, True, True, False), blocks=(1, 3)), '2.1 2.3 3.1 3.3'),
    ],
)
def test_stages_and_blocks_say_which_blocks_have_a_plugin(where, blocks):
    net = SBResNet(base_channels=8, plugins=[dict(cfg=GC, **where)])
    found = {name.removesuffix('.context_block') for name, _ in net.named_modules() if name.endswith('.context_block')}
    assert found == {f'layer{block}' for block in blocks.split()}
    x = torch.randn(2, 3, 32, 40)
    assert [out.shape[1] for out in net(x)] == [32, 64, 128, 256]


@pytest.mark.parametrize('position', ['after_conv1', 'after_conv2', 'after_conv3', 'after_block'])
@pytest.mark.parametrize(
    ('cfg', 'zero'),
    [
        (GC, 'channel_add_conv.3.weight'),
        (NL, 'conv_out.conv.weight'),
        (dict(NL, norm_cfg=dict(type='BN')), 'conv_out.bn.weight'),
    ],
    ids=['GC', 'NL', 'NL-BN'],
)
def test_plugins_that_start_without_effect_still_do_after_init_weights(cfg, zero, position):
    options = dict(base_channels=8, zero_init_residual=False)
    plugged = SBResNet(plugins=[dict(cfg=cfg, position=position)], **options)
    plugged.init_weights()
    zeros = [value for name, value in plugged.named_parameters() if name.endswith(zero)]
    assert len(zeros) == 16
    assert not any(value.any() for value in zeros)

    bare = SBResNet(**options)
    bare.load_state_dict(plugged.state_dict(), strict=False)
    x = torch.randn(2, 3, 33, 47)
    torch.testing.assert_close(plugged.eval()(x), bare.eval()(x))


def test_two_plugins_of_one_type_need_a_postfix():
    twice = [dict(cfg=GC, position='after_conv2'), dict(cfg=GC, position='after_conv3')]
    with pytest.raises(ValueError, match=r"'context_block'.*postfix"):
        make(plugins=twice)
    twice[1] = dict(cfg=dict(GC, postfix='_2'), position='after_conv3')
    assert {'context_block', 'context_block_2'} <= dict(make(plugins=twice).named_children()).keys()
    assert twice[1]['cfg']['postfix'] == '_2'


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        (dict(style='tensorflow'), ['style', "'tensorflow'", 'pytorch', 'caffe']),
        (dict(spatial_bias=dict(positions='conv1')), ['positions', "mean 'position'", 'num_maps', 'fusion']),
        (dict(spatial_bias=dict(position='conv3')), ['position', "'conv3'", 'conv1', 'conv2']),
        (dict(spatial_bias=dict(fusion='mul')), ['fusion', "'mul'", 'concat', 'add']),
        (dict(spatial_bias=dict(num_maps=0)), ['num_maps', '0']),
        (dict(plugins=[dict(cfg=GC, position='after_conv4')]), ['position', "'after_conv4'", 'after_block']),
        (dict(plugins=[dict(cfg=GC)]), ['position', 'None', 'after_conv3']),
        (dict(plugins=[dict(position='after_conv3')]), ['plugin', 'cfg']),
    ],
)
def test_mistakes_are_named(options, named):
    with pytest.raises(ValueError) as error:
        make(**options)
    assert all(word in str(error.value) for word in named), error.value
