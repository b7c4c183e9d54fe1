"""Draw the data path of a residual block with spatial bias; every shape is read from a real block as it runs.

python docs/figures/block.py [OUT]
"""

import argparse
import itertools
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from mmsb.models import SBResNet

IMAGE_PX = 224
BLOCK = 'layer2.1'
GREY, RED = '#e8e8e8', '#f6c9c4'


def shapes() -> dict[str, tuple[int, ...]]:
    """Run an SB-ResNet-50 once and record the outputs of one block's layers, without the batch axis."""
    backbone = SBResNet(depth=50).eval()
    block = backbone.get_submodule(BLOCK)
    layers = {'in': block.conv1, 'y': block.bn2, 'reduced': block.spatial_bias.reduce, 'mixed': block.spatial_bias.mix}
    layers |= {'maps': block.spatial_bias, 'out': block.bn3}
    found = {}

    def record(name: str):
        return lambda _, inputs, output: found.update({name: tuple(output.shape[1:])})

    handles = [layer.register_forward_hook(record(name)) for name, layer in layers.items()]
    with torch.no_grad():
        backbone(torch.rand(1, 3, IMAGE_PX, IMAGE_PX))
    for handle in handles:
        handle.remove()
    side = block.spatial_bias.pool_size
    found['pooled'] = (found['reduced'][0], side, side)
    found['mixed'] = (found['mixed'][1], side, side)
    return found


def draw(path: str | Path) -> None:
    """Draw the block: the convolutions above, spatial bias below."""
    size = {name: ' x '.join(map(str, shape)) for name, shape in shapes().items()}
    channels, maps = size['y'].partition(' ')[0], size['maps'].partition(' ')[0]
    above = [
        ('conv1: 1x1,\nnorm, ReLU', size['in']),
        ('conv2: 3x3', size['y']),
        ('norm, ReLU', size['y']),
        (f'conv3: 1x1, reads\n{channels} + {maps}', size['out']),
    ]
    below = [
        ('reduce: 1x1 conv,\nnorm, ReLU', size['reduced']),
        ('pool: average', size['pooled']),
        ('mix: Conv1d over\nall positions', size['mixed']),
        ('upsample', size['maps']),
        ('norm, ReLU', size['maps']),
    ]
    figure = Figure(figsize=(9, 3), layout='constrained')
    axes = figure.subplots()
    axes.set(xlim=(-0.2, 12.8), ylim=(-0.3, 3.9))
    axes.set_axis_off()

    def box(x: float, y: float, text: str, shape: str, colour: str) -> None:
        style = dict(boxstyle='round,pad=0.08', facecolor=colour, edgecolor='#444444', linewidth=0.8)
        axes.add_patch(FancyBboxPatch((x, y), 1.7, 0.85, **style))
        axes.text(x + 0.85, y + 0.43, text, ha='center', va='center', fontsize=9)
        axes.text(x + 0.85, y - 0.33, shape, ha='center', va='center', fontsize=9, color='#555555')

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        axes.annotate('', end, start, arrowprops=dict(arrowstyle='-|>', color='#444444', shrinkA=0, shrinkB=0))

    places = (0, 2.5, 7.6, 10.9)
    for x, (text, shape) in zip(places, above, strict=True):
        box(x, 2.9, text, shape, GREY)
    for i, (text, shape) in enumerate(below):
        box(2.5 * i, 0.3, text, shape, RED)
    for left, right in itertools.pairwise(places):
        arrow((left + 1.8, 3.32), (right - 0.1, 3.32))
    for i in range(len(below) - 1):
        arrow((2.5 * i + 1.8, 0.72), (2.5 * i + 2.4, 0.72))
    axes.plot((2.1, 2.1, 0.85), (3.32, 1.7, 1.7), color='#444444', linewidth=0.9)
    arrow((0.85, 1.7), (0.85, 1.25))
    axes.text(10.1, 3.32, 'cat', ha='center', va='center', fontsize=8, bbox=dict(boxstyle='circle', facecolor='white'))
    arrow((10.1, 1.25), (10.1, 3.03))
    figure.savefig(path, dpi=170)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='Draw the data path of a residual block with spatial bias.')
    parser.add_argument('out', nargs='?', default=Path(__file__).with_suffix('.png'), help='picture to write')
    draw(parser.parse_args().out)
