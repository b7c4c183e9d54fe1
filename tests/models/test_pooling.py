"""The form of the pooling that is exported computes PyTorch's, for all sizes."""

import pytest
import torch
import torch.nn.functional as F

from mmsb.models import pooling


@pytest.mark.parametrize('kind', ['avg', 'max'])
@pytest.mark.parametrize('size', [1, 2, 3, 6, 7, 10])
def test_matrices_pool_as_pytorch_does(kind, size, monkeypatch):
    monkeypatch.setattr(pooling, 'is_exporting', lambda: True)
    theirs = {'avg': F.adaptive_avg_pool2d, 'max': F.adaptive_max_pool2d}[kind]
    torch.manual_seed(0)
    for height in (1, 2, 5, 9, 10, 13, 20, 31):
        for width in (1, 3, 7, 10, 24, 61):
            x = torch.randn(2, 3, height, width, dtype=torch.double)
            torch.testing.assert_close(pooling.adaptive_pool2d(x, size, kind), theirs(x, size), rtol=1e-12, atol=1e-12)


def test_pytorch_itself_pools_where_nothing_is_exported(monkeypatch):
    monkeypatch.setitem(pooling.POOLS, 'avg', lambda x, size: 'pytorch')
    assert pooling.adaptive_pool2d(torch.ones(1, 1, 4, 4), 2) == 'pytorch'
