"""Whose operations wait for a GPU, in training steps and predictions: reads of values, and shapes that depend on them.

They run on a CPU, where the same operations are called.
"""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import CASES, run, use_kernels
from mmcv import ops
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mmsb
import mmsb.ops.ext
from benchmarks.upstream import networks, row

OURS = str(Path(mmsb.__file__).parent)
READS = {  # of values, also to find a shape
    '_local_scalar_dense', 'nonzero', 'masked_select', 'equal', 'is_nonzero', 'bincount', 'unique_dim', '_unique2',
    'unique_consecutive', 'histc', 'allclose',
}  # fmt: skip
METHODS = ('tolist', 'cpu', 'numpy')  # which copy to the host, and on a CPU call no operation
INDEXING = ('index', 'index_put', 'index_put_')  # with a mask, they look for what is true


class Waits(TorchDispatchMode):
    """Counts what waits for a GPU, by operation, under `ours` if a function of mmsb called it, else under `theirs`."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: Counter = Counter()
        self.theirs: Counter = Counter()

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        for name in METHODS:
            self.patch.setattr(Tensor, name, self.noted(name, getattr(Tensor, name)))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.patch.undo()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name in INDEXING and any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
        return (self.noted(name, func) if masks or name in READS else func)(*args, **(kwargs or {}))

    def noted(self, name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            (self.ours if _called_by_ours() else self.theirs)[name] += 1
            return function(*args, **kwargs)

        return call


def _called_by_ours() -> bool:
    """Return whether a function of mmsb is on the stack; those around methods of MMDetection do not count."""
    frame = sys._getframe()
    while frame:
        name = frame.f_code.co_filename
        if name.startswith(OURS) and not name.endswith('detector_precision.py'):
            return True
        frame = frame.f_back
    return False


@pytest.fixture(autouse=True)
def _our_kernels(monkeypatch):
    use_kernels(monkeypatch, mmsb.ops.ext)


NETWORKS = {
    'Faster R-CNN': ('mmdet', 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'),
    'Mask R-CNN': ('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'),
    'RetinaNet': ('mmdet', 'retinanet/retinanet_r50_fpn_1x_coco.py'),
    'FPN': ('mmseg', 'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py'),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_a_network_waits_only_where_its_library_does(name):
    library, config = NETWORKS[name]
    cfg, _ = networks.load(library, config, {})
    model = row.build(cfg, library)
    for step in (row.train_step, row.predict):
        with Waits() as waits:
            step(cfg, model)
        assert waits.ours == Counter()
        assert waits.theirs, 'losses are logged as numbers, and predictions are chosen'


ONCE = {'tolist': 1}  # of each call, forwards
LOOPS = ('roi_align pool_mode=max', 'roi_align_at_the_borders pool_mode=max')  # over regions that they read at once
ON_THE_CPU = ('soft_nms', 'nms_match')  # where mmcv itself copies the boxes


@pytest.mark.parametrize('name', [name for name in CASES if not name.startswith(ON_THE_CPU)])
def test_an_operation_waits_for_nothing(name):
    with Waits() as waits:
        run(name, 0)
    assert waits.ours == (ONCE if name.startswith(LOOPS) else {})


REGIONS = torch.tensor([[0.0, 1, 1, 9, 9], [1, 2, 2, 8, 7], [1, 4, 4, 2, 2]])
LEVELS = torch.tensor([[3, 4], [2, 2]])
OTHERS = {  # that mmcv compiles for GPUs only
    'roi_pool': (lambda x: ops.roi_pool(x, REGIONS, 3), ONCE),
    'carafe': (lambda x: ops.carafe(x, torch.rand(2, 9, 24, 20), 3, 1, 2), {}),
    'sigmoid_focal_loss': (lambda x: ops.sigmoid_focal_loss(x[:, :, 0, 0], torch.tensor([0, 4])), {}),
    'softmax_focal_loss': (lambda x: ops.softmax_focal_loss(x[:, :, 0, 0], torch.tensor([0, -1])), {}),
    'ms_deform_attn': (
        lambda x: ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply(
            x.reshape(2, 16, 6, 5), LEVELS, torch.tensor([0, 12]), torch.rand(2, 5, 6, 2, 2, 2),
            torch.rand(2, 5, 6, 2, 2), 64,
        ),
        {'tolist': 2},  # of the sizes of the levels, forwards and backwards
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', OTHERS)
def test_an_operation_of_gpus_waits_for_as_little(name):
    operation, expected = OTHERS[name]
    x = torch.randn(2, 4, 12, 10, requires_grad=True)
    with Waits() as waits:
        operation(x).sum().backward()
    assert waits.ours == expected


WAYS = (
    lambda x: x[0].item(), lambda x: bool(x[0]), lambda x: float(x[0]), lambda x: x.tolist(), lambda x: x.cpu(),
    lambda x: x.numpy(), lambda x: x.nonzero(), lambda x: x[x > 1], lambda x: x.masked_fill_(x > 1, 0)[x > 1].sum(),
)  # fmt: skip


@pytest.mark.parametrize('wait', WAYS)
def test_each_way_to_wait_is_seen(wait):
    with Waits() as waits:
        wait(torch.arange(4.0))
    assert waits.theirs.total() == 1
    assert not waits.ours
