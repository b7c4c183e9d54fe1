"""A figure of human consistency: how humans and classifiers compare in the three measures."""

import os
from collections.abc import Mapping

from matplotlib.figure import Figure

from mmsb.files import write_figure

from .measures import Consistency, mean

MEASURES = {
    'accuracy_difference': 'accuracy difference\n(lower is more human)',
    'observed_consistency': 'observed consistency\n(higher is more human)',
    'error_consistency': 'error consistency\n(higher is more human)',
}


def draw(found: Mapping[str, Mapping[str, Consistency]], path: str | os.PathLike) -> None:
    """Draw a panel for each measure: a bar for the mean of each subject, and a dot for each data set.

    Args:
        found: from `measures.table`.
        path: file to write, whole or not at all.
    """
    height = 1.4 + 0.45 * len(found)
    figure = Figure(figsize=(11, height), layout='constrained')
    axes = figure.subplots(1, len(MEASURES), sharey=True)
    names = list(found)
    colours = ['tab:gray' if name == 'humans' else 'tab:red' for name in names]
    for axis, (measure, label) in zip(axes, MEASURES.items(), strict=True):
        means = [getattr(mean(found[name].values()), measure) for name in names]
        axis.barh(range(len(names)), means, color=colours, alpha=0.5, height=0.7)
        for place, name in enumerate(names):
            values = [getattr(one, measure) for one in found[name].values()]
            axis.plot(values, [place] * len(values), '.', color=colours[place], markersize=5)
        axis.set_yticks(range(len(names)), names)
        axis.set_xlabel(label)
        axis.grid(axis='x', alpha=0.3)
    axes[0].invert_yaxis()  # the first subject on top
    figure.suptitle('bars: means over data sets; dots: data sets', fontsize='small')
    write_figure(path, figure)
