"""The networks of `benchmarks.mirror`: a small ResNet with each context, what is asked of spatial bias, and others."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import long_range_networks
from mmsb.datasets import digits
from mmsb.models import SBResNetCifar

DEPTH = 11
POOL_SIZE = 8  # the cells of a scene
PLACES = ' + places'  # a context with this at its end gets two channels of coordinates beside the image


def _bias(stages: tuple[bool, ...] = (True, True, False), **options) -> dict:
    return dict(spatial_bias=dict(pool_size=POOL_SIZE) | options, sb_stages=stages)


_OTHERS = {
    'plain': dict(spatial_bias=None),
    **{
        name: dict(spatial_bias=None, plugins=[plugin])
        for name, plugin in long_range_networks.resnet_plugins(POOL_SIZE, pool_size=POOL_SIZE).items()
    },
}
CONTEXTS: Mapping[str, dict] = {  # name: options of SBResNetCifar
    **_OTHERS,
    'SB': _bias(),
    **{name + PLACES: options for name, options in _OTHERS.items()},
}
QUESTIONS: Mapping[str, dict] = {
    'SB': _bias(),
    **{f'SB, pool size {size}': _bias(pool_size=size) for size in (4, 6, 10, 16)},
    'SB, stage 1': _bias((True, False, False)),
    'SB, stage 2': _bias((False, True, False)),
    'SB, stages 1 to 3': _bias((True, True, True)),
    'SB, 1 map': _bias(num_maps=1),
    'SB, 6 maps': _bias(num_maps=6),
    'SB, added': _bias(fusion='add'),
    'SB, max pool': _bias(pool='max'),
    'SB, pool only': _bias(mix=False),
}
# The networks of the cue, as they are there, whose convolutions do not reach the patch.
NETWORKS: Mapping[str, tuple[str, str]] = {
    f'{network}, {context}': (network, context)
    for network in ('ResNet-20', 'MobileNetV3-small', 'RegNetX-200MF')
    for context in ('plain', 'SE', 'GC', 'SB')
}
ALL = CONTEXTS | QUESTIONS | NETWORKS


class Segmenter(nn.Module):
    """A ResNet-11 of stride 4, a 1x1 convolution, and bilinear upsampling."""

    def __init__(self, context: str):
        super().__init__()
        self.with_places = context.endswith(PLACES)
        options = (CONTEXTS | QUESTIONS)[context]
        self.network = SBResNetCifar(DEPTH, **options, in_channels=5 if self.with_places else 3, out_indices=(2,))
        self.network.init_weights()
        self.head = nn.Conv2d(256, len(digits.CUE_COLOURS), 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, (B, 3, H, W), to logits, (B, 4, H, W)."""
        size = images.shape[-2:]
        if self.with_places:
            rows, columns = (torch.linspace(-1, 1, length, device=images.device) for length in size)
            grid = torch.stack(torch.meshgrid(rows, columns, indexing='ij')).expand(len(images), -1, -1, -1)
            images = torch.cat([images, grid], dim=1)
        return F.interpolate(self.head(self.network(images)[0]), size=size, mode='bilinear', align_corners=False)


def build(name: str) -> nn.Module:
    """Build a network by its name in the tables; images, (B, 3, H, W), to logits, (B, 4, H, W)."""
    return long_range_networks.Segmenter(*NETWORKS[name]) if name in NETWORKS else Segmenter(name)
