"""Operations that mmcv compiles only for GPUs match loops over the published formulas; gradcheck tests gradients."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import use_kernels
from mmcv import ops

import mmsb.ops.ext


@pytest.fixture(autouse=True)
def _our_kernels(monkeypatch):
    use_kernels(monkeypatch, mmsb.ops.ext)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def test_roi_pool_takes_the_largest_value_between_floor_and_ceiling():
    features = random(2, 3, 9, 11).round(decimals=1)  # with ties
    rois = torch.tensor(
        [[0, 1.3, 2.1, 9.9, 16.2], [1, -5, -4, 7, 8], [1, 4, 4, 4, 4], [0, 30, 30, 60, 60], [0, 9, 9, 3, 3]]
    ).double()
    scale, bins = 0.5, (3, 2)
    expected = torch.zeros(5, 3, *bins, dtype=torch.float64)
    for r, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = corners[0] * scale, corners[1] * scale, (corners[2] + 1) * scale, (corners[3] + 1) * scale
        for i in range(bins[0]):
            for j in range(bins[1]):
                rows = _pixels(y1, y2, i, bins[0], 9)
                columns = _pixels(x1, x2, j, bins[1], 11)
                for c in range(3):
                    values = [features[int(image), c, y, x] for y in rows for x in columns]
                    expected[r, c, i, j] = max(values) if values and x2 > x1 and y2 > y1 else 0
    assert torch.equal(ops.roi_pool(features, rois, bins, scale), expected)


def _pixels(start: float, end: float, index: int, bins: int, limit: int) -> range:
    length = (end - start) / bins
    first, last = math.floor(start + index * length), math.ceil(start + (index + 1) * length)
    return range(min(max(first, 0), limit), min(max(last, 0), limit))


def test_roi_pool_gives_its_gradient_to_the_first_of_equal_maxima():
    features = torch.zeros(1, 1, 4, 4, requires_grad=True)
    ops.roi_pool(features, torch.tensor([[0.0, 0, 0, 3, 3]]), 2, 1.0).sum().backward()
    expected = torch.zeros(4, 4)
    expected[0, 0] = expected[0, 2] = expected[2, 0] = expected[2, 2] = 1
    assert torch.equal(features.grad[0, 0], expected)


def test_a_region_without_extent_has_no_gradient():
    features = torch.ones(1, 1, 4, 4, requires_grad=True)
    ops.roi_pool(features, torch.tensor([[0.0, 3, 3, 1, 1]]), 2, 1.0).sum().backward()
    assert not features.grad.any()


@pytest.mark.parametrize(
    ('pool', 'options'), [(ops.roi_pool, ()), (ops.roi_align, (0, 'max')), (ops.roi_align, (2, 'max'))]
)
def test_derivatives_of_pooling(pool, options):
    features = random(2, 2, 6, 7).requires_grad_()
    rois = torch.tensor([[0, 1.0, 1, 9, 8], [1, 2, 3, 11, 10]]).double()
    assert torch.autograd.gradcheck(lambda x: pool(x, rois, (2, 3), 0.5, *options), features)


@pytest.mark.parametrize('pool', [ops.roi_pool, ops.roi_align])
@pytest.mark.parametrize('options', [(), (0, 'max')])
def test_no_regions_give_an_empty_output(pool, options):
    features = torch.ones(1, 2, 4, 4, requires_grad=True)
    options = options if pool is ops.roi_align else ()
    output = pool(features, torch.zeros(0, 5), 3, 1.0, *options)
    output.sum().backward()
    assert output.shape == (0, 2, 3, 3)
    assert not features.grad.any()


@pytest.mark.parametrize('gamma', [0.0, 2.0, 1.5])
@pytest.mark.parametrize('weighted', [False, True])
def test_sigmoid_focal_loss(gamma, weighted):
    logits, alpha = 4 * random(5, 3), 0.25
    target = torch.tensor([0, 2, 1, 1, 2 if weighted else 3])  # 3 is background, which no class weight exists for
    weight = torch.tensor([0.5, 2.0, 3.0]).double() if weighted else None
    expected = torch.zeros(5, 3, dtype=torch.float64)
    for n in range(5):
        for c in range(3):
            p = 1 / (1 + math.exp(-logits[n, c]))
            if target[n] == c:
                loss = -alpha * (1 - p) ** gamma * math.log(p)
            else:
                loss = -(1 - alpha) * p**gamma * math.log(1 - p)
            expected[n, c] = loss * (weight[target[n]] if weighted else 1)
    for reduction, reduced in (('none', expected), ('sum', expected.sum()), ('mean', expected.sum() / 5)):
        torch.testing.assert_close(ops.sigmoid_focal_loss(logits, target, gamma, alpha, weight, reduction), reduced)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.sigmoid_focal_loss(x, target, gamma, alpha, weight, 'sum'), logits)


def test_sigmoid_focal_loss_of_a_confident_mistake_is_its_logit():
    loss = ops.sigmoid_focal_loss(torch.tensor([[40.0, -40.0]]), torch.tensor([1]), 2.0, 0.25, None, 'none')
    torch.testing.assert_close(loss, torch.tensor([[0.75 * 40, 0.25 * 40]]))


@pytest.mark.parametrize('gamma', [1.0, 2.0, 1.5])
@pytest.mark.parametrize('weighted', [False, True])
def test_softmax_focal_loss(gamma, weighted):
    logits, alpha, target = random(5, 3), 0.25, torch.tensor([0, 2, 1, 1, -1])  # -1 is ignored
    weight = torch.tensor([0.5, 2.0, 3.0]).double() if weighted else None
    expected = torch.zeros(5, dtype=torch.float64)
    for n in range(4):
        p = math.exp(logits[n, target[n]]) / sum(math.exp(value) for value in logits[n])
        expected[n] = -alpha * (1 - p) ** gamma * math.log(p) * (weight[target[n]] if weighted else 1)
    torch.testing.assert_close(ops.softmax_focal_loss(logits, target, gamma, alpha, weight, 'none'), expected)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.softmax_focal_loss(x, target, gamma, alpha, weight, 'sum'), logits)


@pytest.mark.parametrize(('k', 'groups', 'scale'), [(3, 1, 2), (5, 2, 2), (1, 2, 3), (3, 4, 1)])
def test_carafe(k, groups, scale):
    features, masks = random(2, 4, 3, 5), random(2, k * k * groups, 3 * scale, 5 * scale, seed=1)
    expected = torch.zeros(2, 4, 3 * scale, 5 * scale, dtype=torch.float64)
    for c in range(4):
        for y in range(3 * scale):
            for x in range(5 * scale):
                for tap in range(k * k):
                    source_y, source_x = y // scale + tap // k - k // 2, x // scale + tap % k - k // 2
                    if 0 <= source_y < 3 and 0 <= source_x < 5:
                        mask = masks[:, c // (4 // groups) * k * k + tap, y, x]
                        expected[:, c, y, x] += features[:, c, source_y, source_x] * mask
    torch.testing.assert_close(ops.carafe(features, masks, k, groups, scale), expected)
    torch.testing.assert_close(ops.carafe_naive(features, masks, k, groups, scale), expected)
    inputs = (features.requires_grad_(), masks.requires_grad_())
    assert torch.autograd.gradcheck(lambda *inputs: ops.carafe(*inputs, k, groups, scale), inputs)


def test_deformable_attention():
    shapes = torch.tensor([[3, 4], [2, 2]])
    value, weights = random(2, 16, 2, 3), random(2, 5, 2, 2, 2, seed=1).softmax(-1)
    places = torch.rand(2, 5, 2, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    expected = torch.zeros(2, 5, 2, 3, dtype=torch.float64)
    for level, (first, (height, width)) in enumerate(zip((0, 12), shapes.tolist(), strict=True)):
        maps = value[:, first : first + height * width].view(2, height, width, 2, 3)
        for b, q, head, p in np.ndindex(2, 5, 2, 2):
            x, y = places[b, q, head, level, p] * torch.tensor([width, height]) - 0.5
            for row in (math.floor(y), math.floor(y) + 1):
                for column in (math.floor(x), math.floor(x) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        share = (1 - abs(y - row)) * (1 - abs(x - column))
                        expected[b, q, head] += share * weights[b, q, head, level, p] * maps[b, row, column, head]
    attend = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply
    arguments = (shapes, torch.tensor([0, 12]), places, weights, 64)
    torch.testing.assert_close(attend(value, *arguments), expected.flatten(2))
    inputs = (value.requires_grad_(), places.requires_grad_(), weights.requires_grad_())
    assert torch.autograd.gradcheck(lambda v, p, w: attend(v, *arguments[:2], p, w, 64), inputs)


@pytest.mark.parametrize(('row', 'gradient'), [  # of a column 1, 2, 3 and zeros around it
    (-1.5, 0), (-1, 0), (-0.75, 1), (0.5, 1), (2.25, -3), (3, 0), (3.5, 0)
])  # fmt: skip
def test_a_place_in_row_minus_one_is_outside_for_deformable_attention(row, gradient):
    value, weights = torch.tensor([1.0, 2, 3]).view(1, 3, 1, 1), torch.ones(1, 1, 1, 1, 1)
    place = torch.tensor([0.5, (row + 0.5) / 4]).view(1, 1, 1, 1, 1, 2).requires_grad_()
    value, shapes = F.pad(value, [0, 0, 0, 0, 0, 1]), torch.tensor([[4, 1]])  # 4 rows: places of halves are exact
    attend = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply
    attend(value, shapes, torch.tensor([0]), place, weights, 64).sum().backward()
    assert place.grad[..., 1].item() == 4 * gradient


@pytest.mark.parametrize('conv', [ops.DeformConv2dPack, ops.ModulatedDeformConv2dPack])
def test_offsets_of_taps_in_the_padding_start_without_a_gradient(conv):
    """Rows 1 2 3 below each other; of the taps of the first row and column, those at -1 are outside the map."""
    layer, x = conv(1, 1, 2, padding=1, bias=False), torch.tensor([1.0, 2, 3]).repeat(3, 1)[None, None]
    torch.nn.init.ones_(layer.weight)
    offset = torch.zeros(1, 8, 4, 4, requires_grad=True)
    if conv is ops.DeformConv2dPack:
        ops.deform_conv2d(x, offset, layer.weight, 1, 1).sum().backward()
        share = 1
    else:
        mask = torch.full((1, 4, 4, 4), 0.5)
        ops.modulated_deform_conv2d(x, offset, mask, layer.weight, None, 1, 1).sum().backward()
        share = 0.5
    expected = torch.zeros(4, 2, 4, 4)
    for tap, y, x0 in np.ndindex(4, 4, 4):
        row, column = y - 1 + tap // 2, x0 - 1 + tap % 2
        if 0 <= row < 3 and 0 <= column < 3:  # a move by one to the right reads the next column, or 0 behind the last
            expected[tap, 1, y, x0] = share * (1 if column < 2 else -3)
            expected[tap, 0, y, x0] = share * (0 if row < 2 else -(column + 1))
    assert torch.equal(offset.grad.view(4, 2, 4, 4), expected)


def test_masked_convolution_is_a_convolution_at_the_masked_positions():
    torch.manual_seed(0)
    conv = ops.MaskedConv2d(3, 4, (3, 5), padding=(1, 2)).double()
    features, mask = random(1, 3, 7, 6), random(1, 7, 6, seed=1) > 0
    expected = F.conv2d(features, conv.weight, conv.bias, padding=(1, 2)) * mask
    torch.testing.assert_close(conv(features, mask), expected)


def test_nms_keeps_the_order_of_equal_scores():
    apart = torch.tensor([[0.0, 0, 1, 1], [10, 0, 11, 1], [20, 0, 21, 1]])
    for offset in (0, 1):
        assert ops.nms(apart, torch.full((3,), 0.5), 0.5, offset)[1].tolist() == [0, 1, 2]
    assert ops.soft_nms(apart, torch.full((3,), 0.5))[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize('offset', [0, 1])
def test_suppression_of_no_boxes(offset):
    none = torch.zeros(0, 4), torch.zeros(0)
    for suppress in (ops.nms, ops.soft_nms):
        dets, kept = suppress(*none, 0.5, offset=offset)
        assert dets.shape == (0, 5)
        assert kept.dtype == torch.int64
        assert kept.shape == (0,)


@pytest.mark.parametrize('conv', [ops.DeformConv2dPack, ops.ModulatedDeformConv2dPack])
def test_gradients_of_some_operands_alone(conv):
    """The weight's gradient is a by-product of the input's; requested alone, it is computed afresh."""
    torch.manual_seed(0)
    layer, x = conv(2, 3, 3, padding=1), random(1, 2, 5, 5).float().requires_grad_()
    torch.nn.init.normal_(layer.conv_offset.weight)
    output = layer(x)
    both = torch.autograd.grad(output.sum(), [x, layer.weight], retain_graph=True)
    alone = torch.autograd.grad((3 * output).sum(), layer.weight, retain_graph=True)[0]
    torch.testing.assert_close(alone, 3 * both[1])
    torch.autograd.grad(output.sum(), x, retain_graph=True)  # fills the buffer that the weight's gradient would reuse
    torch.testing.assert_close(torch.autograd.grad((3 * output).sum(), layer.weight)[0], 3 * both[1])
