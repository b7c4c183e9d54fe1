"""Operations under mixed precision compute in float32 and return results in the input type."""

import sys

import pytest
import torch
from cases import use_kernels
from mmcv import ops
from mmdet.models.roi_heads.roi_extractors import GenericRoIExtractor, SingleRoIExtractor
from mmdet.models.task_modules.prior_generators import AnchorGenerator, MlvlPointGenerator
from mmengine.utils import digit_version

import mmsb.ops.ext
from mmsb.ops import detector_precision

REDUCED = (
    torch.bfloat16,
    pytest.param(
        torch.float16,
        marks=pytest.mark.skipif(
            digit_version(torch.__version__) < digit_version('2.3'),
            reason='float16 autocast on the CPU came with torch 2.3',
        ),
    ),
)


@pytest.fixture(autouse=True)
def _our_kernels(monkeypatch):
    use_kernels(monkeypatch, mmsb.ops.ext)
    detector_precision.install()


def test_a_second_call_patches_nothing():
    before = AnchorGenerator.grid_priors, SingleRoIExtractor.__call__, list(sys.meta_path)
    detector_precision.install()
    assert (AnchorGenerator.grid_priors, SingleRoIExtractor.__call__, list(sys.meta_path)) == before


def check(operation, *inputs: torch.Tensor, dtype: torch.dtype) -> None:
    """Compare the output and gradients for reduced-precision inputs with those for the same values in float32."""
    reduced = [value.to(dtype).requires_grad_() for value in inputs]
    full = [value.detach().float().requires_grad_() for value in reduced]
    with torch.autocast('cpu', dtype):
        output = operation(*reduced)
    expected = operation(*full)
    assert output.dtype == dtype
    torch.testing.assert_close(output, expected.to(dtype))
    grads = torch.autograd.grad(output.float().sum(), reduced)
    for ours, theirs in zip(grads, torch.autograd.grad(expected.sum(), full), strict=True):
        torch.testing.assert_close(ours, theirs.to(dtype))


@pytest.mark.parametrize('dtype', REDUCED)
def test_reduced_precision(dtype):
    torch.manual_seed(0)
    features, rois = torch.randn(1, 4, 8, 8), torch.tensor([[0.0, 1, 1, 6, 5]])
    check(lambda x: ops.roi_align(x, rois.to(x.dtype), 2, 1.0), features, dtype=dtype)
    check(lambda x: ops.roi_pool(x, rois.to(x.dtype), 2, 1.0), features, dtype=dtype)
    check(lambda x, m: ops.carafe(x, m, 3, 1, 2), features, torch.randn(1, 9, 16, 16), dtype=dtype)
    offset, weight = torch.randn(1, 18, 8, 8), torch.randn(4, 4, 3, 3)
    check(lambda x, o, w: ops.deform_conv2d(x, o, w, 1, 1), features, offset, weight, dtype=dtype)
    check(ops.PSAMask('collect', (3, 3)), torch.randn(1, 9, 4, 4), dtype=dtype)
    target = torch.tensor([0, 2, 3])
    check(lambda x: ops.sigmoid_focal_loss(x, target, 2.0, 0.25, None, 'none'), torch.randn(3, 3), dtype=dtype)


LABELS, ROIS = torch.tensor([0, 2, 1]), torch.tensor([[0.0, 1, 1, 6, 5]])
LEVELS, FIRST = torch.tensor([[3, 4]]), torch.tensor([0])
BOXES = torch.tensor([[0.0, 0, 4, 4], [1, 1, 6, 5], [10, 10, 12, 12]])
OPERATIONS = {  # operation: a function of inputs of the shapes behind it
    'roi_align avg': (lambda x: ops.roi_align(x, ROIS.to(x.dtype), 2), (1, 4, 8, 8)),
    'roi_align max': (lambda x: ops.roi_align(x, ROIS.to(x.dtype), 2, 1.0, 2, 'max'), (1, 4, 8, 8)),
    'roi_pool': (lambda x: ops.roi_pool(x, ROIS.to(x.dtype), 2), (1, 4, 8, 8)),
    'carafe': (lambda x, m: ops.carafe(x, m, 3, 1, 2), (1, 4, 4, 4), (1, 9, 8, 8)),
    'carafe_naive': (lambda x, m: ops.carafe_naive(x, m, 3, 1, 2), (1, 4, 4, 4), (1, 9, 8, 8)),
    'psa_mask': (ops.PSAMask('distribute', (3, 3)), (1, 9, 4, 4)),
    'deform_conv2d': (lambda x, o, w: ops.deform_conv2d(x, o, w, 1, 1), (1, 4, 8, 8), (1, 18, 8, 8), (4, 4, 3, 3)),
    'modulated_deform_conv2d': (
        lambda x, o, m, w, b: ops.modulated_deform_conv2d(x, o, m, w, b, 1, 1),
        *((1, 4, 8, 8), (1, 18, 8, 8), (1, 9, 8, 8), (4, 4, 3, 3), (4,)),
    ),
    'ms_deform_attn': (
        lambda v, p, w: ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply(
            v, LEVELS, FIRST, p, w, torch.tensor(64)
        ),
        *((1, 12, 2, 3), (1, 5, 2, 1, 2, 2), (1, 5, 2, 1, 2)),
    ),
    'sigmoid_focal_loss': (lambda x: ops.sigmoid_focal_loss(x, LABELS, 2.0, 0.25, None, 'none'), (3, 3)),
    'softmax_focal_loss': (lambda x: ops.softmax_focal_loss(x, LABELS, 2.0, 0.25, None, 'none'), (3, 3)),
    'masked_conv2d': (lambda x, w, b: ops.masked_conv2d(x, x[:, 0], w, b, 1), (1, 4, 5, 5), (2, 4, 3, 3), (2,)),
    'nms': (lambda s: ops.nms(BOXES.to(s.dtype), s, 0.5)[0], (3,)),
    'nms offset': (lambda s: ops.nms(BOXES.to(s.dtype), s, 0.5, 1)[0], (3,)),
    'soft_nms': (lambda s: ops.soft_nms(BOXES.to(s.dtype), s, 0.5)[0], (3,)),
    'bbox_overlaps': (lambda x: ops.bbox_overlaps(BOXES.to(x.dtype), x), (3, 4)),
}  # fmt: skip
WITHOUT_GRADIENT = (  # in mmcv too, or there on a GPU only
    *('carafe_naive', 'masked_conv2d', 'nms', 'nms offset', 'soft_nms', 'bbox_overlaps'),
)


