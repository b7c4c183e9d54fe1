"""Plots of measured costs. `results` come from `throughput.summarise_all`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from mmsb.files import write_figure

_VARYING = ('phase', 'batch_size', 'mode', 'memory_format', 'dtype')


def palette(count: int) -> list[tuple[float, float, float]]:
    """Return a colour for each of some lines; beyond twenty they repeat."""
    colours = mpl.colormaps['tab10' if count <= 10 else 'tab20'].colors
    return [colours[i % len(colours)] for i in range(count)]


def _has_bias(network: str) -> bool:
    return network.startswith('sb-')


def _group(results: Sequence[dict], keys: Sequence[str]) -> dict[tuple, list[dict]]:
    """Group results that have figures by the values of `keys`."""
    groups: dict[tuple, list[dict]] = {}
    for figures in results:
        if figures['ms'] is not None:
            groups.setdefault(tuple(figures[key] for key in keys), []).append(figures)
    return groups


def _title(group: tuple) -> str:
    phase, batch_size, *rest = group
    return ', '.join([phase, f'batch {batch_size}', *rest])


def accuracy_against_speed(results: Sequence[dict], top1: Mapping[str, float], path: str | Path) -> bool:
    """Plot accuracy against images per second, like figure 1 of the paper, with one panel per setting.

    Lines join networks with spatial bias to the same networks without it. Bars are quartiles.

    Args:
        results: results for one image size.
        top1: the paper's accuracies (%) by network; other networks are not drawn.
        path: path of the plot.

    Returns:
        Whether there was anything to plot.
    """
    groups = _group([figures for figures in results if figures['network'] in top1], _VARYING)
    if not groups:
        return False
    shortest = min(top1, key=len)
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(6.5 * columns, 5 * rows), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(groups) :]:
        axis.set_axis_off()
    for axis, (group, members) in zip(axes.flat, groups.items(), strict=False):
        places = {member['network']: (member['images_per_s'], top1[member['network']]) for member in members}
        for member in members:
            name = member['network']
            x, y = places[name]
            low, high = member['images_per_s_quartiles']
            colour = 'tab:red' if _has_bias(name) else 'tab:gray'
            axis.errorbar(x, y, xerr=[[x - low], [high - x]], marker='o', markersize=4, color=colour)
            side = dict(ha='right', xytext=(-4, 4)) if _has_bias(name) else dict(ha='left', xytext=(4, -9))
            short = name.removesuffix(f'-{shortest}')
            axis.annotate(short, (x, y), textcoords='offset points', fontsize='x-small', color=colour, **side)
            if _has_bias(name) and name.removeprefix('sb-') in places:
                line = zip(places[name.removeprefix('sb-')], (x, y), strict=True)
                axis.plot(*line, color='tab:red', linewidth=0.8, linestyle=':')
        axis.set(xlabel='images a second, measured', ylabel="top-1 accuracy (%), the paper's")
        axis.margins(x=0.15)  # space for the names
        axis.set_title(_title(group), fontsize='medium')
    write_figure(path, figure)
    return True


def cost_against_size(results: Sequence[dict], path: str | Path) -> None:
    """Plot time, time relative to the plain network, and peak memory if measured, against pixels; a row per setting."""
    groups = _group(results, _VARYING)
    columns = {'ms': 'ms a batch', 'time_ratio': 'time / plain'}
    if any(figures['peak_mib'] is not None for figures in results):
        columns['peak_mib'] = 'peak memory (MiB)'
    names = list(dict.fromkeys(figures['network'] for figures in results))
    colours = dict(zip(names, palette(len(names)), strict=True))
    shape = (max(1, len(groups)), len(columns))
    figure = Figure(figsize=(4.5 * shape[1] + 1.5, 3.6 * shape[0]), layout='constrained')
    axes = figure.subplots(*shape, squeeze=False)
    for row, (group, members) in zip(axes, groups.items(), strict=False):
        for axis, (key, label) in zip(row, columns.items(), strict=True):
            for name in names:
                points = sorted(
                    (member['size_px'][0] * member['size_px'][1], member[key])
                    for member in members
                    if member['network'] == name and member[key] is not None
                )
                if points:
                    style = '-' if _has_bias(name) else '--'
                    axis.plot(
                        *zip(*points, strict=True), style, marker='o', markersize=3, color=colours[name], label=name
                    )
            axis.set(xlabel='height x width (px); the scale is of their product', ylabel=label)
            axis.set(xscale='log', yscale='log')
            sizes = {member['size_px'][0] * member['size_px'][1]: member['size_px'] for member in members}
            axis.set_xticks(list(sizes), ['x'.join(map(str, size)) for size in sizes.values()], fontsize='x-small')
            axis.set_xticks([], minor=True)
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
            axis.tick_params(axis='y', labelsize='x-small')
            axis.set_title(_title(group), fontsize='small')
        row[-1].legend(fontsize='x-small', loc='center left', bbox_to_anchor=(1, 0.5))
    write_figure(path, figure)
