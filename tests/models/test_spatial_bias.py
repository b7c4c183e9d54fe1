"""SpatialBias matches nested loops that follow the operator's table in method.md row by row."""

import math

import numpy as np
import pytest
import torch
from torch.func import functional_call

from mmsb.models import SpatialBias
from mmsb.models.spatial_bias import concatenate

# options of SpatialBias, shape of x, output size
CASES = [
    (dict(), (2, 8, 13, 7), (13, 7)),
    (dict(), (1, 8, 4, 9), (2, 5)),
    (dict(num_maps=1, pool_size=6), (2, 5, 12, 12), (6, 6)),
    (dict(num_maps=2, pool_size=5, kernel_size=1), (1, 4, 5, 3), (10, 6)),
    (dict(num_maps=4, pool_size=3, pool='max'), (3, 6, 7, 11), (7, 11)),
    (dict(num_maps=5, pool_size=4, pool='max'), (1, 3, 2, 3), (3, 2)),
    (dict(num_maps=6, pool_size=2), (2, 4, 9, 5), (5, 3)),
    (dict(num_maps=6, pool_size=1), (2, 4, 3, 5), (2, 1)),
    (dict(mix=False), (2, 4, 6, 11), (3, 6)),
    (dict(num_maps=2, pool_size=7, pool='max', mix=False), (1, 4, 5, 6), (5, 6)),
]


def make(in_channels, **options):
    torch.manual_seed(0)
    op = SpatialBias(in_channels, **options).double()
    for value in [*op.reduce.bn.parameters(), op.reduce.bn.running_mean, op.reduce.bn.running_var]:
        torch.nn.init.uniform_(value, 0.2, 1.5)
    return op


def bilinear(image, out_size):
    out = np.zeros(out_size)
    for i, j in np.ndindex(*out_size):
        corners = []
        for index, size, new_size in zip((i, j), image.shape, out_size, strict=True):
            at = max((index + 0.5) * size / new_size - 0.5, 0)
            low = math.floor(at)
            corners.append([(low, 1 - at + low), (min(low + 1, size - 1), at - low)])
        out[i, j] = sum(image[y, x] * wy * wx for y, wy in corners[0] for x, wx in corners[1])
    return out


def naive(op, x, out_size, *, num_maps=3, pool_size=10, kernel_size=3, pool='avg', mix=True):
    weights = {name: value.detach().numpy() for name, value in op.state_dict().items()}
    batch, _, height, width = x.shape
    pixels = list(np.ndindex(batch, height, width))

    reduced = np.zeros((batch, num_maps + kernel_size - 1 if mix else num_maps, height, width))
    for b, i, j in pixels:
        for r, row in enumerate(weights['reduce.conv.weight']):
            reduced[b, r, i, j] = sum(w * v for w, v in zip(row[:, 0, 0], x[b, :, i, j], strict=True))
    for r in range(reduced.shape[1]):
        mean, var = weights['reduce.bn.running_mean'][r], weights['reduce.bn.running_var'][r]
        if op.training:
            mean = sum(reduced[b, r, i, j] for b, i, j in pixels) / len(pixels)
            var = sum((reduced[b, r, i, j] - mean) ** 2 for b, i, j in pixels) / len(pixels)
        scale, shift = weights['reduce.bn.weight'][r], weights['reduce.bn.bias'][r]
        for b, i, j in pixels:
            reduced[b, r, i, j] = max((reduced[b, r, i, j] - mean) / math.sqrt(var + 1e-5) * scale + shift, 0)

    pooled = np.zeros((*reduced.shape[:2], pool_size, pool_size))
    for b, r, i, j in np.ndindex(*pooled.shape):
        top, bottom = math.floor(i * height / pool_size), math.ceil((i + 1) * height / pool_size)
        left, right = math.floor(j * width / pool_size), math.ceil((j + 1) * width / pool_size)
        cell = reduced[b, r, top:bottom, left:right]
        pooled[b, r, i, j] = cell.max() if pool == 'max' else cell.sum() / cell.size

    maps = pooled
    if mix:
        maps = np.zeros((batch, num_maps, pool_size, pool_size))
        for b, n, i, j in np.ndindex(*maps.shape):
            to = i * pool_size + j
            maps[b, n, i, j] = weights['mix.bias'][to]
            for tap in range(kernel_size):
                for source, value in enumerate(pooled[b, n + tap].reshape(-1)):
                    maps[b, n, i, j] += weights['mix.weight'][to, source, tap] * value
    return np.array([[bilinear(image, out_size) for image in sample] for sample in maps])


@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize(('options', 'shape', 'out_size'), CASES)
def test_equals_naive_loops(options, shape, out_size, training):
    op = make(shape[1], **options).train(training)
    x = torch.randn(shape, dtype=torch.double)
    expected = naive(op, x.numpy(), out_size, **options)
    out = op(x, out_size)
    assert out.shape == (shape[0], options.get('num_maps', 3), *out_size)
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ('options', 'reduced', 'mix'),
    [
        (dict(), 5, (100, 100, 3)),
        (dict(num_maps=6, pool_size=6), 8, (36, 36, 3)),
        (dict(num_maps=2, pool_size=4, kernel_size=1), 2, (16, 16, 1)),
        (dict(num_maps=4, kernel_size=5, pool='max'), 8, (100, 100, 5)),
        (dict(num_maps=4, mix=False), 4, None),
    ],
)
def test_parameter_names_and_shapes(options, reduced, mix):
    expected = {
        'reduce.conv.weight': (reduced, 16, 1, 1),
        'reduce.bn.weight': (reduced,),
        'reduce.bn.bias': (reduced,),
    }
    if mix is not None:
        expected |= {'mix.weight': mix, 'mix.bias': mix[:1]}
    assert {name: tuple(value.shape) for name, value in SpatialBias(16, **options).named_parameters()} == expected


