"""Operations on boxes (x1, y1, x2, y2) in pixels: overlaps and non-maximum suppression.

Differs from mmcv's compiled operations: boxes with equal scores keep their order (mmcv's sort is unstable), and float64
is accepted. A box from 0 to 9 is 10 pixels wide with `offset=1`, and 9 with `offset=0`.
"""

import numpy as np
import torch
import torchvision
from torch import Tensor

from .precision import in_float32

SOFT_NMS_METHODS = {0: 'naive', 1: 'linear', 2: 'gaussian'}


def areas_of(boxes: Tensor, offset: int) -> Tensor:
    """Compute the areas of boxes, (..., 4) -> (...), in square pixels."""
    return (boxes[..., 2] - boxes[..., 0] + offset) * (boxes[..., 3] - boxes[..., 1] + offset)


def intersections(a: Tensor, b: Tensor, offset: int) -> Tensor:
    """Compute the areas of intersection of boxes, (..., 4) each, broadcast -> (...), in square pixels."""
    size = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]) + offset
    return size.clamp(min=0).prod(-1)


def ious_of(box: Tensor, boxes: Tensor, offset: int) -> Tensor:
    """Compute the intersection over union of one box, (4,), with each of the others, (n, 4) -> (n,)."""
    common = intersections(box, boxes, offset)
    return common / (areas_of(box, offset) + areas_of(boxes, offset) - common)


def as_float32(threshold: float) -> float:
    """Round a threshold to float32 as mmcv's kernels do, so that an overlap of 3/5 is not above a threshold of 0.6."""
    return float(np.float32(threshold))


@in_float32('ious')
def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Write the overlaps of boxes into `ious`: (m, 4) and (n, 4) -> (m, n), or pairwise -> (n) if `aligned`.

    Args:
        mode: 0 for intersection over union, 1 for intersection over the first area ("foreground").
    """
    first = bboxes1 if aligned else bboxes1[:, None]
    common = intersections(first, bboxes2, offset)
    area = areas_of(first, offset)
    ious.copy_(common / (area + areas_of(bboxes2, offset) - common if mode == 0 else area))


@in_float32()
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Keep the best of the boxes that overlap by more than a threshold: (n, 4), (n) -> indices by descending score."""
    corners = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], 1)
    return torchvision.ops.nms(corners, scores, as_float32(iou_threshold))


@in_float32('dets')
def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of boxes that overlap a better one (Bodla et al., arXiv:1704.04503, section 3).

    Args:
        boxes: (n, 4).
        scores: (n).
        dets: (n, 5), output; its first k rows receive the kept boxes and their lowered scores.
        iou_threshold: overlap from which 'naive' and 'linear' lower a score.
        sigma: width of the 'gaussian' penalty, exp(-iou ** 2 / sigma).
        min_score: boxes whose score falls below it are dropped.
        method: 0 'naive' (sets the score to 0), 1 'linear', 2 'gaussian'.

    Returns:
        Indices of the kept boxes, (k), in the order of selection.

    Raises:
        ValueError: the method is another number.
    """
    if method not in SOFT_NMS_METHODS:
        raise ValueError(f'method of softnms must be one of {SOFT_NMS_METHODS}, got {method!r}')
    iou_threshold, min_score = as_float32(iou_threshold), as_float32(min_score)
    rest = torch.arange(len(boxes), device=boxes.device)
    kept, lowered = [], scores.clone()
    while len(rest):
        best = rest[lowered[rest].max(0).indices]
        dets[len(kept), :4], dets[len(kept), 4] = boxes[best], lowered[best]
        kept.append(best)
        rest = rest[rest != best]
        iou = ious_of(boxes[best], boxes[rest], offset)
        if method == 2:
            lowered[rest] *= torch.exp(-(iou * iou) / sigma)
        else:
            lowered[rest] *= torch.where(iou >= iou_threshold, 1 - iou if method == 1 else torch.zeros_like(iou), 1)
        rest = rest[~(lowered[rest] < min_score)]
    return torch.stack(kept) if kept else rest


@in_float32()
def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group boxes, (n, 5) with scores last, into lists of indices: a kept box, then those that it suppresses."""
    boxes, iou_threshold = dets[:, :4], as_float32(iou_threshold)
    rest = dets[:, 4].argsort(descending=True, stable=True)
    groups = []
    while len(rest):
        best, rest = rest[0], rest[1:]
        suppressed = ious_of(boxes[best], boxes[rest], 0) >= iou_threshold
        groups.append([int(best), *rest[suppressed].tolist()])
        rest = rest[~suppressed]
    return groups
