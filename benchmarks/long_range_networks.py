"""The networks of `benchmarks.long_range`, cut off at stride 8, and what their convolutions reach."""

import math

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsb import add_spatial_bias
from mmsb.datasets import digits
from mmsb.models import SBResNetCifar
from mmsb.models.any_network import BLOCKS, type_name
from mmsb.models.context.gc import GC
from mmsb.models.context.se import SE

SCENE_PX = 104
DISTANCE_PX = SCENE_PX - digits.DIGIT_REGION_PX - digits.PATCH_PX + 1  # from the patch to the nearest digit
STRIDE = 8
CONTEXTS = ('plain', 'SE', 'GC', 'SB')
NETWORKS = {  # name: contexts
    'ResNet-20': (*CONTEXTS, 'NL', 'reduced NL', 'BAT'),
    'MobileNetV3-small': (*CONTEXTS, 'SE and SB'),
    'RegNetX-200MF': CONTEXTS,
    'ConvNeXt-atto': CONTEXTS,
}
BLOCK_OF = {'SE': SE, 'GC': GC}


def resnet_plugins(block_size: int, **of_reduced_nl) -> dict[str, dict]:
    """Describe the blocks of a small ResNet, behind conv3.

    Args:
        block_size: of BAT.
        of_reduced_nl: options of reduced NL.
    """
    blocks = {
        'SE': dict(type='mmsb.SE'),
        'GC': dict(type='mmsb.GC'),
        'NL': dict(type='mmsb.NL'),
        'reduced NL': dict(type='mmsb.ReducedNL', **of_reduced_nl),
        'BAT': dict(type='mmsb.BAT', block_size=block_size),
    }
    plugins = {name: dict(cfg=cfg, position='after_conv3') for name, cfg in blocks.items()}
    plugins['NL']['stages'] = (False, True, True)  # in stage 1 it would compare thousands of places with each other
    return plugins


RESNET20_PLUGINS = resnet_plugins(block_size=13)  # the largest whose multiples all stages have


def resnet20(context: str) -> nn.Module:
    """Build a ResNet-20 of bottlenecks; each stage halves the image, to 52, 26 and 13 px."""
    plugins = [RESNET20_PLUGINS[context]] if context in RESNET20_PLUGINS else None
    bias = {} if context == 'SB' else None
    network = SBResNetCifar(20, bias, plugins=plugins, strides=(2, 2, 2), out_indices=(2,))
    network.init_weights()
    return network


def mobilenet(context: str) -> nn.Module:
    """Build a MobileNetV3-small. Its authors' SE, in the first of these blocks, is 'SE'; the others lack it."""
    network = timm.create_model('mobilenetv3_small_100')
    if context not in ('SE', 'SE and SB'):
        block = network.blocks[0][0]
        block.se = GC(block.conv_dw.out_channels, ratio=4) if context == 'GC' else nn.Identity()
    network = nn.Sequential(network.conv_stem, network.bn1, network.blocks[:2])
    return add_spatial_bias(network) if 'SB' in context else network


def regnet(context: str) -> nn.Module:
    """Build a RegNetX-200MF; SE as in RegNetY, GC in its place."""
    network = timm.create_model('regnetx_002')
    network = nn.Sequential(network.stem, network.s1, network.s2)
    if context in BLOCK_OF:
        for block in blocks_of(network):
            block.se = BLOCK_OF[context](block.conv2.conv.out_channels, ratio=4)
    return add_spatial_bias(network) if context == 'SB' else network


def convnext(context: str) -> nn.Module:
    """Build a ConvNeXt-atto up to its first block of stride 8; with the second, the 7x7 kernels would see the patch.

    It has no layer scale, whose 1e-6 takes longer to grow than these trainings last. SE and GC stand behind the
    depth-wise convolution, as in the other networks.
    """
    network = timm.create_model('convnext_atto', ls_init_value=None)
    network.stages[1].blocks = network.stages[1].blocks[:1]
    network = nn.Sequential(network.stem, network.stages[:2])
    if context in BLOCK_OF:
        for block in blocks_of(network):
            block.conv_dw = nn.Sequential(block.conv_dw, BLOCK_OF[context](block.conv_dw.out_channels, ratio=4))
    return add_spatial_bias(network) if context == 'SB' else network


def blocks_of(network: nn.Module) -> list[nn.Module]:
    return [block for block in network.modules() if type_name(block) in BLOCKS]


BUILDERS = dict(zip(NETWORKS, (resnet20, mobilenet, regnet, convnext), strict=True))


class Segmenter(nn.Module):
    """A network of stride 8, a 1x1 convolution, and bilinear upsampling."""

    def __init__(self, name: str, context: str):
        super().__init__()
        self.network = BUILDERS[name](context)
        self.head = nn.LazyConv2d(len(digits.CUE_COLOURS), 1)
        with torch.no_grad():
            self.eval()(torch.zeros(1, 3, SCENE_PX, SCENE_PX))  # the head's channels

    def forward(self, images: Tensor) -> Tensor:
        """Map images, (B, 3, H, W), to logits, (B, 4, H, W)."""
        features = self.network(images)
        features = features[0] if isinstance(features, tuple) else features
        return F.interpolate(self.head(features), size=images.shape[-2:], mode='bilinear', align_corners=False)


def windows(segmenter: Segmenter) -> list[tuple[int, int, int]]:
    """List kernel size, stride and padding of the convolutions, in order.

    Those of size 1 are left out: a strided one is a shortcut, and sees less than the path beside it.
    """
    found, handles = [], []
    for module in segmenter.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size[0] > 1:
            window = (module.kernel_size[0], module.stride[0], module.padding[0])
            handles.append(module.register_forward_hook(lambda *_, window=window: found.append(window)))
    with torch.no_grad():
        segmenter.eval()(torch.zeros(1, 3, SCENE_PX, SCENE_PX))
    for handle in handles:
        handle.remove()
    return found


def seen_by(pixel: int, layers: list[tuple[int, int, int]]) -> tuple[int, int]:
    """Compute the first and the last row that a row of logits depends on by its convolutions; padding counts."""
    position = (pixel + 0.5) / STRIDE - 0.5  # of the two rows of features that upsampling mixes
    low = max(math.floor(position), 0)
    high = min(low + 1, SCENE_PX // STRIDE - 1) if position > 0 else low
    for kernel, stride, padding in reversed(layers):
        low, high = low * stride - padding, high * stride - padding + kernel - 1
    return low, high


def reach(layers: list[tuple[int, int, int]]) -> int:
    """Compute how far any row of logits sees, in pixels up or down: further than DISTANCE_PX, if it sees the patch."""
    spans = [(pixel, *seen_by(pixel, layers)) for pixel in range(SCENE_PX)]
    return max(max(pixel - low, high - pixel) for pixel, low, high in spans)


def receptive_field(layers: list[tuple[int, int, int]]) -> int:
    """Compute the side in pixels of the square that one position of the features sees."""
    side = 1
    for kernel, stride, _ in reversed(layers):
        side = (side - 1) * stride + kernel
    return side
