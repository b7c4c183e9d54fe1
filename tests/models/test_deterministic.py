"""What training steps ask of a GPU, by the operations that they call: which raise under `randomness.deterministic`.

They run on a CPU, in the forms that a GPU takes when deterministic algorithms are asked for.
"""

import os
from pathlib import Path

import pytest
import torch
from test_downstream import CLASSIFIER, DETECTOR, FROM_SCRATCH, NARROW, SEGMENTER, batch, load, start
from torch.utils._python_dispatch import TorchDispatchMode

from mmsb.engine.launcher import common_parser, load_config
from mmsb.models import SBResNet, SpatialBias, forms

ROOT = Path(__file__).resolve().parents[2]

RAISES = {  # PyTorch's list in the documentation of torch.use_deterministic_algorithms, by the names of its operations
    '_adaptive_avg_pool2d_backward', '_adaptive_avg_pool3d_backward', 'adaptive_max_pool2d_backward',
    'avg_pool3d_backward', 'fractional_max_pool2d_backward', 'fractional_max_pool3d_backward', 'max_unpool2d',
    'max_unpool3d', 'upsample_linear1d_backward', 'upsample_bilinear2d_backward', 'upsample_bicubic2d_backward',
    'upsample_trilinear3d_backward', 'reflection_pad1d_backward', 'reflection_pad2d_backward',
    'reflection_pad3d_backward', 'nll_loss2d_forward', '_ctc_loss_backward', 'put', 'put_', 'histc', 'median',
    'grid_sampler_2d_backward', 'grid_sampler_3d_backward',
    # of torchvision, whose kernels say so themselves
    '_roi_align_backward', '_roi_pool_backward', '_deform_conv2d_backward',
}  # fmt: skip


class Recorder(TorchDispatchMode):
    """Records the names of the operations that are called, also in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _forms_of_a_gpu(monkeypatch):
    for row in forms.TABLE.values():
        monkeypatch.setitem(row, 'cpu', row['gpu deterministic'])


def raising(step) -> set[str]:
    """Return which operations of a step raise; it must be a whole one."""
    with Recorder() as seen:
        step()
    assert 'convolution_backward' in seen.names
    return seen.names & RAISES


@pytest.mark.parametrize('options', [{}, dict(pool='max'), dict(mix=False)])
def test_spatial_bias_has_none(options):
    bias = SpatialBias(8, pool_size=3, **options)
    x = torch.randn(2, 8, 17, 23, requires_grad=True)
    assert raising(lambda: bias(x, (9, 12)).square().sum().backward()) == set()


def test_the_old_forms_would_be_noticed(monkeypatch):
    for computation in ('pool', 'upsample'):
        monkeypatch.setitem(forms.TABLE[computation], 'cpu', 'kernel')
    bias, x = SpatialBias(8, pool_size=3), torch.randn(2, 8, 17, 23, requires_grad=True)
    expected = {'_adaptive_avg_pool2d_backward', 'upsample_bilinear2d_backward'}
    assert raising(lambda: bias(x, (9, 12)).square().sum().backward()) == expected


def test_backbone_has_none():
    backbone = SBResNet(50, base_channels=8)
    images = torch.randn(2, 3, 64, 96)
    assert raising(lambda: sum(out.square().mean() for out in backbone(images)).backward()) == set()


def test_classifier_has_none():
    model = start(load(CLASSIFIER, NARROW[CLASSIFIER]))
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([0, 3])
    assert raising(lambda: model.head.loss(model.extract_feat(images), _samples(labels))['loss'].backward()) == set()


def _samples(labels) -> list:
    from mmpretrain.structures import DataSample

    return [DataSample().set_gt_label(int(label)) for label in labels]


@pytest.mark.parametrize(
    ('name', 'of_the_libraries'),
    [
        (DETECTOR, {'_roi_align_backward'}),  # of torchvision
        (SEGMENTER, {'nll_loss2d_forward', 'upsample_bilinear2d_backward'}),  # of mmseg's losses and heads
    ],
)
def test_those_of_the_libraries(name, of_the_libraries):
    cfg = load(name, {**NARROW[name], **FROM_SCRATCH})
    model = start(cfg)

    def step() -> None:
        data = model.data_preprocessor(batch(cfg), True)
        model.parse_losses(model._run_forward(data, mode='loss'))[0].backward()

    assert raising(step) == of_the_libraries


@pytest.mark.parametrize('deterministic', [True, False])
def test_cublas_is_told_before_it_starts(deterministic, monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', 'x')  # to be restored
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG')
    config = str(ROOT / 'configs/demo/sb-resnet11_b64-10e_digits.py')
    arguments = [config, '--cfg-options', f'randomness.deterministic={deterministic}']
    load_config(common_parser('').parse_args(arguments), lambda _: None)
    assert os.environ.get('CUBLAS_WORKSPACE_CONFIG') == (':4096:8' if deterministic else None)
