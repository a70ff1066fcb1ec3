"""Self-distillation drawn: divergences and their credits on two tokens, and how healthy a recorded
run was. Lines differ in colour and in style.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.viz.curves import COLORS, SMOOTH, STYLES
from workbench.viz.page import INK

TALLEST = 2.0  # nats, and credit: forward KL's has no bound
HEALTH = (
    ("What the teacher was shown", "share", ("demonstrated", "advised", "masked", "copied")),
    ("What it says of the attempts", "mean Δ, nats", ("delta_right", "delta_wrong")),
    ("How sure both are", "entropy, nats per token", ("student_entropy", "teacher_entropy")),
    ("How far the teacher is behind", "share of the policy's way", ("teacher_distance",)),
)


def divergence_curves(
    p: np.ndarray, q: float, found: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> Figure:
    """Two tokens; ``p`` [N]: the policy's probability of the first, ``q``: the teacher's.

    By the name of a divergence its values [N] and its credits [N] of the first token.
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    for i, (name, (values, credits)) in enumerate(found.items()):
        style = {"color": COLORS[i], "linestyle": STYLES[i]}
        left.plot(p, values, linewidth=2, label=name, **style)
        right.plot(p, credits, linewidth=2, **style)
    for axes, title, unit in (
        (left, "How far apart: D", "nats"),
        (right, "What it says to the first token: its credit", "above 0: more likely"),
    ):
        _plain(axes, title, unit)
        axes.set_xlabel("the policy's probability of the first token", color=INK)
        axes.axvline(q, color=INK, linewidth=1, linestyle=":")
        axes.annotate(
            f"the teacher's, {q:g}",
            (q, 0.98),
            (4, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            fontsize=8.5,
            color=INK,
        )
    left.set_ylim(0, TALLEST)
    right.set_ylim(-TALLEST, TALLEST)
    figure.legend(loc="outside lower center", ncols=len(found), frameon=False, labelcolor=INK)
    return figure


def health_curves(metrics: pd.DataFrame) -> Figure:
    """Four panels from the metrics of a run of SDPO (``records.read_run(folder).metrics``); thin:
    each step, thick: running mean.
    """
    figure = Figure(figsize=(10, 6), layout="constrained", facecolor="white")
    for axes, (title, unit, names) in zip(figure.subplots(2, 2).flat, HEALTH):
        _plain(axes, title, unit)
        axes.set_xlabel("updates", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for i, name in enumerate(name for name in names if name in metrics):
            smooth = metrics[name].rolling(SMOOTH, min_periods=1, center=True).mean()
            axes.plot(metrics.step, metrics[name], color=COLORS[i], linewidth=0.8, alpha=0.4)
            axes.plot(
                metrics.step, smooth, color=COLORS[i], linestyle=STYLES[i], linewidth=2, label=name
            )
        axes.set_ylim(
            *((0, 1.05) if unit == "share" else (None, None) if "Δ" in unit else (0, None))
        )
        axes.legend(fontsize=8.5, frameon=False, labelcolor=INK)
    return figure


def _plain(axes: Axes, title: str, unit: str) -> None:
    axes.set_facecolor("none")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_ylabel(unit, color=INK)
    axes.tick_params(colors=INK)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=INK, alpha=0.15)
