"""Pooling to a small grid and upsampling from it, each by PyTorch's kernel or by matrices.

Both are linear along each axis: pooling is `P_h x P_w^T`, upsampling `U_h m U_w^T`. The matrices follow from height and
width by comparisons of whole numbers. `forms.py` says which form runs where, and why.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsb.models.forms import form_of

POOLS = {'avg': F.adaptive_avg_pool2d, 'max': F.adaptive_max_pool2d}


def adaptive_pool2d(x: Tensor, size: int, kind: str = 'avg') -> Tensor:
    """Pool maps, (B, C, H, W), to (B, C, size, size).

    Args:
        x: the maps.
        size: S.
        kind: 'avg' or 'max'.
    """
    if form_of('pool', x) == 'kernel':
        return POOLS[kind](x, size)
    rows, columns = regions(x.shape[-2], size, x), regions(x.shape[-1], size, x)
    if kind == 'avg':  # sums, then counts: autocast would round the weights 1 / count
        x = (rows.to(x.dtype) @ x) / rows.sum(1, keepdim=True)
        return (x @ columns.to(x.dtype).T) / columns.sum(1)
    lowest = torch.finfo(x.dtype).min
    x = x.unsqueeze(-2).masked_fill(~columns, lowest).amax(-1)  # (B, C, H, S)
    return x.unsqueeze(-3).masked_fill(~rows[:, :, None], lowest).amax(-2)


def upsample_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample maps, (B, N, S, S), to `size` (height, width) in pixels, with corners not aligned: (B, N, *size)."""
    # a trace must be the same with and without gradients
    if not x.requires_grad or torch.jit.is_tracing() or form_of('upsample', x) == 'kernel':
        return F.interpolate(x, size=size, mode='bilinear', align_corners=False)
    one_hot = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)[None]
    rows, columns = (F.interpolate(one_hot, size=length, mode='linear', align_corners=False)[0] for length in size)
    return rows.T @ (x @ columns)


def regions(length: int, size: int, like: Tensor) -> Tensor:
    """Return which of `length` positions each of `size` regions covers, as booleans, (size, length).

    As in PyTorch, region i goes from floor(i * length / size) up to ceil((i + 1) * length / size), without it.
    """
    position = torch.arange(length, device=like.device) * size
    region = torch.arange(size, device=like.device)[:, None]
    return (position + size > region * length) & (position < (region + 1) * length)