@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize('options', [dict(), dict(pool='max'), dict(kernel_size=1), dict(mix=False)])
def test_gradients_are_the_numeric_ones(options, training):
    op = make(2, **{'num_maps': 2, 'pool_size': 2, **options}).train(training)
    names, values = zip(*op.named_parameters(), strict=True)
    x = torch.randn(2, 2, 3, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, *values: functional_call(op, dict(zip(names, values, strict=True)), (x, (4, 3))), (x, *values)
    )


@pytest.mark.parametrize('mix', [True, False])
def test_each_output_pixel_depends_on_each_input_pixel(mix):
    op = make(2, pool_size=3, mix=mix).eval()
    torch.nn.init.constant_(op.reduce.bn.bias, 100)  # so that no ReLU at zero hides a path
    x = torch.randn(1, 2, 7, 5, dtype=torch.double)
    jacobian = torch.autograd.functional.jacobian(lambda x: op(x, (9, 4)), x)  # (1, N, 9, 4, 1, 2, 7, 5)
    reached = jacobian.abs().amax(dim=(0, 1, 4, 5)) > 0  # (9, 4, 7, 5)
    assert reached.all() if mix else not reached.all()


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        (dict(num_map=3), ['num_map', 'num_maps', 'pool_size', 'kernel_size', 'mix']),
        (dict(pool='sum'), ['pool', "'sum'", 'avg', 'max']),
        (dict(num_maps=0), ['num_maps', '0', 'at least 1']),
        (dict(num_maps=True), ['num_maps', 'True', 'integer']),
        (dict(pool_size=2.5), ['pool_size', '2.5', 'integer']),
        (dict(pool_size='10'), ['pool_size', "'10'", 'integer']),
        (dict(kernel_size=-1), ['kernel_size', '-1', 'at least 1']),
        (dict(mix=False, kernel_size=5), ['kernel_size', '5', 'no effect', 'mix=False']),
    ],
)
def test_mistakes_are_named(options, named):
    with pytest.raises(ValueError) as error:
        SpatialBias(8, **options)
    assert all(word in str(error.value) for word in named), error.value


def test_norm_and_activation_are_those_of_the_reduction():
    norm_cfg = dict(type='GN', num_groups=1)
    op = SpatialBias(4, norm_cfg=norm_cfg, act_cfg=dict(type='Sigmoid'))
    assert isinstance(op.reduce.norm, torch.nn.GroupNorm)
    assert isinstance(op.reduce.activate, torch.nn.Sigmoid)
    assert norm_cfg == dict(type='GN', num_groups=1)


def test_few_channels_stay_nchw_and_the_concatenation_channels_last():
    torch.manual_seed(0)
    bias = SpatialBias(8, pool_size=3)
    seen = []
    bias.reduce.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    y = torch.randn(2, 8, 6, 5).to(memory_format=torch.channels_last)
    both = concatenate(y, bias(y, (6, 5)))
    assert seen == [True]
    assert both.is_contiguous(memory_format=torch.channels_last)
    plain = y.contiguous()
    torch.testing.assert_close(both, torch.cat([plain, bias(plain, (6, 5))], 1), check_stride=False)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_gradients_of_the_concatenation(layout):
    torch.manual_seed(0)
    y = torch.randn(2, 4, 5, 3, dtype=torch.double).contiguous(memory_format=layout).requires_grad_()
    maps = torch.randn(2, 3, 5, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(concatenate, (y, maps))
    assert torch.autograd.gradgradcheck(concatenate, (y, maps))
    seen = []
    middle = y * 1
    both = concatenate(middle, maps)
    middle.register_hook(lambda grad: seen.append(grad.is_contiguous(memory_format=torch.channels_last)))
    both.backward(torch.randn_like(both))
    assert seen == [layout == torch.channels_last]


def test_transforms_of_functions_pass_through_the_concatenation():
    torch.manual_seed(0)
    y, maps = torch.randn(2, 1, 4, 5, 3), torch.randn(2, 1, 3, 5, 3)

    def loss(y, maps):
        return concatenate(y, maps).pow(3).sum()

    gradients = torch.func.vmap(torch.func.grad(loss))(y, maps)
    torch.testing.assert_close(gradients, 3 * y**2)


def test_the_reduction_is_pooled_in_the_precision_of_its_weights():
    bias = SpatialBias(8, pool_size=3)
    seen = []
    bias.reduce.register_forward_hook(lambda _, inputs, out: seen.append(out.dtype))
    with torch.autocast('cpu', torch.bfloat16):
        maps = bias(torch.randn(2, 8, 6, 5), (6, 5))
    assert (seen, maps.dtype) == ([torch.float32], torch.bfloat16)
