"""The bias maps that a network makes of a picture, and the cells of the picture that each of their cells is made of.

Shapes: S pool size, N maps, R = N + k - 1 reduced channels, k taps of the mix. A cell is one of the S x S positions of
the pooled grid, numbered row by row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmsb.models.resizing import adaptive_pool2d
from mmsb.models.spatial_bias import SpatialBias


@dataclass(frozen=True)
class BlockMaps:
    """The maps of one block for one picture.

    Attributes:
        name: of the block in the backbone, such as 'layer2.0'.
        pooled: activations of the reduced channels in each cell, (R, S, S).
        maps: the maps before their upsampling, (N, S, S).
        upsampled: the maps as the block reads them, (N, H, W).
        weight: of the mix: to a cell, from a cell, by a tap, (S*S, S*S, k); None without mix.
        bias: of the mix, for each cell, (S*S); None without mix.
    """

    name: str
    pooled: Tensor
    maps: Tensor
    upsampled: Tensor
    weight: Tensor | None
    bias: Tensor | None

    @property
    def stage(self) -> str:
        """Name of the stage: 'layer2' of the block 'layer2.0'."""
        return self.name.rpartition('.')[0] or self.name

    def contributions(self, index: int) -> Tensor:
        """Compute what each cell adds to each cell of a map: (S*S to, S*S from), in float64.

        That is the weight times the activation, summed over the k taps. The sum over the second axis is the map
        without its bias.

        Args:
            index: of the map, below N.
        """
        taps = self.weight.shape[2]
        read = self.pooled[index : index + taps].double().flatten(1)  # (k, S*S)
        return torch.einsum('pqj,jq->pq', self.weight.double(), read)


@torch.no_grad()
def record(backbone: nn.Module, inputs: Tensor) -> list[BlockMaps]:
    """Run a backbone on one image, (1, C, H, W), and return the maps of its blocks in the order of the data.

    Raises:
        ValueError: the backbone has no spatial bias.
    """
    found: list[BlockMaps] = []
    hooks = []
    for name, module in backbone.named_modules():
        if isinstance(module, SpatialBias):
            hooks.append(module.register_forward_hook(_recorder(name.rpartition('.')[0], found)))
    if not hooks:
        raise ValueError(f'this {type(backbone).__name__} has no spatial bias, and so no maps to show')
    try:
        backbone(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _recorder(name: str, found: list[BlockMaps]):
    def hook(module: SpatialBias, args: tuple, out: Tensor) -> None:
        pooled = adaptive_pool2d(module.reduce(args[0]), module.pool_size, module.pool)
        maps = module.mix_positions(pooled)
        weight, bias = (None, None) if module.mix is None else (module.mix.weight.detach(), module.mix.bias.detach())
        found.append(BlockMaps(name, pooled[0], maps[0], out[0], weight, bias))

    return hook
