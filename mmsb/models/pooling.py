"""Adaptive pooling that can also be exported with free height and width.

The exporter writes PyTorch's adaptive pooling for one size of the input, and without a word: the file fails, or is
wrong, at another. Pooling to S x S regions is linear, `P_h x P_w^T` with matrices of S x H and S x W. They follow from
H and W by comparisons of whole numbers, so that no size is fixed in the exported graph.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

POOLS = {'avg': F.adaptive_avg_pool2d, 'max': F.adaptive_max_pool2d}


def adaptive_pool2d(x: Tensor, size: int, kind: str = 'avg') -> Tensor:
    """Pool maps, (B, C, H, W), to (B, C, size, size).

    Args:
        x: the maps.
        size: S.
        kind: 'avg' or 'max'.
    """
    if not is_exporting():
        return POOLS[kind](x, size)
    rows, columns = regions(x.shape[-2], size, x), regions(x.shape[-1], size, x)
    if kind == 'avg':
        rows, columns = (inside.to(x.dtype) / inside.sum(1, keepdim=True) for inside in (rows, columns))
        return rows @ x @ columns.T
    lowest = torch.finfo(x.dtype).min
    x = x.unsqueeze(-2).masked_fill(~columns, lowest).amax(-1)  # (B, C, H, S)
    return x.unsqueeze(-3).masked_fill(~rows[:, :, None], lowest).amax(-2)


def regions(length: int, size: int, like: Tensor) -> Tensor:
    """Return which of `length` positions each of `size` regions covers, as booleans, (size, length).

    As in PyTorch, region i goes from floor(i * length / size) up to ceil((i + 1) * length / size), without it.
    """
    position = torch.arange(length, device=like.device) * size
    region = torch.arange(size, device=like.device)[:, None]
    return (position + size > region * length) & (position < (region + 1) * length)


def is_exporting() -> bool:
    """Return whether torch.export is at work; PyTorch before 2.6 can't tell, and exports one size."""
    return getattr(torch.compiler, 'is_exporting', bool)()
