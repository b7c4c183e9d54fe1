"""The effective receptive field of a unit, and the theoretical one.

The effective field is the gradient of the unit with respect to the pixels, averaged over images (Luo et al.,
"Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", arXiv:1701.04128). The theoretical
field is the rectangle of pixels that a plain network connects with the unit at all: outside of it the gradient is zero.
This holds in evaluation, where a batch norm uses its running statistics; in training it couples all positions.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from mmsb.options import choose

SHARES = (0.5, 0.9, 0.99)
COUPLING_NORMS = (nn.GroupNorm, _InstanceNorm)  # their statistics, also in evaluation, are of the whole image


@dataclass(frozen=True)
class Unit:
    """A unit of a backbone.

    Attributes:
        stage: whose output it is in, from 1, in the order of `stages_of`.
        row: of the unit in the feature map; None: the middle.
        column: the same.
        channel: of the feature map; None: the sum over all.
    """

    stage: int
    row: int | None = None
    column: int | None = None
    channel: int | None = None


@dataclass(frozen=True)
class Field:
    """The receptive field of a unit.

    Attributes:
        gradient: mean absolute gradient of the unit with respect to each pixel, summed over colours, (H, W).
        theoretical: top, left, bottom, right of the theoretical field in pixels, the latter two exclusive.
        centre: row and column in the image that the unit lies above, in pixels; 0.5 is the middle of the first.
    """

    gradient: np.ndarray
    theoretical: tuple[int, int, int, int]
    centre: tuple[float, float]

    def outside(self, box: tuple[int, int, int, int]) -> float:
        """Compute the share of the gradient outside a box, such as a theoretical field."""
        top, left, bottom, right = box
        rest = self.gradient.copy()
        rest[top:bottom, left:right] = 0
        return float(rest.sum() / self.gradient.sum())

    def sides_px(self) -> dict[float, int]:
        """Measure the side of the smallest square around the unit that holds each of SHARES of the gradient."""
        rows, columns = np.indices(self.gradient.shape)
        distance = np.maximum(abs(rows + 0.5 - self.centre[0]), abs(columns + 0.5 - self.centre[1])).ravel()
        order = distance.argsort(kind='stable')
        held = self.gradient.ravel()[order].cumsum() / self.gradient.sum()
        last = [min(int(np.searchsorted(held, share)), len(order) - 1) for share in SHARES]
        return {share: int(np.ceil(2 * distance[order[i]] + 1)) for share, i in zip(SHARES, last, strict=True)}


def field_of(backbone: nn.Module, unit: Unit, images: Sequence[Tensor]) -> Field:
    """Compute the receptive field of a unit.

    Args:
        backbone: with stages, in evaluation mode.
        unit: the unit.
        images: as the network reads them, (1, C, H, W) each, all of one size.

    Raises:
        ValueError: for a unit that does not exist, and one that no pixel of the images has an influence on.
    """
    shape = images[0].shape
    total = torch.zeros(shape[-2:], dtype=torch.float64)
    for image in images:
        total += _gradient(backbone, unit, image).double()
    if not total.any():
        raise ValueError('the gradient of this unit is zero everywhere: a ReLU is off in all images, or weights are 0')
    connected = _gradient(connections(backbone), unit, torch.ones(shape, dtype=torch.float64))
    if any(isinstance(module, COUPLING_NORMS) for module in backbone.modules()):
        box = (0, 0, *shape[-2:])
    else:
        rows, columns = (torch.nonzero(connected.any(axis)).flatten() for axis in (1, 0))
        box = (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
    most = torch.nonzero(connected >= connected.max() * (1 - 1e-9)).double()  # where most paths lead
    row, column = (most.mean(0) + 0.5).tolist()
    return Field((total / len(images)).numpy(), box, (row, column))


def connections(backbone: nn.Module) -> nn.Module:
    """Copy a network such that the gradient of a unit is above zero exactly at the pixels that it is connected with.

    Weights become positive (in float64, since the corners of a field are reached on one path only), norms the identity,
    and max pooling, which passes the gradient to one position, average pooling. That a norm may connect positions by
    its statistics is left out.
    """
    copied = copy.deepcopy(backbone).double().eval()
    with torch.no_grad():
        for name, parameter in copied.named_parameters():
            parameter.fill_(0 if name.endswith('bias') else parameter.shape[0] / parameter.numel())
    for module in list(copied.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (_BatchNorm, nn.LayerNorm, *COUPLING_NORMS)):
                module.add_module(name, nn.Identity())
            elif isinstance(child, nn.MaxPool2d):
                module.add_module(name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode))
    return copied


def stages_of(backbone: nn.Module) -> list[str]:
    """List the names of the stages of a backbone: layer1, layer2, ...; of `TimmBackbone` the modules of its features.

    Raises:
        ValueError: it has none.
    """
    names = {name for name, _ in backbone.named_modules()}
    infos = getattr(getattr(backbone, 'net', None), 'feature_info', ())
    known = [f'layer{i}' for i in range(1, 5)] + [f'net.{info["module"]}' for info in infos]
    stages = [name for name in known if name in names]
    if not stages:
        raise ValueError(f'{type(backbone).__name__} has no stages layer1, layer2, ...')
    return stages


def _place(unit: Unit, size: tuple[int, int]) -> tuple[int, int]:
    """Find the row and the column of a unit in a feature map."""
    given = dict(row=unit.row, column=unit.column).items()
    return tuple(
        side // 2 if value is None else choose(f'{name} of the unit', value, range(side))
        for (name, value), side in zip(given, size, strict=True)
    )


def _gradient(backbone: nn.Module, unit: Unit, image: Tensor) -> Tensor:
    """Compute the absolute gradient of a unit at each pixel, summed over colours, (H, W)."""
    stages = stages_of(backbone)
    choose('stage', unit.stage, range(1, len(stages) + 1))
    features: list[Tensor] = []
    hook = backbone.get_submodule(stages[unit.stage - 1]).register_forward_hook(lambda *args: features.append(args[2]))
    image = image.clone().requires_grad_(True)
    try:
        with torch.enable_grad():
            backbone(image)
    finally:
        hook.remove()
    feature = features[0][0]  # (C, H, W)
    row, column = _place(unit, tuple(feature.shape[1:]))
    if unit.channel is not None:
        choose('channel of the unit', unit.channel, range(len(feature)))
        feature = feature[unit.channel : unit.channel + 1]
    gradient = torch.autograd.grad(feature[:, row, column].sum(), image)[0]
    return gradient[0].abs().sum(0)