@pytest.mark.parametrize('dtype', [*REDUCED, torch.float64])
@pytest.mark.parametrize('name', OPERATIONS)
def test_outputs_and_gradients_have_the_type_of_the_input(name, dtype):
    """Without autocast; mmcv makes its outputs like the first input."""
    operation, *shapes = OPERATIONS[name]
    torch.manual_seed(0)
    inputs = [torch.rand(shape).to(dtype) for shape in shapes]
    full = [value.double() for value in inputs]
    grads = name not in WITHOUT_GRADIENT
    output = operation(*(value.requires_grad_(grads) for value in inputs))
    expected = operation(*(value.requires_grad_(grads) for value in full))
    torch.testing.assert_close(output, expected.to(dtype))  # the dtype is compared, too
    if grads:
        theirs = [grad.to(dtype) for grad in torch.autograd.grad(expected.sum(), full)]
        torch.testing.assert_close(list(torch.autograd.grad(output.sum(), inputs)), theirs)


@pytest.mark.parametrize('dtype', REDUCED)
def test_nms_of_reduced_precision(dtype):
    boxes, scores = torch.rand(20, 4).cumsum(1).to(dtype), torch.randperm(20).div(20).to(dtype)
    kept = ops.nms(boxes, scores, 0.5)[1]
    assert torch.equal(kept, ops.nms(boxes.float(), scores.float(), 0.5)[1])


@pytest.mark.parametrize('dtype', REDUCED)
@pytest.mark.parametrize(
    ('extractor', 'options'), [(SingleRoIExtractor, {}), (GenericRoIExtractor, dict(aggregation='sum'))]
)
def test_boxes_of_a_detector_stay_in_float32(extractor, options, dtype):
    """Above 512 a bfloat16 is a multiple of 4: in that precision, these boxes would change."""
    torch.manual_seed(0)
    layer = dict(type='RoIAlign', output_size=7, sampling_ratio=0)
    extract = extractor(roi_layer=layer, out_channels=3, featmap_strides=[4, 8], **options)
    features = [torch.randn(1, 3, 200, 334).to(dtype), torch.randn(1, 3, 100, 167).to(dtype)]
    rois = torch.tensor([[0, 1001.5, 601.5, 1045.25, 650.75], [0, 515.5, 300.25, 640.75, 390.5]])
    with torch.autocast('cpu', dtype):
        output = extract(features, rois)
    expected = extract([feature.float() for feature in features], rois)
    rounded = extract([feature.float() for feature in features], rois.to(dtype).float())
    assert output.dtype == dtype
    torch.testing.assert_close(output, expected.to(dtype))
    assert (expected - rounded).abs().max() > 0.1


@pytest.mark.parametrize('dtype', REDUCED)
@pytest.mark.parametrize(
    'generator', [AnchorGenerator(strides=[5], ratios=[0.5, 1], scales=[6]), MlvlPointGenerator(strides=[5])]
)
def test_anchors_and_points_of_a_detector_are_float32(generator, dtype):
    """MMDetection's heads ask for them in the type of the scores; neither has 1997.5."""
    expected = generator.grid_priors([(3, 400)], device='cpu')
    assert torch.equal(generator.grid_priors([(3, 400)], dtype=dtype, device='cpu')[0], expected[0])
    assert torch.equal(generator.grid_priors([(3, 400)], dtype, 'cpu')[0], expected[0])
    some = torch.tensor([5, 399])
    assert torch.equal(
        generator.sparse_priors(some, (3, 400), 0, dtype=dtype, device='cpu'),
        generator.sparse_priors(some, (3, 400), 0, device='cpu'),
    )
    assert not torch.equal(expected[0].to(dtype).float(), expected[0])
