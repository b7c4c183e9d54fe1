"""The other blocks: each matches its formula; initial values; limits; networks that combine them."""

import copy
import math
import re
import subprocess
from pathlib import Path

import mmpretrain.registry
import numpy as np
import pytest
import torch
import warm
from mmcv.cnn import fuse_conv_bn
from mmengine.registry import MODELS
from mmengine.utils import digit_version
from mmpretrain.models.utils import SELayer
from timm.layers import BatNonLocalAttn
from torch import nn
from torch.func import functional_call

from mmsb.models import SBResNet, SBResNetCifar

NEEDS_HALF_AUTOCAST = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.3'), reason='float16 autocast on the CPU came with torch 2.3'
)


def build(name, channels, **options):
    """Build a block with random values everywhere, as if it had been trained."""
    torch.manual_seed(0)
    cfg = dict(type=f'mmsb.{name}', in_channels=channels, **options)
    return scramble(MODELS.build(cfg | (dict(out_channels=channels) if name == 'SK' else {}))).double()


def scramble(net):
    for norm in [m for m in net.modules() if isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm))]:
        for value in [*norm.parameters(), *(b for b in norm.buffers() if b.is_floating_point())]:
            nn.init.uniform_(value, 0.3, 1.2)
    for value in net.parameters():
        if not value.any():
            nn.init.normal_(value, std=0.3)
    return net


def image(*shape):
    torch.manual_seed(1)
    return torch.randn(shape, dtype=torch.double)


# The formulas. `w` maps names to weights; they call nothing from the blocks, the libraries or torch.nn.


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def relu(x):
    return x.clamp(min=0)


def softmax(x, dim):
    return x.exp() / x.exp().sum(dim, keepdim=True)


def mean(x):
    return x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])


def pointwise(x, w, name):
    bias = w[f'{name}.bias'][:, None, None] if f'{name}.bias' in w else 0
    return torch.einsum('oc,bchw->bohw', w[f'{name}.weight'][:, :, 0, 0], x) + bias


def norm(x, w, name, training):
    average, variance = w[f'{name}.running_mean'], w[f'{name}.running_var']
    if training:
        average = x.transpose(0, 1).flatten(1).sum(1) / (x.numel() / x.shape[1])
        deviations = x.transpose(0, 1).flatten(1) - average[:, None]
        variance = (deviations**2).sum(1) / (x.numel() / x.shape[1])
    scale, shift = w[f'{name}.weight'], w[f'{name}.bias']
    average, variance, scale, shift = (v[:, None, None] for v in (average, variance, scale, shift))
    return (x - average) / (variance + 1e-5).sqrt() * scale + shift


