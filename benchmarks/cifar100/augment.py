"""The random crops and flips of a whole epoch, made on the device; they mean what MMPretrain's mean.

Shapes: n images, H and W their size, P padding.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cifar100.recipe import Recipe


def draw(num_images: int, recipe: Recipe, *, seed: int, epoch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw what is random in an epoch. It depends on seed and epoch alone, so a resumed training draws the same.

    Returns:
        order of the images, and for each of them, in this order, the crop's top and left (0 to 2P) and whether it is
        flipped; each (n,).
    """
    rng = np.random.default_rng((seed, epoch))
    tops, lefts = rng.integers(0, 2 * recipe.padding_px + 1, (2, num_images))
    flips = rng.random(num_images) < recipe.flip_prob
    return tuple(torch.from_numpy(part) for part in (rng.permutation(num_images), tops, lefts, flips))


def crop_and_flip(images: Tensor, tops: Tensor, lefts: Tensor, flips: Tensor, *, padding: int) -> Tensor:
    """Pad images (n, C, H, W) with zeros, crop them to H x W at the corners given, and flip some crops horizontally."""
    n, channels, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    rows = tops[:, None] + torch.arange(height, device=images.device)  # (n, H)
    columns = lefts[:, None] + torch.arange(width, device=images.device)  # (n, W)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    image = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
