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

from workbench.viz.curves import COLORS, STYLES
from workbench.viz.page import INK

HATCHES = ("", "//")


def eligibility(right: Sequence[int], k: int, n_pos: int, n_neg: int) -> Figure:
    """How many problems have 0 to ``k`` right rollouts; those that are eligible filled, the others
    hatched.
    """
    figure = Figure(figsize=(7, 2.8), layout="constrained", facecolor="white")
    axes, counts = figure.subplots(), np.bincount(right, minlength=k + 1)
    inside = [n_pos <= n <= k - n_neg for n in range(k + 1)]
    bars = axes.bar(
        range(k + 1),
        counts,
        color=[COLORS[0] if ok else "#80868b" for ok in inside],
        hatch=[HATCHES[not ok] for ok in inside],
        edgecolor="white",
    )
    axes.bar_label(bars, color=INK)
    _plain(
        axes,
        f"{counts[inside].sum()} of {len(right)} problems are eligible (hatched: not)",
        f"right rollouts of {k}",
        "problems",
    )
    axes.set_xticks(range(k + 1))
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
    figure = Figure(figsize=(10.5, 3.7), layout="constrained", facecolor="white")
    *panels, last = figure.subplots(
        1, len(advantages) + 1, width_ratios=[*[1] * len(advantages), 1.25]
    )
    for axes in panels[1:]:
        axes.sharey(panels[0])
    for axes, (right, found) in zip(panels, advantages.items()):
        for i, (name, values) in enumerate(found.items()):
            style = {"color": COLORS[i], "linestyle": STYLES[i], "marker": "os"[i]}
            axes.plot(values[:, 0], label=name, **style)
            axes.plot(values[:, 1], **style)
            axes.plot(
                values @ [right / k, 1 - right / k],
                color=COLORS[i],
                linestyle=":",
                linewidth=2.5,
                label=f"their mean, {name}",
            )
        first = axes is panels[0]
        _plain(
            axes,
            f"{right} of {k} rollouts right",
            "right corrections beside them",
            "advantage: right (top), wrong (bottom)" if first else "",
        )
        axes.set_xticks(range(len(values)))
    for i, (name, (up, down)) in enumerate(push.items()):
        values = (up, down, up + down)
        bars = last.bar(
            np.arange(3) + 0.4 * i - 0.2,
            values,
            0.38,
            color=COLORS[i],
            hatch=HATCHES[i],
            edgecolor="white",
        )
        last.bar_label(
            bars, [f"{value:+.2f}" for value in values], padding=2, fontsize=8, color=INK
        )
    _plain(last, "this step", "", "advantage × tokens, per token")
    last.set_xticks(range(3), ["right", "wrong", "together"])
    last.margins(y=0.15)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        fontsize=8.5,
        frameon=False,
    )
    return figure


def _plain(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(colors=INK)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