def spatial(x, weight, *, stride=1, dilation=1, groups=1):
    """A k x k convolution that keeps the size at stride 1."""
    outputs, inputs, side, _ = weight.shape
    reach = dilation * (side // 2)
    padded = x.new_zeros(*x.shape[:2], x.shape[2] + 2 * reach, x.shape[3] + 2 * reach)
    padded[:, :, reach : reach + x.shape[2], reach : reach + x.shape[3]] = x
    out = x.new_zeros(len(x), outputs, -(-x.shape[2] // stride), -(-x.shape[3] // stride))
    for b, o, i, j in np.ndindex(*out.shape):
        first = o // (outputs // groups) * inputs
        rows, columns = (slice(k * stride, k * stride + 2 * reach + 1, dilation) for k in (i, j))
        out[b, o, i, j] = (weight[o] * padded[b, first : first + inputs, rows, columns]).sum()
    return out


def se(w, x, training):
    squeezed = relu(pointwise(mean(x), w, 'block.conv1.conv'))
    return x * sigmoid(pointwise(squeezed, w, 'block.conv2.conv'))


def srm(w, x, training):
    deviation = (mean((x - mean(x)) ** 2) + 1e-5).sqrt()
    style = torch.empty_like(mean(x))
    for b, c in np.ndindex(*x.shape[:2]):
        style[b, c] = w['style_weight'][c, 0] * mean(x)[b, c] + w['style_weight'][c, 1] * deviation[b, c]
    return x * sigmoid(norm(style, w, 'norm', training))


def ge(w, x, training):
    gathered = torch.empty_like(mean(x))
    for b, c in np.ndindex(*x.shape[:2]):
        gathered[b, c] = (w['conv.weight'][c, 0] * x[b, c]).sum() + w['conv.bias'][c]
    return x * sigmoid(norm(gathered, w, 'norm', training))


def eca(w, x, training):
    kernel = w['block.conv.weight'][0, 0]
    size = int(abs(math.log2(x.shape[1]) + 1) / 2)
    assert len(kernel) == max(3, size + 1 - size % 2)
    out = torch.empty_like(x)
    for b, c in np.ndindex(*x.shape[:2]):
        taps = [(k, c + k - len(kernel) // 2) for k in range(len(kernel))]
        total = sum(kernel[k] * mean(x)[b, i, 0, 0] for k, i in taps if 0 <= i < x.shape[1])
        out[b, c] = x[b, c] * sigmoid(total)
    return out


def cbam(w, x, training):
    parts = [mean(x), x.flatten(2).max(2).values[:, :, None, None]]
    x = x * sigmoid(sum(pointwise(relu(pointwise(p, w, 'block.channel.fc1')), w, 'block.channel.fc2') for p in parts))
    maps = torch.stack([x.sum(1) / x.shape[1], x.max(1).values], 1)
    attention = spatial(maps, w['block.spatial.conv.conv.weight'])
    return x * sigmoid(norm(attention, w, 'block.spatial.conv.bn', training))


def gc(w, x, training):
    weights = softmax(pointwise(x, w, 'conv_mask').flatten(1), 1).unflatten(1, x.shape[2:])
    context = torch.einsum('bchw,bhw->bc', x, weights)[:, :, None, None]
    hidden = pointwise(context, w, 'channel_add_conv.0')
    hidden = hidden - hidden.sum(1, keepdim=True) / hidden.shape[1]
    hidden = hidden / ((hidden**2).sum(1, keepdim=True) / hidden.shape[1] + 1e-5).sqrt()
    hidden = hidden * w['channel_add_conv.1.weight'] + w['channel_add_conv.1.bias']
    return x + pointwise(relu(hidden), w, 'channel_add_conv.3')


def non_local_term(w, x, training):
    theta, phi, g = (pointwise(x, w, f'{name}.conv') for name in ('theta', 'phi', 'g'))
    y = torch.empty_like(g)
    for b, i, j in np.ndindex(len(x), *x.shape[2:]):
        logits = (theta[b, :, i, j, None, None] * phi[b]).sum(0) / math.sqrt(len(g[b]))
        y[b, :, i, j] = (softmax(logits.flatten(), 0) * g[b].flatten(1)).sum(1)
    return norm(pointwise(y, w, 'conv_out.conv'), w, 'conv_out.bn', training)


def nl(w, x, training):
    return x + non_local_term(w, x, training)


def pooling(size, cells):
    matrix = torch.zeros(cells, size, dtype=torch.double)
    for i in range(cells):
        start, end = math.floor(i * size / cells), math.ceil((i + 1) * size / cells)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


def upsampling(cells, size):
    matrix = torch.zeros(size, cells, dtype=torch.double)
    for i in range(size):
        at = max((i + 0.5) * cells / size - 0.5, 0)
        low = math.floor(at)
        matrix[i, low] += 1 - at + low
        matrix[i, min(low + 1, cells - 1)] += at - low
    return matrix


def reduced_nl(w, x, training):
    (height, width), cells = x.shape[2:], 3
    pooled = torch.einsum('ih,bchw,jw->bcij', pooling(height, cells), x, pooling(width, cells))
    term = non_local_term(w, pooled, training)
    return x + torch.einsum('hi,bcij,wj->bchw', upsampling(cells, height), term, upsampling(cells, width))


def sk(w, x, training, stride=1, dilation=1, groups=1):
    branches = []
    for i in (0, 1):
        kernel = w[f'block.paths.{i}.conv.weight']
        branch = spatial(x, kernel, stride=stride, dilation=dilation * (i + 1), groups=groups)
        branches.append(relu(norm(branch, w, f'block.paths.{i}.bn', training)))
    hidden = pointwise(mean(branches[0] + branches[1]), w, 'block.attn.fc_reduce')
    logits = pointwise(relu(norm(hidden, w, 'block.attn.bn', training)), w, 'block.attn.fc_select')
    first, second = logits[:, : x.shape[1]].exp(), logits[:, x.shape[1] :].exp()
    return (branches[0] * first + branches[1] * second) / (first + second)


def bat(w, x, training):
    side, groups = 3, 2

    def layer(x, name):
        return relu(norm(pointwise(x, w, f'{name}.conv'), w, f'{name}.bn', training))

    inner = layer(x, 'block.conv1')
    maxima = layer(inner, 'block.ba.conv1')
    rows = torch.stack([part.flatten(2).max(2).values for part in maxima.chunk(side, 2)], 2)  # (B, groups, S)
    columns = torch.stack([part.flatten(2).max(2).values for part in maxima.chunk(side, 3)], 2)
    mixed = torch.empty_like(inner)
    for b, c in np.ndindex(*inner.shape[:2]):
        group = c // (inner.shape[1] // groups)
        matrices = []
        for name, sides in (('p', rows), ('q', columns)):
            matrix = torch.empty(side, side, dtype=torch.double)
            for i, j in np.ndindex(side, side):
                at = group * side**2 + i * side + j
                kernel = w[f'block.ba.conv_{name}.weight'][at].reshape(groups, side)
                matrix[i, j] = sigmoid((kernel * sides[b]).sum() + w[f'block.ba.conv_{name}.bias'][at])
            matrices.append(matrix / matrix.sum(1 if name == 'p' else 0, keepdim=True))
        left = torch.kron(matrices[0], torch.eye(x.shape[2] // side, dtype=torch.double))
        right = torch.kron(matrices[1], torch.eye(x.shape[3] // side, dtype=torch.double))
        mixed[b, c] = left @ inner[b, c] @ right
    return x + layer(layer(mixed, 'block.ba.conv2'), 'block.conv2')


ODD = [(3, 8, 7, 5), (1, 8, 5, 9)]
FORMULAS = [
    ('SE', dict(ratio=4), se, ODD),
    ('SE', dict(ratio=8), se, ODD[1:]),
    ('SRM', dict(), srm, ODD),
    ('GE', dict(extent=(7, 5)), ge, ODD[:1]),
    ('GE', dict(extent=5), ge, [(2, 8, 5, 5), (1, 8, 5, 5)]),
    ('ECA', dict(), eca, [*ODD, (1, 256, 3, 2)]),
    ('CBAM', dict(ratio=4), cbam, ODD),
    ('GC', dict(ratio=4), gc, ODD),
    ('GC', dict(ratio=3), gc, [(1, 49, 5, 3)]),
    ('NL', dict(), nl, ODD),
    ('NL', dict(ratio=4), nl, ODD[1:]),
    ('ReducedNL', dict(pool_size=3), reduced_nl, [*ODD, (2, 8, 2, 3)]),
    ('BAT', dict(block_size=3, groups=2, drop_rate=0.0), bat, [(2, 8, 9, 3), (1, 8, 3, 15)]),
    ('SK', dict(), sk, ODD),
]
ONE_IMAGE_ONLY_EVALUATES = ('SRM', 'GE', 'SK')


def check_formula(block, x, formula, training, **geometry):
    weights = {name: value.clone() for name, value in block.state_dict().items()}
    with torch.no_grad():
        expected = formula(weights, x, training, **geometry)
        torch.testing.assert_close(block.train(training)(x), expected, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(expected, x.new_zeros(())), 'a block of zeros would prove nothing'


@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize(
    ('name', 'options', 'formula', 'shape'),
    [(name, options, formula, shape) for name, options, formula, shapes in FORMULAS for shape in shapes],
)
def test_equals_its_formula(name, options, formula, shape, training):
    block, x = build(name, shape[1], **options), image(*shape)
    if training and len(x) == 1 and name in ONE_IMAGE_ONLY_EVALUATES:
        with pytest.raises(ValueError, match=rf'{name} needs at least 2 images .* got 1: .*'):
            block(x)
    else:
        check_formula(block, x, formula, training)


@pytest.mark.parametrize(
    'geometry', [dict(stride=2), dict(groups=4), dict(dilation=2), dict(stride=2, dilation=3, groups=2)]
)
def test_selective_kernel_has_the_geometry_of_a_convolution(geometry):
    block = build('SK', 8, padding=geometry.get('dilation', 1), **geometry)
    check_formula(block, image(2, 8, 7, 5), sk, training=True, **geometry)


@pytest.mark.parametrize(
    ('name', 'options', 'theirs'),
    [
        ('BAT', dict(drop_rate=0.0), lambda: BatNonLocalAttn(16, 7, groups=4, rd_channels=8, drop_rate=0.0)),
        ('SE', dict(ratio=4), lambda: SELayer(16, 4)),
    ],
)
def test_names_initial_values_and_function_are_their_librarys(name, options, theirs):
    torch.manual_seed(0)
    ours = MODELS.build(dict(type=f'mmsb.{name}', in_channels=16, **options)).block.state_dict()
    torch.manual_seed(0)
    theirs = theirs()
    assert ours.keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.items())

    block, x = build(name, 16, **options).train(), image(2, 16, 14, 21)
    theirs.double().load_state_dict(block.block.state_dict())
    torch.testing.assert_close(block(x), theirs.train()(x), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
def test_gradients_of_style_recalibration_are_the_numeric_ones(training):
    block = build('SRM', 3).train(training)
    names, values = zip(*block.named_parameters(), strict=True)
    x = image(3, 3, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, *values: functional_call(block, dict(zip(names, values, strict=True)), (x,)), (x, *values)
    )


# In a network: SBResNetCifar of depth 11, whose maps are 16, 8 and 4 pixels wide for images of 16.

REFINE = ('SE', 'SRM', 'ECA', 'CBAM', 'GC')
EXTENTS = [
    dict(cfg=dict(type='mmsb.GE', extent=extent), position='after_conv3', stages=[i == j for j in range(3)])
    for i, extent in enumerate((16, 8, 4))
]
SLOTS = {
    **{name: dict(plugins=[dict(cfg=dict(type=f'mmsb.{name}'), position='after_conv3')]) for name in REFINE},
    'GE': dict(plugins=EXTENTS),
    'NL': dict(plugins=[dict(cfg=dict(type='mmsb.NL'), position='after_block')]),
    'ReducedNL': dict(plugins=[dict(cfg=dict(type='mmsb.ReducedNL', pool_size=3), position='after_block')]),
    'BAT': dict(plugins=[dict(cfg=dict(type='mmsb.BAT', block_size=4), position='after_block')]),
    'SK': dict(conv2=dict(type='mmsb.SK')),
}
NAMES = dict(ReducedNL='reduced_nl', SK='conv2')


def combine(name, **options):
    torch.manual_seed(0)
    return SBResNetCifar(11, **{'base_channels': 8, 'zero_init_residual': False, **SLOTS[name], **options})


def images():
    torch.manual_seed(2)
    return torch.randn(3, 3, 16, 16)


# The gradient of these is rounding error: the batch norm that follows cancels a bias, and a softmax does not change if
# all logits are shifted equally.
NO_GRADIENT = r'ge\.conv\.bias|conv_out\.conv\.bias|phi\.conv\.bias|conv_mask\.bias'


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('name', SLOTS)
def test_backward_reaches_every_parameter_beside_spatial_bias(name, with_cp):
    net = scramble(combine(name, with_cp=with_cp)).train()
    assert sum(f'.{NAMES.get(name, name.lower())}.' in key for key in net.state_dict()) > 0
    sum((out * torch.rand_like(out)).mean() for out in net(images())).backward()
    unreached = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert [key for key in unreached if not re.search(NO_GRADIENT, key)] == []
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize('name', SLOTS)
def test_state_dict_round_trip(name):
    net, other = scramble(combine(name)), combine(name)
    net.train()(images())
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert all(map(torch.equal, net.eval()(images()), other.eval()(images())))


@pytest.mark.parametrize('dtype', [torch.bfloat16, pytest.param(torch.float16, marks=NEEDS_HALF_AUTOCAST)])
@pytest.mark.parametrize('name', SLOTS)
def test_autocast_is_close_to_full_precision(name, dtype):
    net = scramble(combine(name)).eval()
    with torch.no_grad():
        expected = net(images())
        with torch.autocast('cpu', dtype):
            outs = net(images())
    for out, wanted in zip(outs, expected, strict=True):
        assert (out - wanted).norm() < 0.02 * wanted.norm()
    with torch.autocast('cpu', dtype):
        sum(out.float().mean() for out in net.train()(images())).backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in net.parameters())


@pytest.mark.parametrize('name', SLOTS)
def test_compiles_to_one_graph(name):
    torch._dynamo.reset()  # many networks share one code object; this is not a recompilation for another input
    net, x = scramble(combine(name)).double().eval(), images().double()
    with torch.no_grad():
        outs = torch.compile(net, fullgraph=True, backend='aot_eager')(x)
        torch.testing.assert_close(outs, net(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('name', SLOTS)
def test_whoever_replaces_norms_changes_no_output(name):
    """Neither the conversion to SyncBatchNorm nor fuse_conv_bn drops an activation."""
    net, x = scramble(combine(name, spatial_bias=None)).double().eval(), images().double()
    changed = (nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net)), fuse_conv_bn(copy.deepcopy(net)))
    with torch.no_grad():
        for other in changed:
            torch.testing.assert_close(other.eval()(x), net(x), rtol=1e-9, atol=1e-9)


def train_a_step(rank, folder):
    """Train on the images of this rank and keep the gradients; with rank None, train alone on those of both ranks."""
    options = dict(conv2=SLOTS['SK']['conv2'], plugins=[*SLOTS['NL']['plugins'], *SLOTS['SRM']['plugins']])
    net = scramble(combine('SK', **options)).double().eval()  # batch statistics are per process: they would differ
    x = torch.randn(4, 3, 16, 16, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    run = net
    if rank is not None:
        store = torch.distributed.FileStore(f'{folder}/store', 2)
        torch.distributed.init_process_group('gloo', store=store, rank=rank, world_size=2)
        run, x = nn.parallel.DistributedDataParallel(net), x[2 * rank : 2 * rank + 2]
    run(x)[-1].square().mean().backward()
    torch.save({key: p.grad for key, p in net.named_parameters()}, f'{folder}/{rank}.pth')
    if rank is not None:
        torch.distributed.destroy_process_group()


def test_two_processes_get_the_gradients_of_one(tmp_path):
    """Not in forks of this process: PyTorch refuses a backward pass there once this one has threads for it."""
    train_a_step(None, tmp_path)
    here = Path(__file__).parent
    code = f'import sys\nsys.path[:0] = {[str(here), str(here.parent)]}\nimport test_context as here\n'
    (tmp_path / 'run.py').write_text(code + 'here.train_a_step(int(sys.argv[1]), ".")\n')
    command = [warm.python(), tmp_path / 'run.py']
    processes = [subprocess.Popen([*command, str(rank)], cwd=tmp_path) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    alone, *both = (torch.load(tmp_path / f'{rank}.pth') for rank in (None, 0, 1))
    for gradients in both:
        for key, value in alone.items():
            torch.testing.assert_close(gradients[key], value, rtol=1e-8, atol=1e-10)


# Initial values.


@pytest.mark.parametrize(
    ('name', 'zeros'),
    [
        ('GC', ('channel_add_conv.3.weight', 'channel_add_conv.3.bias')),
        ('NL', ('conv_out.bn.weight', 'conv_out.bn.bias')),
        ('ReducedNL', ('conv_out.bn.weight', 'conv_out.bn.bias')),
        ('SRM', ('style_weight', 'norm.bias')),
    ],
)
def test_zeros_are_there_after_the_whole_network_is_initialised(name, zeros):
    backbone = dict(type='mmsb.SBResNetCifar', depth=11, zero_init_residual=False, **SLOTS[name])
    head = dict(type='LinearClsHead', num_classes=10, in_channels=256)
    neck = dict(type='GlobalAveragePooling')
    cfg = dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)
    model = mmpretrain.registry.MODELS.build(cfg)
    model.init_weights()
    part = f'.{NAMES.get(name, name.lower())}.'
    found = [value for key, value in model.named_parameters() if part in key and key.endswith(zeros)]
    assert len(found) == 3 * len(zeros)
    assert not any(value.any() for value in found)
    bare = SBResNetCifar(11)
    bare.load_state_dict({key: value for key, value in model.backbone.state_dict().items() if part not in key})
    with torch.no_grad():
        outs, expected = model.backbone.eval()(images()), bare.eval()(images())
    assert all(map(torch.allclose, outs, expected)) == (name != 'SRM')


@pytest.mark.parametrize('name', ['SE', 'GE', 'ECA', 'CBAM', 'BAT'])
def test_others_keep_what_their_library_sets(name):
    net = combine(name)
    part = f'.{name.lower()}.'
    before = {key: value.clone() for key, value in net.state_dict().items() if part in key}
    net.init_weights()
    assert before
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())


def test_convolutions_of_selective_kernel_start_as_any_convolution():
    net = SBResNetCifar(11, conv2=dict(type='mmsb.SK'), base_channels=32)
    net.init_weights()
    for i, channels in enumerate((32, 64, 128), 1):
        for path in getattr(net, f'layer{i}')[0].conv2.block.paths:
            assert path.conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * channels)), rel=0.03)


# Names, positions and wrong options.


def test_names_in_the_state_dict():
    net = SBResNetCifar(11, plugins=[dict(cfg=dict(type=f'mmsb.{n}'), position='after_conv3') for n in REFINE])
    assert [name for name, _ in net.layer1[0].named_children()][-5:] == ['se', 'srm', 'eca', 'cbam', 'gc']
    assert 'layer1.0.conv2.block.paths.0.conv.weight' in combine('SK').state_dict()
    assert 'layer1.0.reduced_nl.conv_out.bn.weight' in combine('ReducedNL').state_dict()


def test_selective_kernel_stands_for_the_3x3_convolution():
    """Its output takes the place of conv2's: through bn2 and ReLU, with the maps appended, into conv3."""
    block = scramble(combine('SK')).double().layer2[0]
    x = image(2, 32, 7, 5)
    inner = block.bn1(block.conv1(x)).relu()
    y, maps = block.conv2(inner), block.spatial_bias(inner, (4, 3))
    assert y.shape == (2, 16, 4, 3)
    out = block.conv3(block.bn2(y).relu()) + block.bias_conv(block.bias_norm(maps).relu())
    expected = (block.downsample(x) + block.bn3(out)).relu()
    block.load_state_dict(combine('SK').double().layer2[0].state_dict() | block.state_dict())
    torch.testing.assert_close(block(x), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(('name', 'size'), [('GE', (16, 24)), ('GE', (32, 32)), ('BAT', (16, 24)), ('BAT', (40, 16))])
def test_images_of_another_size_are_refused_in_one_line(name, size):
    net = combine(name).eval()
    with pytest.raises(ValueError) as error:
        net(torch.randn(1, 3, *size))
    sides = {('GE', 16): '16 x 24', ('GE', 32): '32 x 32', ('BAT', 16): '4 x 6', ('BAT', 40): '10 x 4'}[name, size[0]]
    assert all(word in str(error.value) for word in (name, f'got {sides}', 'resize the images'))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('name', 'options', 'named'),
    [
        ('SE', dict(ratio=17), ['ratio of SE', '1 to its 16', '17']),
        ('GC', dict(ratio=1 / 16), ['ratio of GC', 'integer', '0.0625']),
        ('NL', dict(ratio=0), ['ratio of NL', '0']),
        ('CBAM', dict(ratio='4'), ['ratio of CBAM', "'4'"]),
        ('BAT', dict(groups=3), ['groups of BAT', '8', '3']),
        ('BAT', dict(ratio=True), ['ratio of BAT', 'True']),
        ('BAT', dict(groups=0), ['groups of BAT', '0']),
        ('BAT', dict(block_size=0), ['block_size of BAT', '0']),
        ('GE', dict(extent=0), ['extent of GE', '0']),
        ('GE', dict(extent=(7, 7, 7)), ['extent of GE', '(7, 7, 7)']),
        ('ReducedNL', dict(pool_size=0), ['pool_size of ReducedNL', '0']),
        ('SRM', dict(ratio=16), ["SRM has no option 'ratio'", 'in_channels']),
        ('ECA', dict(kernel=3), ["ECA has no option 'kernel'", 'in_channels']),
        ('SK', dict(ratioo=3), ["SK has no option 'ratioo'", "mean 'ratio'"]),
        ('SK', dict(kernel_size=5), ['kernel_size of SK', '3', '5']),
        ('SK', dict(padding=0), ['padding of SK', '1', '0']),
        ('SK', dict(bias=True), ['bias of SK', 'False', 'True']),
    ],
)
def test_mistakes_are_named(name, options, named):
    with pytest.raises(ValueError) as error:
        build(name, 16, **options)
    assert all(word in str(error.value) for word in named), error.value


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        (dict(conv2='mmsb.SK'), ['conv2', "'mmsb.SK'", 'type']),
        (dict(conv2=dict(ratio=16)), ['conv2', 'ratio', 'type']),
        (dict(conv2=dict(type='mmsb.SK', raito=16)), ["no option 'raito'", "mean 'ratio'"]),
        (dict(conv2=dict(type='mmsb.SK'), spatial_bias=dict(position='conv1')), ['position', "'conv1'", 'conv2']),
    ],
)
def test_mistakes_with_the_3x3_convolution_are_named(options, named):
    with pytest.raises(ValueError) as error:
        SBResNet(**options)
    assert all(word in str(error.value) for word in named), error.value
