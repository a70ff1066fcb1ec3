"""Two paths for two kinds of rollout, drawn: who takes which with what weight, whom a teacher can
rescue, and a number of the training along it.

Nothing rests on colour alone: paths differ in place and hatching, lines in style and marker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.core import Rollout
from workbench.viz.comparison import look
from workbench.viz.curves import COLORS, SMOOTH
from workbench.viz.page import INK
from workbench.viz.tokens import visible

LONGEST = 46  # characters of a rollout beside its bar
PATHS = (
    ("right: imitated", "the student's perplexity", COLORS[0], ""),
    ("wrong: the teacher's log-ratio", "the teacher's perplexity", COLORS[1], "//"),
)


class Rescued(Protocol):
    """One quartile of teacher perplexity at one prefix ratio, such as rescue.Cell."""

    quartile: int
    ratio: float
    rescued: float
    low: float
    high: float


class Gap(Protocol):
    """The lowest minus the highest quartile at one prefix ratio, such as rescue.Gap."""

    ratio: float
    paths: int
    mean: float
    low: float
    high: float


def routing(members: Sequence[tuple[Rollout, float, float]]) -> Figure:
    """(rollout, weight in its subset, perplexity) of one group.

    A panel for each path, a bar for each rollout: its weight times the size of its subset, so that
    the dashed line at 1 is what it would count without weights.
    """
    paths = [[m for m in members if m[0].verdict.correct == right] for right in (True, False)]
    figure = Figure(
        figsize=(12, 1.1 + 0.36 * max(map(len, paths))), layout="constrained", facecolor="white"
    )
    longest = max([1.0] + [weight * len(path) for path in paths for _, weight, _ in path])
    for axes, path, (title, whose, color, hatch) in zip(figure.subplots(1, 2), paths, PATHS):
        _plain(axes)
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
        axes.barh(
            range(len(path)),
            [weight * len(path) for _, weight, _ in path],
            0.6,
            color=color,
            hatch=hatch,
            edgecolor="white",
        )
        axes.set_yticks(
            range(len(path)),
            [_short(rollout.text) for rollout, *_ in path],
            family="DejaVu Sans Mono",
            fontsize=8,
            parse_math=False,
        )
        for y, (_, _, perplexity) in enumerate(path):
            axes.text(
                1.25 * longest,
                y,
                f"{perplexity:.3f}",
                va="center",
                ha="right",
                fontsize=8.5,
                color=INK,
            )
        axes.axvline(1, color=INK, linewidth=1, linestyle="--")
        axes.set(xlim=(0, 1.25 * longest), ylim=(max(len(path), 1) - 0.4, -0.6))
        axes.set_xlabel(
            f"weight × {len(path)}   (at the right: {whose})" if path else "no such rollout",
            color=INK,
        )
    return figure


def rescued(found: Mapping[str, Sequence[Rescued]]) -> Figure:
    """A panel for each experiment: the share of the teacher's continuations that end correct, by
    quartile of its perplexity, a line for each ratio.
    """
    figure = Figure(figsize=(5.2 * len(found), 3.8), layout="constrained", facecolor="white")
    for axes, (name, cells) in zip(
        figure.subplots(1, len(found), sharey=True, squeeze=False).flat, found.items()
    ):
        _plain(axes)
        ratios = sorted({cell.ratio for cell in cells})
        names = [f"{ratio:.0%} given" for ratio in ratios]
        for i, ratio in enumerate(ratios):
            rows = sorted(
                (cell for cell in cells if cell.ratio == ratio), key=lambda cell: cell.quartile
            )
            values = np.array(
                [(row.rescued, row.rescued - row.low, row.high - row.rescued) for row in rows]
            ).T
            # side by side, so that intervals can be told apart
            places = np.array([row.quartile for row in rows]) + 0.06 * (i - (len(ratios) - 1) / 2)
            axes.errorbar(
                places,
                values[0],
                values[1:].clip(min=0),
                capsize=3,
                linewidth=1.8,
                markersize=5,
                label=names[i],
                **look(names[i], names),
            )
        axes.set_title(name, loc="left", fontsize=11, fontweight="bold", color=INK)
        axes.set_xlabel("quartile of the teacher's perplexity", color=INK)
        axes.set_xticks([1, 2, 3, 4], ["1\nsurest", "2", "3", "4\nleast sure"])
        axes.set_ylim(0, 1)
    figure.axes[0].set_ylabel("rescued: share that ends correct", color=INK)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    return figure


def differences(found: Mapping[str, Sequence[Gap]]) -> Figure:
    """A panel for each kind of path: rescued in the surest quartile minus in the least sure, by
    prefix ratio. Filled where the interval leaves out 0.
    """
    figure = Figure(figsize=(3.6 * len(found), 3.2), layout="constrained", facecolor="white")
    for axes, (name, gaps) in zip(
        figure.subplots(1, len(found), sharey=True, squeeze=False).flat, found.items()
    ):
        _plain(axes)
        axes.axhline(0, color=INK, linewidth=0.8)
        for place, gap in enumerate(gaps):
            sure = gap.low > 0 or gap.high < 0
            color = (COLORS[0] if gap.mean > 0 else COLORS[1]) if sure else INK
            axes.plot([place, place], [gap.low, gap.high], color=color, linewidth=2)
            axes.plot(
                place,
                gap.mean,
                "o",
                color=color,
                markerfacecolor=color if sure else "white",
                markersize=7,
            )
        axes.set_title(name, loc="left", fontsize=11, fontweight="bold", color=INK)
        axes.set_xticks(
            range(len(gaps)), [f"{gap.ratio:.0%}\n{gap.paths} paths" for gap in gaps], fontsize=8.5
        )
        axes.set_xlabel("of the path given", color=INK)
        axes.set_xlim(-0.5, max(len(gaps), 1) - 0.5)
    figure.axes[0].set_ylabel("surest − least sure quartile", color=INK)
    return figure


def along(runs: Mapping[str, Sequence[pd.DataFrame]], column: str, title: str, unit: str) -> Figure:
    """One number of each step (``records.read_run(folder).metrics``), by arm and seed: running
    means, their mean over the seeds and a band from the lowest to the highest of them. Arms that do
    not measure it are left out.
    """
    figure = Figure(figsize=(8.5, 3.6), layout="constrained", facecolor="white")
    axes = figure.subplots()
    _plain(axes)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    for arm, seeds in runs.items():
        rows = [
            metrics.set_index("step")[column].rolling(SMOOTH, min_periods=1, center=True).mean()
            for metrics in seeds
            if column in metrics
        ]
        if rows:
            values = pd.concat(rows, axis=1)
            style = look(arm, runs)
            axes.fill_between(
                values.index,
                values.min(axis=1),
                values.max(axis=1),
                color=style["color"],
                alpha=0.15,
                linewidth=0,
            )
            axes.plot(
                values.index,
                values.mean(axis=1),
                linewidth=2,
                markersize=5,
                markevery=max(1, len(values) // 8),
                label=arm,
                **style,
            )
    axes.set_xlabel("updates", color=INK)
    axes.set_ylabel(unit, color=INK)
    if axes.lines:
        axes.legend(frameon=False, fontsize=9)
    else:
        axes.text(0.5, 0.5, "no record yet", transform=axes.transAxes, ha="center", color=INK)
    return figure


def _short(text: str) -> str:
    text = visible(text)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _plain(axes: Axes) -> None:
    axes.set_facecolor("none")
    axes.tick_params(colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
