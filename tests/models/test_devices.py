"""Every network on a simulated GPU: with fake CUDA tensors, a tensor left on the CPU is an error."""

from contextlib import contextmanager

import pytest
import torch
from mmcv import ops
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mmsb.analysis import zoo

PRECISIONS = (None, torch.bfloat16, torch.float16)


@contextmanager
def fake_gpu():
    """Make CUDA the default device of fake tensors."""
    with FakeTensorMode(), torch.device('cuda'):
        yield


@contextmanager
def autocast(dtype: torch.dtype | None):
    """Turn on mixed precision, which `torch.autocast` refuses for a missing device."""
    torch.set_autocast_enabled('cuda', dtype is not None)
    torch.set_autocast_dtype('cuda', dtype or torch.float16)
    assert (torch.randn(2, 2) @ torch.randn(2, 2)).dtype == (dtype or torch.float32)
    try:
        yield
    finally:
        torch.set_autocast_enabled('cuda', False)
        torch.clear_autocast_cache()


@pytest.mark.parametrize('name', [*zoo.shipped(), 'coco/faster-rcnn_sb-r50_fpn_1x_coco.py'])
def test_networks(name):
    cfg = zoo.load(name)
    if cfg.model.backbone.type == 'mmsb.TimmBackbone':
        pytest.skip('timm reads numbers from tensors while it builds a network, and fake ones have none')
    shape = zoo.input_shape(cfg) if zoo.is_classifier(cfg) else (3, 96, 160)
    with fake_gpu():
        network = zoo.build_backbone(cfg)
        for amp in PRECISIONS:
            with autocast(amp):
                assert {output.device.type for output in network(torch.randn(2, *shape))} == {'cuda'}


def random(like: Tensor, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=like.dtype)


def rois() -> Tensor:
    return torch.tensor([[0.0, 1, 1, 9, 9], [1, 2, 2, 8, 7]])


OPERATIONS = {  # all but NMS, whose output shape depends on values
    'roi_align': lambda x: ops.roi_align(x, rois().to(x.dtype), 3),
    'deform_conv': lambda x: ops.deform_conv2d(x, random(x, 2, 18, 12, 10), random(x, 4, 4, 3, 3), 1, 1),
    'modulated_deform_conv': lambda x: ops.modulated_deform_conv2d(
        x, random(x, 2, 18, 12, 10), random(x, 2, 9, 12, 10), random(x, 4, 4, 3, 3), None, 1, 1
    ),
    'carafe': lambda x: ops.carafe(x, random(x, 2, 9, 24, 20), 3, 1, 2),
    'psa_mask': lambda x: ops.PSAMask('collect', (2, 2))(x),
    'sigmoid_focal_loss': lambda x: ops.sigmoid_focal_loss(x[:, :, 0, 0], torch.tensor([0, 4])),
    'softmax_focal_loss': lambda x: ops.softmax_focal_loss(x[:, :, 0, 0], torch.tensor([0, -1])),
    'bbox_overlaps': lambda x: ops.bbox_overlaps(torch.rand(5, 4), torch.rand(3, 4)),
    'ms_deform_attn': lambda x: ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply(
        random(x, 2, 12, 2, 3),
        [(3, 4)],
        None,
        torch.rand(2, 5, 2, 1, 2, 2),
        torch.rand(2, 5, 2, 1, 2),
        1,
    ),
}


@pytest.mark.parametrize('operation', OPERATIONS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('amp', PRECISIONS, ids=str)
def test_operations(operation, dtype, amp):
    with fake_gpu(), autocast(amp):
        assert OPERATIONS[operation](torch.randn(2, 4, 12, 10, dtype=dtype)).device.type == 'cuda'


def test_a_tensor_on_the_cpu_is_found():
    with fake_gpu(), pytest.raises(RuntimeError, match='devices'):
        torch.randn(4) + torch.randn(4, device='cpu')
