"""Pooling to a small grid and upsampling from it, with the forms that export and train well.

Both are linear along each axis: pooling is `P_h x P_w^T`, upsampling `U_h m U_w^T`. The exporter writes PyTorch's
adaptive pooling for one size of the input, and without a word: the file fails, or is wrong, at another. So an export
pools by these matrices, which follow from height and width by comparisons of whole numbers. A training upsamples by
them: with few channels, PyTorch's kernel takes three to five times as long on a CPU, forward and backward.
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


def upsample_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample maps, (B, N, S, S), to `size` (height, width) in pixels, with corners not aligned: (B, N, *size)."""
    # a compiler fuses the kernel with its neighbours; a trace must be the same with and without gradients
    if not x.requires_grad or is_compiling() or torch.jit.is_tracing():
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


def is_exporting() -> bool:
    """Return whether torch.export is at work; PyTorch before 2.6 can't tell, and exports one size."""
    return getattr(torch.compiler, 'is_exporting', bool)()


def is_compiling() -> bool:
    """Return whether torch.compile or torch.export is at work."""
    compiler = torch.compiler if hasattr(torch.compiler, 'is_compiling') else torch._dynamo  # torch < 2.3
    return compiler.is_compiling() or is_exporting()
