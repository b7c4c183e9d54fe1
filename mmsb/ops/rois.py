"""Pooling of regions of interest: RoIAlign (He et al., arXiv:1703.06870) and RoIPool (Girshick, arXiv:1504.08083).

Shapes: B batch, C channels, H x W features, R regions, each (image index, x1, y1, x2, y2) in pixels of the image; the
output is (R, C, h, w). Average RoIAlign calls torchvision's kernel; the rest loops over the regions, exact but slow.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .precision import in_float32

MAX = 0  # pool_mode; 1 is average


@in_float32('output', 'argmax_y', 'argmax_x')
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the average or maximum of bilinear samples into `output`, (R, C, h, w).

    Args:
        input: (B, C, H, W).
        argmax_y: (R, C, h, w), receives the row of each maximum, in pixels of the features, rounded to its dtype.
        argmax_x: the same for the column.
        spatial_scale: size of the features relative to the image, such as 1/16.
        sampling_ratio: samples per bin along each axis; 0 for one per pixel of the bin, rounded up.
        aligned: whether the centre of pixel 0 is at 0.5 instead of 0.
    """
    size = (aligned_height, aligned_width)
    if pool_mode != MAX:
        output.copy_(torch.ops.torchvision.roi_align(input, rois, spatial_scale, *size, sampling_ratio, bool(aligned)))
        return
    for r, (image, ys, xs) in enumerate(_sample_points(rois, size, spatial_scale, sampling_ratio, aligned)):
        if ys.numel() == 0 or xs.numel() == 0:
            continue
        grid = ys.flatten()[:, None].expand(-1, xs.numel()), xs.flatten().expand(ys.numel(), -1)  # (h*gy, w*gx)
        positions, weights = _corners(*grid, *input.shape[-2:])
        samples = (input[image].flatten(1)[:, positions] * weights).sum(1)  # (C, h*gy, w*gx)
        bins = samples.reshape(-1, *ys.shape, *xs.shape).transpose(2, 3).flatten(3)  # (C, h, w, gy*gx)
        output[r], best = bins.max(-1)
        at_y, at_x = best // xs.shape[1], best % xs.shape[1]
        argmax_y[r] = ys.gather(1, at_y.transpose(0, 1).flatten(1)).view(len(ys), len(best), -1).transpose(0, 1)
        argmax_x[r] = xs.gather(1, at_x.permute(2, 0, 1).flatten(1)).view(len(xs), len(best), -1).permute(1, 2, 0)


@in_float32('grad_input')
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of the features into `grad_input`, (B, C, H, W)."""
    if pool_mode != MAX:
        size = (aligned_height, aligned_width)
        grad_input.copy_(
            torch.ops.torchvision._roi_align_backward(
                grad_output, rois, spatial_scale, *size, *grad_input.shape, sampling_ratio, bool(aligned)
            )
        )
        return
    height, width = grad_input.shape[-2:]
    positions, weights = _corners(argmax_y, argmax_x, height, width)  # (4, R, C, h, w)
    weights = weights * (argmax_y != -1)  # mmcv's sign of no maximum, and so without a gradient in row -1 too
    _scatter_add(grad_input, rois, positions, grad_output * weights)


def _sample_points(
    rois: Tensor, size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield, for each region, its image index and the rows (h, samples) and columns (w, samples) of its samples."""
    shift = 0.5 if aligned else 0.0
    starts = rois[:, 1:3] * scale - shift  # (R, 2): x, y
    extents = rois[:, 3:] * scale - shift - starts
    if not aligned:
        extents = extents.clamp(min=1)
    starts, lengths = starts.flip(1), torch.stack([extents[:, 1] / size[0], extents[:, 0] / size[1]], 1)
    samples = lengths.ceil().clamp(min=0) if sampling_ratio <= 0 else torch.full_like(lengths, sampling_ratio)
    for r, (image, *counts) in enumerate(torch.cat([rois[:, :1], samples], 1).long().tolist()):  # read back only here
        points = []
        for first, length, bins, count in zip(starts[r], lengths[r], size, counts, strict=True):
            steps = torch.arange(count, device=rois.device, dtype=rois.dtype) + 0.5
            edges = first + torch.arange(bins, device=rois.device, dtype=rois.dtype) * length
            points.append(edges[:, None] + steps * length / count)
        yield image, *points


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Find the four pixels around each point, as flat positions (4, ...), and their bilinear weights (4, ...).

    A point more than one pixel outside the map has weights of 0; a closer one takes the border's value.
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    y0, x0 = y.floor(), x.floor()
    dy, dx = y - y0, x - x0
    weights = torch.stack([(1 - dy) * (1 - dx), (1 - dy) * dx, dy * (1 - dx), dy * dx]) * inside
    y0, x0 = y0.long(), x0.long()
    y1, x1 = (y0 + 1).clamp(max=height - 1), (x0 + 1).clamp(max=width - 1)
    return torch.stack([y0 * width + x0, y0 * width + x1, y1 * width + x0, y1 * width + x1]), weights


