"""Arms side by side: learning curves with bands, effects with intervals, verdicts, pass@k.

Frames and numbers in, figures out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.viz.style import (
    COLORS,
    INK,
    beside,
    frame,
    instead,
    interval,
    label_ends,
    look,
    sheet,
)


def bands(
    curves: pd.DataFrame,
    x: str = "updates",
    title: str = "Held-out accuracy along the run",
) -> Figure:
    """``ledger.curves``: the mean over the seeds of each arm, and a band from the worst to the best
    seed. ``x``: updates or tokens.
    """
    figure = sheet(8.5, 4.6)
    label = "updates" if x == "updates" else "generated tokens, thousands"
    axes = frame(figure.subplots(), title, label, "avg@k, validation", grid="y")
    ends = []
    for arm, rows in curves.groupby("arm", sort=False):
        by_step = rows.groupby("updates")
        places = by_step[x].mean().to_numpy() * (1.0 if x == "updates" else 1e-3)
        avg = by_step.avg
        ends.append(band(axes, arm, places, avg, look(arm, curves.arm)))
    _name_ends(axes, ends)
    return figure


def forest(
    effects: Mapping[str, object],
    title: str = "Difference in accuracy",
    unit: str = "avg@32, a - b",
) -> Figure:
    """One row an effect (statistics.Effect): a mark with its interval; left of the line is worse,
    right is better. Hollow: the interval holds 0, or there is one seed only.
    """
    figure = sheet(8, 0.9 + 0.36 * max(1, len(effects)))
    axes = frame(figure.subplots(), title, unit, grid="x")
    for row, effect in enumerate(effects.values()):
        color = interval(axes, row, effect, sure=effect.seeds > 1)
        beside(axes, f"{effect.mean:+.3f}", (effect.high, row), color)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(effects)), list(effects))
    axes.set_ylim(len(effects) - 0.4, -0.6)
    axes.margins(x=0.12)
    return figure


# a verdict's colour and mark; the others are hollow
VERDICTS = {
    "holds": {"color": COLORS[0], "marker": "o"},
    "does not": {"color": COLORS[1], "marker": "s"},
    "the same": {"color": COLORS[2], "marker": "D"},
}
HOLLOW = {"color": INK, "marker": "o", "markerfacecolor": "white"}
TICKS = {-25: "-.5", -5: "-.1", -1: "-.02", 0: "0", 1: ".02", 5: ".1", 25: ".5"}  # in margins


def decisions(table: pd.DataFrame, title: str = "What is decided, and how") -> Figure:
    """``claims.verdicts``, a line a claim: difference and interval over its margin, the verdict,
    and the power to see a difference of one margin; in bold each paper's primary claim.

    One axis for all: grey is the margin, .02 of accuracy or a rate, 1 token, .1 of the run's
    length. It is logarithmic outside of that, and ends at 50 margins.
    """
    papers = table.groupby("paper", sort=False)
    figure = sheet(7, 1 + 0.36 * (len(table) + len(papers)))
    label = "a - b, in accuracy (or in margins: 1 token, .1 of the run are drawn as .02)"
    axes = frame(figure.subplots(), title, label, grid="x")
    axes.axvspan(-1, 1, color=INK, alpha=0.12, linewidth=0)
    axes.axvline(0, color=INK, linewidth=0.8)
    labels = []
    for paper, rows in papers:
        labels.append((paper.split()[0], True))
        for row in rows.to_dict("records"):
            _decision(axes, len(labels), row)
            labels.append((textwrap.fill(row["claim"], 36), row["role"] == "primary"))
    axes.set_xscale("symlog", linthresh=1, linscale=0.7)
    axes.set_xlim(-50, 50)
    axes.set_xticks(list(TICKS), list(TICKS.values()))
    axes.minorticks_off()
    axes.set_yticks(range(len(labels)), [text for text, _ in labels], fontsize=8)
    for tick, (_, bold) in zip(axes.get_yticklabels(), labels):
        tick.set_fontweight("bold" if bold else "normal")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    return figure


def _decision(axes: Axes, place: int, row: Mapping) -> None:
    effect, words = row["ours"], row["verdict"]
    look = VERDICTS.get(words, HOLLOW)
    if effect:
        ends = np.clip(np.divide([effect.low, effect.high, effect.mean], row["margin"]), -50, 50)
        axes.plot(ends[:2], [place] * 2, color=look["color"], linewidth=2)
        axes.plot(ends[2:], [place], markersize=6, **look)
        words = f"{effect.mean:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}]\n{words}"
        words += f", {effect.seeds} of {row['seeds']} seeds" if row["provisional"] else ""
        words += f", power {row['power']:.2f}" if row["power"] > 0 else ""
    beside(
        axes, words, (1, place), look["color"], xycoords=axes.get_yaxis_transform(), fontsize=7.5
    )


def pass_curves(cells: pd.DataFrame, arms: Sequence[str]) -> Figure:
    """``ledger.cells``: unbiased pass@k over k, the mean of the seeds and a band from the worst to
    the best.
    """
    figure = sheet(8.5, 4.6)
    title = "pass@k on held-out problems"
    axes = frame(figure.subplots(), title, "k", "pass@k", grid="y")
    ks = sorted(int(name[5:]) for name in cells.columns if name.startswith("pass@"))
    ends = []
    for arm in arms:
        values = cells[cells.arm == arm][[f"pass@{k}" for k in ks]].astype(float)
        if len(values):
            ends.append(band(axes, arm, ks, values, look(arm, arms)))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, ks)
    _name_ends(axes, ends)
    return figure


def scatter(table: pd.DataFrame, scores: Mapping[str, str], y: str) -> Figure:
    """A point an arm for each of ``scores``, a column's name and what it is called.

    ``table``: gain, low, high and seeds by arm. Those that gained are above, on a scale of their
    own, those that lost below. Hollow: one seed only, whose interval is over its problems.
    """
    figure = sheet(5.4 * len(scores), 6.4)
    rows = figure.subplots(2, len(scores), sharey="row", height_ratios=(5, 1))
    parts = table[table.gain > 0], table[table.gain <= 0]
    for part, axes_row in zip(parts, rows.reshape(2, -1)):
        for axes, (column, label) in zip(axes_row, scores.items()):
            frame(axes, x=label, y=y if axes is rows.flat[0] else "", grid="y")
            _points(axes, part, column)
    return figure


def _points(axes: Axes, table: pd.DataFrame, column: str) -> None:
    """Each arm's point with its interval, and its name right of the axes at the end of a line."""
    for arm, row in table.iterrows():
        color = look(arm, table.index)["color"]
        axes.plot([row[column]] * 2, [row.low, row.high], color=color, linewidth=1, alpha=0.5)
        face = color if row.seeds > 1 else "white"
        axes.plot(row[column], row.gain, "o", color=color, markerfacecolor=face)
    names = axes.get_yaxis_transform()
    leader = {"arrowstyle": "-", "alpha": 0.4, "linewidth": 0.7, "relpos": (0, 0.5), "shrinkA": 1}
    low, high = axes.get_ylim()
    ladder = np.linspace(low, high, len(table) + 2)[1:-1]
    for height, (arm, row) in zip(ladder, table.sort_values("gain").iterrows()):
        color = look(arm, table.index)["color"]
        axes.annotate(
            arm,
            (row[column], row.gain),
            (1.03, height),
            textcoords=names,
            va="center",
            fontsize=8.5,
            color=color,
            annotation_clip=False,
            arrowprops=leader | {"color": color},
        )


def band(axes: Axes, arm: str, x: Sequence[float], seeds, style: dict) -> tuple:
    """The mean of the seeds and a band from the lowest to the highest; gives the line's end.

    ``seeds`` has a mean, a min and a max for each place of ``x``: a frame, or a grouped column.
    """
    color = style["color"]
    mean = seeds.mean()
    axes.fill_between(x, seeds.min(), seeds.max(), color=color, alpha=0.15, linewidth=0)
    axes.plot(x, mean, linewidth=2, markersize=5, **style)
    return arm, float(mean.iloc[-1]), color


def _name_ends(axes: Axes, ends: Sequence[tuple[str, float, str]]) -> None:
    """Each arm's name right of the plot, at the height of its last value."""
    if not ends:
        instead(axes, "no record yet")
    label_ends(axes, [(arm, axes.get_xlim()[1], y, color) for arm, y, color in ends])
