"""Two paths for two kinds of rollout, drawn: who takes which with what weight, whom a teacher can
rescue, and a number of the training along it.

Nothing rests on colour alone: paths differ in place and hatching, lines in style and marker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.core import Rollout
from workbench.viz.comparison import band
from workbench.viz.curves import running_mean
from workbench.viz.style import (
    COLORS,
    HATCHES,
    INK,
    MONO,
    frame,
    instead,
    interval,
    look,
    sheet,
    shortened,
)
from workbench.viz.texts import visible

LONGEST = 46  # characters of a rollout beside its bar
PATHS = (
    (True, "right: imitated", "the student's perplexity", COLORS[0], HATCHES[0]),
    (False, "wrong: the teacher's log-ratio", "the teacher's perplexity", COLORS[1], HATCHES[1]),
)
Member = tuple[Rollout, float, float]  # a rollout, its weight in its subset, its perplexity


def routing(members: Sequence[Member]) -> Figure:
    """(rollout, weight in its subset, perplexity) of one group.

    A panel for each path, a bar for each rollout: its weight times the size of its subset, so that
    the dashed line at 1 is what it would count without weights.
    """
    panels = []
    for right, *words in PATHS:
        path = [member for member in members if member[0].verdict.correct == right]
        panels.append((path, [weight * len(path) for _, weight, _ in path], words))
    figure = sheet(12, 1.1 + 0.36 * max(len(path) for path, _, _ in panels))
    width = 1.25 * max(1.0, *panels[0][1], *panels[1][1])
    for axes, (path, bars, (title, whose, color, hatch)) in zip(figure.subplots(1, 2), panels):
        label = f"weight × {len(path)}   (at the right: {whose})" if path else "no such rollout"
        frame(axes, title, label)
        rows = range(len(path))
        axes.barh(rows, bars, 0.6, color=color, hatch=hatch, edgecolor="white")
        texts = [shortened(visible(rollout.text), LONGEST) for rollout, _, _ in path]
        axes.set_yticks(rows, texts, family=MONO, fontsize=8, parse_math=False)
        for row, (_, _, perplexity) in enumerate(path):
            axes.text(
                width,
                row,
                f"{perplexity:.3f}",
                va="center",
                ha="right",
                fontsize=8.5,
                color=INK,
            )
        axes.axvline(1, color=INK, linewidth=1, linestyle="--")
        axes.set(xlim=(0, width), ylim=(max(len(path), 1) - 0.4, -0.6))
    return figure


def rescued(experiments: Mapping[str, Sequence]) -> Figure:
    """A panel for each experiment: the share of the teacher's continuations that end correct, by
    quartile of its perplexity, a line for each prefix ratio.

    Cells have quartile, ratio, rescued, low and high (``teacher_rescue.Cell``).
    """
    figure = sheet(5.2 * len(experiments), 3.8)
    panels = figure.subplots(1, len(experiments), sharey=True, squeeze=False).flat
    for axes, (name, cells) in zip(panels, experiments.items()):
        frame(axes, name, "quartile of the teacher's perplexity")
        lines = {}
        for cell in sorted(cells, key=lambda cell: (cell.ratio, cell.quartile)):
            numbers = (cell.quartile, cell.rescued, cell.low, cell.high)
            lines.setdefault(f"{cell.ratio:.0%} given", []).append(numbers)
        for i, (label, line) in enumerate(lines.items()):
            quartile, share, low, high = np.array(line).T
            # side by side, so that intervals can be told apart
            places = quartile + 0.06 * (i - (len(lines) - 1) / 2)
            spans = np.clip([share - low, high - share], 0, None)
            style = look(label, lines)
            axes.errorbar(
                places, share, spans, capsize=3, linewidth=1.8, markersize=5, label=label, **style
            )
        axes.set_xticks([1, 2, 3, 4], ["1\nsurest", "2", "3", "4\nleast sure"])
        axes.set_ylim(0, 1)
    first = figure.axes[0]
    first.set_ylabel("rescued: share that ends correct", color=INK)
    figure.legend(
        *first.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    return figure


def differences(gaps: Mapping[str, Sequence]) -> Figure:
    """A panel for each kind of path: rescued in the surest quartile minus in the least sure, by
    prefix ratio. Filled where the interval leaves out 0.

    Gaps have ratio, paths, mean, low and high (``teacher_rescue.Gap``).
    """
    figure = sheet(3.6 * len(gaps), 3.2)
    panels = figure.subplots(1, len(gaps), sharey=True, squeeze=False).flat
    for axes, (name, by_ratio) in zip(panels, gaps.items()):
        frame(axes, name, "of the path given")
        axes.axhline(0, color=INK, linewidth=0.8)
        for place, gap in enumerate(by_ratio):
            interval(axes, place, gap, upright=True)
        labels = [f"{gap.ratio:.0%}\n{gap.paths} paths" for gap in by_ratio]
        axes.set_xticks(range(len(labels)), labels, fontsize=8.5)
        axes.set_xlim(-0.5, max(len(labels), 1) - 0.5)
    figure.axes[0].set_ylabel("surest − least sure quartile", color=INK)
    return figure


def along(runs: Mapping[str, Sequence[pd.DataFrame]], column: str, title: str, unit: str) -> Figure:
    """One number of each step (``records.read_run(folder).metrics``), by arm and seed: running
    means, their mean over the seeds and a band from the lowest to the highest of them. Arms that do
    not measure it are left out.
    """
    figure = sheet(8.5, 3.6)
    axes = frame(figure.subplots(), title, "updates", unit)
    for arm, seeds in runs.items():
        rows = [running_mean(metrics, column) for metrics in seeds if column in metrics]
        if rows:
            values = pd.concat(rows, axis=1)
            marks = {"markevery": max(1, len(values) // 8), "label": arm}
            band(axes, arm, values.index, values.T, look(arm, runs) | marks)
    if axes.lines:
        axes.legend(frameon=False, fontsize=9)
    else:
        instead(axes, "no record yet")
    return figure
