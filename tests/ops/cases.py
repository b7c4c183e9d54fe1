"""Calls of mmcv's operations on seeded inputs, as users make them, for mmcv's compiled kernels and ours.

Inputs come from NumPy's legacy generator, whose numbers never change between versions.
"""

import itertools
import sys
from collections.abc import Callable

import numpy as np
import torch
from mmcv import ops
from torch import Tensor

CASES: dict[str, Callable[[np.random.RandomState], dict[str, Tensor]]] = {}


def use_kernels(monkeypatch, extension) -> None:
    """Make every module of mmcv.ops call the functions of `extension`."""
    for name, module in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
            monkeypatch.setattr(module, 'ext_module', extension)


def run(name: str, seed: int) -> dict[str, Tensor]:
    return CASES[name](np.random.RandomState(seed))


def case(function=None, **options):
    """Register a case, or one for each combination of options."""

    def register(function):
        for values in itertools.product(*options.values()):
            named = dict(zip(options, values, strict=True))
            label = ' '.join([function.__name__, *(f'{key}={value}' for key, value in named.items())])
            CASES[label] = lambda rng, named=named: function(rng, **named)
        return function

    return register(function) if function else register


def tensor(rng, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32) * np.float32(scale))


def boxes(rng, n: int, size: float = 100.0) -> Tensor:
    """Make n boxes, (n, 4), with many different overlaps, some partly outside."""
    centres, extents = rng.uniform(0, size, (n, 2)), rng.uniform(1, size / 2, (n, 2))
    return torch.from_numpy(np.hstack([centres - extents / 2, centres + extents / 2]).astype(np.float32))


def scores(rng, n: int) -> Tensor:
    """Make n scores without ties, (n)."""
    return torch.from_numpy((rng.permutation(n) + 1).astype(np.float32) / (n + 1))


