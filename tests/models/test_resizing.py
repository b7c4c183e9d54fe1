"""Pooling and upsampling by matrices compute what PyTorch's kernels do, for all sizes."""

import pytest
import torch
import torch.nn.functional as F

from mmsb.models import forms, resizing


@pytest.mark.parametrize('kind', ['avg', 'max'])
@pytest.mark.parametrize('size', [1, 2, 3, 6, 7, 10])
def test_matrices_pool_as_pytorch_does(kind, size, monkeypatch):
    monkeypatch.setitem(forms.TABLE['pool'], 'cpu', 'matrix')
    theirs = {'avg': F.adaptive_avg_pool2d, 'max': F.adaptive_max_pool2d}[kind]
    torch.manual_seed(0)
    for height in (1, 2, 5, 9, 10, 13, 20, 31):
        for width in (1, 3, 7, 10, 24, 61):
            x = torch.randn(2, 3, height, width, dtype=torch.double)
            torch.testing.assert_close(resizing.adaptive_pool2d(x, size, kind), theirs(x, size), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('size', [1, 2, 6, 10])
def test_matrices_upsample_as_pytorch_does(size):
    torch.manual_seed(0)
    for height in (1, 2, 5, 9, 10, 13, 31):
        for width in (1, 3, 7, 10, 24, 61):
            x = torch.randn(2, 3, size, size, dtype=torch.double, requires_grad=True)
            ours = resizing.upsample_bilinear(x, (height, width))
            theirs = F.interpolate(x, size=(height, width), mode='bilinear', align_corners=False)
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
            weights = torch.randn_like(theirs)
            gradients = [torch.autograd.grad((out * weights).sum(), x)[0] for out in (ours, theirs)]
            torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_pytorch_itself_upsamples_where_nothing_learns(monkeypatch):
    monkeypatch.setattr(F, 'interpolate', lambda x, **options: options)
    assert resizing.upsample_bilinear(torch.ones(1, 1, 4, 4), (8, 9))['size'] == (8, 9)
