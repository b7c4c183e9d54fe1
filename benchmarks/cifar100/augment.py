"""The random crop and flip of a whole epoch, on the device, with MMPretrain's meaning of both.

Shapes: n images in the set, B in a batch, P padding.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cifar100.recipe import Recipe

CHUNK = 5000  # images at once


@dataclass(frozen=True)
class Draw:
    """What is random in an epoch, each (n,): the order, and of the k-th image in it the crop's corner and the flip."""

    order: Tensor
    tops: Tensor  # 0 to 2P
    lefts: Tensor
    flips: Tensor


def draw(num_images: int, recipe: Recipe, *, seed: int, epoch: int) -> Draw:
    """Draw an epoch: every image once. It depends on seed and epoch alone, so a resumed run draws the same."""
    rng = np.random.default_rng((seed, epoch))
    offsets = rng.integers(0, 2 * recipe.padding_px + 1, (2, num_images))
    flips = rng.random(num_images) < recipe.flip_prob
    return Draw(*(torch.from_numpy(part) for part in (rng.permutation(num_images), *offsets, flips)))


def crop_and_flip(
    images: Tensor, tops: Tensor, lefts: Tensor, flips: Tensor, *, padding: int, pad_value: int
) -> Tensor:
    """Pad images (B, C, H, W), crop H x W at given corners, and flip the crops horizontally where `flips` says so."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4, value=pad_value)
    rows = tops[:, None] + torch.arange(height, device=images.device)  # (B, H)
    columns = lefts[:, None] + torch.arange(width, device=images.device)  # (B, W)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    batch, channels = (torch.arange(size, device=images.device) for size in images.shape[:2])
    return padded[
        batch[:, None, None, None], channels[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]
    ]


def augmented_epoch(images: Tensor, labels: Tensor, drawn: Draw, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Make all images of an epoch, in its order: (n, 3, H, W) uint8, and their labels (n,)."""
    if images.shape[-2:] != (recipe.crop_px, recipe.crop_px):
        raise ValueError(f'the crop must have the size of the images, {tuple(images.shape[-2:])}, got {recipe.crop_px}')
    parts = Draw(*(part.to(images.device) for part in vars(drawn).values()))
    out = torch.empty_like(images)
    for start in range(0, len(images), CHUNK):
        chunk = slice(start, start + CHUNK)
        corners = (parts.tops[chunk], parts.lefts[chunk], parts.flips[chunk])
        chosen = images[parts.order[chunk]]
        out[chunk] = crop_and_flip(chosen, *corners, padding=recipe.padding_px, pad_value=recipe.pad_value)
    return out, labels[parts.order]