def _scatter_add(grad_input: Tensor, rois: Tensor, positions: Tensor, grads: Tensor) -> None:
    """Add gradients, (..., R, C, h, w), at flat positions in the maps of their regions' images."""
    batch, channels, height, width = grad_input.shape
    images = rois[:, 0].long().view(-1, 1, 1, 1)
    planes = images * channels + torch.arange(channels, device=rois.device).view(-1, 1, 1)
    flat = torch.zeros(batch * channels * height * width, dtype=grads.dtype, device=grads.device)
    flat.index_add_(0, (planes * (height * width) + positions).expand_as(grads).flatten(), grads.flatten())
    grad_input.copy_(flat.view_as(grad_input))


@in_float32('output')
def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the maximum of each bin into `output`, (R, C, h, w), and its flat position into `argmax`, -1 for none.

    A bin extends from the floor of its start to the ceiling of its end. torchvision's RoIPool differs: it rounds the
    region first. The output of an empty region is 0.
    """
    argmax.fill_(-1)
    height, width = input.shape[-2:]
    corners = torch.stack([rois[:, 1], rois[:, 2], rois[:, 3] + 1, rois[:, 4] + 1], 1) * spatial_scale
    firsts, lasts = corners.split(2, 1)  # x, y
    rows = _bins(firsts[:, 1:], lasts[:, 1:], pooled_height, height)
    columns = _bins(firsts[:, :1], lasts[:, :1], pooled_width, width)
    full = (lasts > firsts).all(1)
    table = torch.cat([full[:, None], rois[:, :1], rows, columns], 1).long().tolist()  # read back only here
    for r, (is_full, image, *edges) in enumerate(table):
        if not is_full:
            continue
        rows, columns = edges[: 2 * pooled_height], edges[2 * pooled_height :]
        for i, (top, bottom) in enumerate(zip(rows[::2], rows[1::2], strict=True)):
            for j, (left, right) in enumerate(zip(columns[::2], columns[1::2], strict=True)):
                if top < bottom and left < right:
                    best, at = input[image, :, top:bottom, left:right].flatten(1).max(1)
                    output[r, :, i, j] = best
                    argmax[r, :, i, j] = (top + at // (right - left)) * width + left + at % (right - left)


def _bins(starts: Tensor, ends: Tensor, bins: int, limit: int) -> Tensor:
    """Split ranges, (R, 1) each, into bins; neighbours may overlap by one pixel.

    Returns:
        (R, 2 * bins): of each bin in turn, the first pixel and one past the last.
    """
    steps = torch.arange(bins, device=starts.device, dtype=starts.dtype)
    lengths = (ends - starts) / bins
    firsts, lasts = steps * lengths + starts, (steps + 1) * lengths + starts
    return torch.stack([firsts.floor(), lasts.ceil()], 2).clamp(0, limit).flatten(1)


@in_float32('grad_input')
def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the gradient of the features into `grad_input`, (B, C, H, W)."""
    _scatter_add(grad_input, rois, argmax.long().clamp(min=0), grad_output * (argmax >= 0))
