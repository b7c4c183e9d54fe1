"""Draws the curves of compared runs."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmsb.analysis.compare import Row
from mmsb.analysis.plots import palette
from mmsb.analysis.run_logs import Run
from mmsb.files import write_figure

_COLUMNS = 3
_SMOOTHED_OVER = 20  # the loss is a running mean over 1/20 of its points


def smooth(values: Sequence[float]) -> np.ndarray:
    """Return the running mean over 1/20 of the points; at both ends the window is cut off."""
    half = len(values) // _SMOOTHED_OVER // 2
    return np.array([np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def mean_curve(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return steps, mean and sample standard deviation (0 for one curve) where all curves have values.

    Curves are interpolated linearly: two runs may log at different steps.

    Args:
        curves: (steps, values) of each.
    """
    low, high = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    grid = np.unique(np.concatenate([steps for steps, _ in curves]))
    grid = grid[(grid >= low) & (grid <= high)]
    values = np.stack([np.interp(grid, *curve) for curve in curves])
    return grid, values.mean(0), values.std(0, ddof=1) if len(curves) > 1 else np.zeros(len(grid))


def _curve(run: Run, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    points = run.curve(metric)
    if not points:
        return None
    steps, values = zip(*points, strict=True)
    return np.array(steps), smooth(values) if metric == 'loss' else np.array(values, dtype=float)


def _draw_row(axis, row: Row, curves: Sequence[tuple[np.ndarray, np.ndarray]], colour) -> None:
    """Draw the mean with a band of one standard deviation, and each seed as a thin line."""
    steps, mean, std = mean_curve(curves)
    marker = dict(marker='o', markersize=3) if len(steps) == 1 else {}
    axis.plot(steps, mean, color=colour, linewidth=1.8, **marker)
    if len(curves) > 1:
        axis.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)
        for curve in curves:
            axis.plot(*curve, color=colour, linewidth=0.6, alpha=0.6)


def draw(rows: Sequence[Row], metrics: Sequence[str]) -> Figure:
    """Draw the training loss and each validation metric over iterations or epochs, one panel for each.

    Args:
        rows: what `compare` returned.
        metrics: the metrics to draw.
    """
    panels = [('loss', 'iteration')]
    for metric in metrics:
        units = dict.fromkeys(run.val_unit for row in rows for run in row.runs if metric in run.metrics)
        panels += [(metric, unit) for unit in units]
    columns = min(_COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    size = (4.2 * columns, 3.3 * lines + 0.3 * len(rows))
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(lines, columns, squeeze=False)
    colours = palette(len(rows))
    for axis, (metric, unit) in zip(axes.flat, panels, strict=False):
        for i, row in enumerate(rows):
            runs = [run for run in row.runs if metric == 'loss' or run.val_unit == unit]
            curves = [curve for run in runs if (curve := _curve(run, metric))]
            if curves:
                _draw_row(axis, row, curves, colours[i])
        axis.set(xlabel=unit, ylabel='training loss, smoothed' if metric == 'loss' else f'{metric}, validation')
        axis.grid(alpha=0.3)
        axis.spines[['top', 'right']].set_visible(False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    handles = [Line2D([], [], color=colours[i], linewidth=1.8) for i in range(len(rows))]
    figure.legend(handles, [_label(row) for row in rows], loc='outside lower center', frameon=False)
    return figure


def _label(row: Row) -> str:
    seeds = len(row.runs)
    return f'{row.name} (mean of {seeds} seeds, band: ± 1 standard deviation)' if seeds > 1 else row.name


def plot(rows: Sequence[Row], metrics: Sequence[str], path: str | Path) -> None:
    """Write the figure; the ending of the path decides the format.

    Raises:
        ValueError: Matplotlib does not know the format.
    """
    with mpl.rc_context({'text.parse_math': False}):
        write_figure(path, draw(rows, metrics))
