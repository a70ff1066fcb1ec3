"""TAPO's two groups drawn: which problems are eligible, and what one merged advantage group would
do to the rollouts.

Nothing rests on colour alone: bars differ in hatching, lines in style.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.viz.style import COLORS, HATCHES, INK, MARKERS, frame, line_style, sheet

GREY = "#80868b"


def eligibility(right: Sequence[int], k: int, n_pos: int, n_neg: int) -> Figure:
    """How many problems have 0 to ``k`` right rollouts; those that are eligible filled, the others
    hatched.
    """
    figure = sheet(7, 2.8)
    places = np.arange(k + 1)
    counts = np.bincount(right, minlength=k + 1)
    eligible = (places >= n_pos) & (places <= k - n_neg)
    title = f"{counts[eligible].sum()} of {len(right)} problems are eligible (hatched: not)"
    axes = frame(figure.subplots(), title, f"right rollouts of {k}", "problems")
    bars = axes.bar(
        places,
        counts,
        color=np.where(eligible, COLORS[0], GREY),
        hatch=np.where(eligible, *HATCHES),
        edgecolor="white",
    )
    axes.bar_label(bars, color=INK)
    axes.set_xticks(places)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.15)
    return figure


def contamination(
    advantages: Mapping[int, Mapping[str, np.ndarray]],
    push: Mapping[str, tuple[float, float]],
    k: int,
) -> Figure:
    """``advantages[right][name]``: [n + 1, 2] advantage of a right and of a wrong rollout beside 0
    to n right corrections, ``right`` of ``k`` rollouts being right. ``push[name]``: what the right
    and what the wrong rollouts of a step add up to, advantage times tokens, per token.
    """
    figure = sheet(10.5, 3.7)
    widths = [*[1] * len(advantages), 1.25]
    *panels, last = figure.subplots(1, len(widths), width_ratios=widths)
    for axes, (right, lines) in zip(panels, advantages.items()):
        _advantages(axes, lines, right, k)
    for axes in panels[1:]:
        axes.sharey(panels[0])
    panels[0].set_ylabel("advantage: right (top), wrong (bottom)")
    _push(last, push)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        fontsize=8.5,
        frameon=False,
    )
    return figure


def _advantages(axes: Axes, lines: Mapping[str, np.ndarray], right: int, k: int) -> None:
    """Of a right and of a wrong rollout, and dotted their mean, by the number of corrections."""
    frame(axes, f"{right} of {k} rollouts right", "right corrections beside them")
    for i, (name, values) in enumerate(lines.items()):
        for column, label in enumerate((name, None)):
            axes.plot(values[:, column], label=label, marker=MARKERS[i], **line_style(i))
        axes.plot(
            values @ [right / k, 1 - right / k],
            color=COLORS[i],
            linestyle=":",
            linewidth=2.5,
            label=f"their mean, {name}",
        )
        axes.set_xticks(range(len(values)))
    axes.axhline(0, color=INK, linewidth=0.8)


def _push(axes: Axes, push: Mapping[str, tuple[float, float]]) -> None:
    """What the right rollouts of the step, the wrong ones and both add up to."""
    frame(axes, "this step", "", "advantage × tokens, per token")
    axes.axhline(0, color=INK, linewidth=0.8)
    for i, (name, (up, down)) in enumerate(push.items()):
        bars = axes.bar(
            np.arange(3) + 0.4 * i - 0.2,
            [up, down, up + down],
            0.38,
            color=COLORS[i],
            hatch=HATCHES[i],
            edgecolor="white",
            label=name,
        )
        axes.bar_label(bars, fmt="{:+.2f}", padding=2, fontsize=8, color=INK)
    axes.set_xticks(range(3), ["right", "wrong", "together"])
    axes.margins(y=0.15)
