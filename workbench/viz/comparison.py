"""Arms side by side: learning curves with bands, effects with intervals, pass@k.

Frames and numbers in, figures out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.viz.curves import COLORS, STYLES
from workbench.viz.page import INK

MARKERS = "osD^vPX*"
KNOWN = (
    "grpo",
    "sdpo",
    "tapo",
    "trapo",
    "scope",
    "grpo-tokens",
    "opd",
    "luffy",
    "kd",
    "sft",
    "base",
    "sft-then-rl",
)


def look(arm: str, others: Sequence[str]) -> dict:
    """Colour, line style and marker of an arm, the same in every figure for those that are KNOWN;
    no two of 40 are alike, neighbours differ in all.
    """
    strangers = [name for name in dict.fromkeys(others) if name not in KNOWN]
    i = KNOWN.index(arm) if arm in KNOWN else len(KNOWN) + strangers.index(arm)
    return {
        "color": INK if arm == "base" else COLORS[i % len(COLORS)],
        "linestyle": STYLES[(i + i // len(COLORS)) % len(STYLES)],
        "marker": MARKERS[i % len(MARKERS)],
    }


def bands(
    frame: pd.DataFrame,
    x: str = "updates",
    title: str = "Held-out accuracy along the run",
    base: float | None = None,
) -> Figure:
    """``ledger.curves``: the mean over the seeds of each arm, and a band from the worst to the best
    seed. ``x``: updates or tokens.
    """
    figure = Figure(figsize=(8.5, 4.6), layout="constrained", facecolor="white")
    axes = _frame(
        figure.subplots(),
        title,
        "updates" if x == "updates" else "generated tokens, thousands",
        "avg@k, validation",
    )
    scale = 1.0 if x == "updates" else 1e-3
    ends = []
    for arm, rows in frame.groupby("arm", sort=False):
        grouped = rows.groupby("updates")
        places, values = grouped[x].mean().to_numpy() * scale, grouped.avg
        style = look(arm, frame.arm)
        axes.fill_between(
            places, values.min(), values.max(), color=style["color"], alpha=0.15, linewidth=0
        )
        axes.plot(places, values.mean(), linewidth=2, markersize=5, **style)
        ends.append((arm, places[-1], float(values.mean().iloc[-1]), style["color"]))
    if base is not None:
        axes.axhline(base, color=INK, linewidth=0.8, alpha=0.5)
    _ends(axes, ends)
    return figure


def forest(
    effects: Mapping[str, object],
    title: str = "Difference in accuracy",
    unit: str = "avg@32, a - b",
) -> Figure:
    """One row an effect (``ledger.Effect``): a mark with its interval; left of the line is worse,
    right is better. Hollow: the interval holds 0, or there is one seed only.
    """
    figure = Figure(
        figsize=(8, 0.9 + 0.36 * max(1, len(effects))), layout="constrained", facecolor="white"
    )
    axes = _frame(figure.subplots(), title, unit, "")
    for row, (name, found) in enumerate(effects.items()):
        sure = found.seeds > 1 and (found.low > 0 or found.high < 0)
        color = (COLORS[0] if found.mean > 0 else COLORS[1]) if sure else INK
        axes.plot([found.low, found.high], [row, row], color=color, linewidth=2)
        axes.plot(
            found.mean,
            row,
            "o",
            color=color,
            markerfacecolor=color if sure else "white",
            markersize=7,
        )
        axes.annotate(
            f"{found.mean:+.3f}",
            (found.high, row),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=color,
        )
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(effects)), list(effects))
    axes.set_ylim(len(effects) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=INK, alpha=0.15)
    return figure


def pass_curves(
    frame: pd.DataFrame, arms: Sequence[str], title: str = "pass@k on held-out problems"
) -> Figure:
    """``ledger.cells``: unbiased pass@k over k, the mean of the seeds and a band from the worst to
    the best.
    """
    figure = Figure(figsize=(8.5, 4.6), layout="constrained", facecolor="white")
    axes = _frame(figure.subplots(), title, "k", "pass@k")
    names = sorted((c for c in frame.columns if c.startswith("pass@")), key=lambda c: int(c[5:]))
    ks, ends = [int(c[5:]) for c in names], []
    for arm in (arm for arm in arms if (frame.arm == arm).any()):
        values = frame[frame.arm == arm][names].astype(float)
        style = look(arm, arms)
        axes.fill_between(
            ks, values.min(), values.max(), color=style["color"], alpha=0.15, linewidth=0
        )
        axes.plot(ks, values.mean(), linewidth=2, markersize=5, **style)
        ends.append((arm, ks[-1], float(values.mean().iloc[-1]), style["color"]))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, ks)
    _ends(axes, ends)
    return figure


def _frame(axes: Axes, title: str, x: str, y: str) -> Axes:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(colors=INK)
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.grid(axis="y", color=INK, alpha=0.15)
    return axes


def _ends(axes: Axes, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Each arm's name right of the plot at the height of its last value, moved apart where they
    would touch.
    """
    if not ends:
        axes.text(0.5, 0.5, "no record yet", transform=axes.transAxes, ha="center", color=INK)
        return
    low, high = axes.get_ylim()
    gap, order = 0.055 * (high - low), sorted(ends, key=lambda end: end[2])
    places = np.array([end[2] for end in order])
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    places -= max(0.0, places[-1] - high)
    right = axes.get_xlim()[1]
    for (name, x, y, color), place in zip(order, places):
        axes.annotate(
            name,
            (right, place),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=9,
            annotation_clip=False,
        )