def with_gradients(rng, output: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
    """Return the output and the gradients of a random weighted sum of it."""
    grads = torch.autograd.grad(output, list(inputs.values()), tensor(rng, *output.shape))
    return {'output': output.detach(), **{f'grad of {name}': grad for name, grad in zip(inputs, grads, strict=True)}}


@case(offset=(0, 1), threshold=(0.3, 0.6))
def nms(rng, offset, threshold):
    dets, kept = ops.nms(boxes(rng, 60), scores(rng, 60), threshold, offset=offset)
    return dict(dets=dets, kept=kept)


@case
def nms_at_the_threshold(rng):
    """Boxes of integer sizes whose overlap is exactly 3/5, with a threshold of 0.6 in float64."""
    pairs = torch.tensor([[0.0, 0, 8, 1], [2, 0, 10, 1], [20, 0, 28, 10], [22, 0, 30, 10]])
    return dict(kept=ops.nms(pairs, torch.tensor([0.9, 0.8, 0.7, 0.6]), 0.6)[1])


@case(method=('naive', 'linear', 'gaussian'), offset=(0, 1))
def soft_nms(rng, method, offset):
    dets, kept = ops.soft_nms(boxes(rng, 40), scores(rng, 40), 0.3, 0.5, 0.05, method, offset)
    return dict(dets=dets, kept=kept)


@case
def nms_match(rng):
    groups = ops.nms_match(torch.cat([boxes(rng, 50), scores(rng, 50)[:, None]], 1), 0.4)
    return dict(lengths=torch.tensor([len(group) for group in groups]), members=torch.cat(groups))


@case(mode=('iou', 'iof'), aligned=(False, True), offset=(0, 1))
def bbox_overlaps(rng, mode, aligned, offset):
    return dict(ious=ops.bbox_overlaps(boxes(rng, 12), boxes(rng, 12), mode, aligned, offset))


@case(pool_mode=('avg', 'max'), sampling_ratio=(0, 2), aligned=(True, False), scale=(1.0, 0.25))
def roi_align(rng, pool_mode, sampling_ratio, aligned, scale):
    features = tensor(rng, 2, 3, 13, 17).requires_grad_()
    rois = torch.cat([torch.tensor([[0.0], [1], [1], [0], [1]]), boxes(rng, 5, 16 / scale)], 1)
    output = ops.roi_align(features, rois, (3, 2), scale, sampling_ratio, pool_mode, aligned)
    return with_gradients(rng, output, features=features)


GEOMETRY = dict(stride=(1, 2), groups=(1, 2), deform_groups=(1, 2))  # dilated by 2 at stride 1


@case(pool_mode=('avg', 'max'), aligned=(True, False))
def roi_align_at_the_borders(rng, pool_mode, aligned):
    """Samples in rows and columns -1, 0, H - 1 and H, between and beyond them, of features with ties."""
    features = torch.from_numpy(rng.randint(-2, 3, (2, 3, 6, 7)).astype(np.float32)).requires_grad_()
    corners = rng.randint(-6, 20, (40, 2, 2)) / 2
    rois = np.hstack([rng.randint(0, 2, (40, 1)), corners.min(1), corners.max(1)]).astype(np.float32)
    output = ops.roi_align(features, torch.from_numpy(rois), (2, 4), 1.0, 2, pool_mode, aligned)  # exact in float32
    return with_gradients(rng, output, features=features)


@case(**GEOMETRY)
def deform_conv(rng, stride, groups, deform_groups):
    dilation = 3 - stride
    inputs = _deform_inputs(rng, stride, groups, deform_groups)
    output = ops.deform_conv2d(*inputs.values(), stride, dilation, dilation, groups, deform_groups)
    return with_gradients(rng, output, **inputs)


@case(**GEOMETRY, bias=(True, False))
def modulated_deform_conv(rng, stride, groups, deform_groups, bias):
    dilation = 3 - stride
    inputs = _deform_inputs(rng, stride, groups, deform_groups)
    weight = inputs.pop('weight')
    size = inputs['offset'].shape[-2:]
    inputs['mask'] = tensor(rng, 2, 9 * deform_groups, *size).sigmoid().requires_grad_()
    inputs['weight'] = weight
    if bias:
        inputs['bias'] = tensor(rng, 4).requires_grad_()
    operands = [*inputs.values(), *([] if bias else [None])]
    output = ops.modulated_deform_conv2d(*operands, stride, dilation, dilation, groups, deform_groups)
    return with_gradients(rng, output, **inputs)


@case(**GEOMETRY, modulated=(False, True))
def deform_conv_on_the_grid(rng, stride, groups, deform_groups, modulated):
    """Taps in rows and columns -1, 0, H - 1 and H, between and beyond them; offsets of 0, as each training starts; and
    tiny ones, with which some taps are at -1 in float32, and others beside 0.
    """
    dilation = 3 - stride
    inputs = _deform_inputs(rng, stride, groups, deform_groups)
    steps = rng.randint(-12, 13, inputs['offset'].shape) * rng.choice([0, 1e-9, 0.5, 1], inputs['offset'].shape)
    inputs['offset'] = torch.from_numpy(steps.astype(np.float32)).requires_grad_()
    geometry = (stride, dilation, dilation, groups, deform_groups)
    if not modulated:
        return with_gradients(rng, ops.deform_conv2d(*inputs.values(), *geometry), **inputs)
    weight = inputs.pop('weight')
    inputs['mask'] = tensor(rng, 2, 9 * deform_groups, *steps.shape[-2:]).sigmoid().requires_grad_()
    inputs['weight'] = weight
    return with_gradients(rng, ops.modulated_deform_conv2d(*inputs.values(), None, *geometry), **inputs)


@case
def modulated_deform_conv_with_offsets_of_a_larger_map(rng):
    """The call in DyHead; the kernels read the first values."""
    inputs = dict(
        input=tensor(rng, 2, 4, 5, 4), offset=tensor(rng, 2, 18, 9, 7), mask=tensor(rng, 2, 9, 9, 7).sigmoid(),
        weight=tensor(rng, 4, 4, 3, 3),
    )  # fmt: skip
    inputs = {name: value.requires_grad_() for name, value in inputs.items()}
    return with_gradients(rng, ops.modulated_deform_conv2d(*inputs.values(), None, 1, 1, 1), **inputs)


def _deform_inputs(rng, stride, groups, deform_groups) -> dict[str, Tensor]:
    height, width = ((n - 1) // stride + 1 for n in (7, 6))
    inputs = dict(
        input=tensor(rng, 2, 4, 7, 6),
        offset=tensor(rng, 2, 18 * deform_groups, height, width, scale=1.5),
        weight=tensor(rng, 4, 4 // groups, 3, 3),
    )
    return {name: value.requires_grad_() for name, value in inputs.items()}


@case(kind=('collect', 'distribute'), mask_size=((5, 7), (9, 9)))
def psa_mask(rng, kind, mask_size):
    masks = tensor(rng, 2, mask_size[0] * mask_size[1], 5, 4).requires_grad_()
    return with_gradients(rng, ops.PSAMask(kind, mask_size)(masks), masks=masks)
