"""Draw which pixels one position of a feature map depends on: in a plain ResNet-50, and with spatial bias.

python docs/figures/reach.py [OUT]

The gradient of that position with respect to the pixels, in networks with random weights: only whether it is zero
matters here.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from mmsb.models import SBResNet

IMAGE_PX = 224
NETWORKS = {'ResNet-50': None, 'SB-ResNet-50': {}}  # options of spatial bias
STAGES = (1, 2)


def reach(spatial_bias: dict | None, stage: int, images: int = 4) -> np.ndarray:
    """Compute the mean absolute gradient of the middle position after a stage, (IMAGE_PX, IMAGE_PX).

    Args:
        spatial_bias: options; None: a plain ResNet.
        stage: 1 to 4.
        images: number of random images; a ReLU or a max pool hides some pixels in each of them.
    """
    torch.manual_seed(0)
    # Without init_weights, which would start every residual branch at zero and so hide it.
    backbone = SBResNet(depth=50, spatial_bias=spatial_bias, out_indices=(stage - 1,))
    pixels = torch.randn(images, 3, IMAGE_PX, IMAGE_PX, requires_grad=True)
    features = backbone.eval()(pixels)[0]
    middle = features.shape[-1] // 2
    features[..., middle, middle].sum().backward()
    return pixels.grad.abs().mean((0, 1)).numpy()


def side_px(gradient: np.ndarray) -> int:
    """Measure the side of the square that holds everything that is not zero."""
    rows = np.flatnonzero(gradient.any(1))
    return int(rows[-1] - rows[0] + 1)


def draw(path: str | Path) -> None:
    """Draw a row for each network and a column for each stage; white pixels have no influence."""
    figure = Figure(figsize=(5.6, 5.8), layout='constrained')
    axes = figure.subplots(2, len(STAGES))
    for row, (name, spatial_bias) in zip(axes, NETWORKS.items(), strict=True):
        for axis, stage in zip(row, STAGES, strict=True):
            gradient = reach(spatial_bias, stage)
            shown = np.where(gradient > 0, np.log10(np.maximum(gradient, 1e-30)), np.nan)
            axis.imshow(shown, cmap='Reds', vmin=np.nanmax(shown) - 12, vmax=np.nanmax(shown))
            side = side_px(gradient)
            axis.set_title(f'after stage {stage}: {side} x {side} px', fontsize='small')
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    figure.savefig(path, dpi=110)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='Draw which pixels one position of a feature map depends on.')
    parser.add_argument('out', nargs='?', default=Path(__file__).with_suffix('.png'), help='picture to write')
    draw(parser.parse_args().out)
