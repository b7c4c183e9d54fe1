"""Figures of what a network looks at: receptive fields, class-activation maps and bias maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import patches
from matplotlib.figure import Figure

from mmsb.analysis.bias_maps import BlockMaps
from mmsb.analysis.receptive_field import Field
from mmsb.options import choose

FORMATS = ('.png', '.pdf', '.svg')
DECADES = 8  # of the logarithmic scale of a gradient
_GREY = (0.299, 0.587, 0.114)  # luminance of RGB


def check_target(path: str | Path) -> None:
    """Check that a figure can have this name.

    Raises:
        ValueError: it ends in another suffix than FORMATS.
    """
    choose('the suffix of the figure', Path(path).suffix, FORMATS)


def draw_fields(fields: Mapping[str, Field], box: tuple[int, int, int, int], what: str):
    """Draw receptive fields side by side on one logarithmic scale, with a theoretical field as a rectangle.

    Args:
        fields: by the name of the network.
        box: the theoretical field of the plain network.
        what: which unit of which network this is, for the title.
    """
    figure = Figure(figsize=(3.9 * len(fields) + 0.9, 4.5), layout='compressed')
    axes = figure.subplots(1, len(fields), squeeze=False)
    most = max(field.gradient.max() for field in fields.values())
    norm = mpl.colors.LogNorm(most * 10**-DECADES, most)
    for axis, (name, field) in zip(axes[0], fields.items(), strict=True):
        shown = axis.imshow(np.ma.masked_equal(field.gradient, 0), cmap='Reds', norm=norm)
        top, left, bottom, right = box
        rectangle = ((left - 0.5, top - 0.5), right - left, bottom - top)
        axis.add_patch(patches.Rectangle(*rectangle, fill=False, edgecolor='tab:blue', linewidth=1.5))
        axis.plot(field.centre[1] - 0.5, field.centre[0] - 0.5, '+', color='black', markersize=9)
        axis.set_title(f'{name}\n{field.outside(box) * 100:.2g} % outside the square', fontsize='medium')
        side = field.sides_px()[0.9]
        axis.set_xlabel(f'px; 90 % within {side} x {side} px')
        axis.tick_params(labelsize='x-small')
    figure.colorbar(shown, ax=axes[0], label='mean absolute gradient', shrink=0.8, extend='min')
    figure.suptitle(what, fontsize='medium')
    return figure


def draw_attention(
    pixels: np.ndarray, answer: str, maps: Mapping[str, np.ndarray], blocks: Sequence[BlockMaps], what: str
):
    """Draw the picture and, in a row for each layer, its class-activation map and the bias maps of its last block.

    Args:
        pixels: the picture, RGB, (H, W, 3).
        answer: title of the picture.
        maps: class-activation maps, (H, W), by the name of the layer; may be without any map.
        blocks: all blocks with spatial bias.
        what: title of the class-activation maps.
    """
    last = {layer: [block for block in blocks if f'{block.name}.'.startswith(f'{layer}.')][-1:] for layer in maps}
    most = max((len(block[0].maps) for block in last.values() if block), default=0)
    side = 2.3
    height = side * min(2.0, max(0.5, pixels.shape[0] / pixels.shape[1])) + 0.45
    shape = (len(maps), 2 + most)
    figure = Figure(figsize=(side * shape[1] + 0.7, height * shape[0]), layout='constrained')
    axes = figure.subplots(*shape, squeeze=False)
    height_px, width_px = pixels.shape[:2]
    extent = (0, width_px, height_px, 0)
    grey = (pixels @ np.array(_GREY) / 255 * 0.75 + 0.25)[..., None].repeat(3, axis=2)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    axes[0, 0].imshow(pixels, extent=extent)
    axes[0, 0].set_title(answer, fontsize='small')
    for row, (layer, cam) in zip(axes, maps.items(), strict=True):
        row[1].imshow(grey, extent=extent)
        row[1].imshow(cam, cmap='viridis', alpha=0.6, vmin=0, vmax=1, extent=extent)
        row[1].set_title(f'{layer}: {what}', fontsize='small')
        if not last[layer]:
            if most:
                row[2].text(0.5, 0.5, 'no spatial bias', ha='center', va='center', fontsize='small')
            continue
        block = last[layer][0]
        scale = float(block.upsampled.abs().max()) or 1.0
        for index, axis in enumerate(row[2 : 2 + len(block.maps)]):
            axis.imshow(grey, extent=extent)
            values = block.upsampled[index].numpy()
            shown = axis.imshow(values, cmap='RdBu_r', alpha=0.7, vmin=-scale, vmax=scale, extent=extent)
            axis.set_title(f'{block.name}: map {index + 1}', fontsize='small')
        figure.colorbar(shown, ax=row[-1], fraction=0.05, format='%.2g').ax.tick_params(labelsize='x-small')
    return figure
