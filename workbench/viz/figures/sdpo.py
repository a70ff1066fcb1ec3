"""Self-distillation drawn: divergences and their credits on two tokens, and how healthy a recorded
run was. Lines differ in colour and in style.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.viz.curves import step_curve
from workbench.viz.style import INK, frame, line_style, sheet

TALLEST = 2.0  # nats, and credit: forward KL's has no bound
# title, unit, names in the metrics
HEALTH = (
    ("What the teacher was shown", "share", ("demonstrated", "advised", "masked", "copied")),
    ("What it says of the attempts", "mean Δ, nats", ("delta_right", "delta_wrong")),
    ("How sure both are", "entropy, nats per token", ("student_entropy", "teacher_entropy")),
    ("How far the teacher is behind", "share of the policy's way", ("teacher_distance",)),
)


def divergence_curves(
    p: np.ndarray, q: float, divergences: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> Figure:
    """Two tokens; ``p`` [N]: the policy's probability of the first, ``q``: the teacher's.

    By the name of a divergence its values [N] and its credits [N] of the first token.
    """
    figure = sheet(10, 3.8)
    left, right = figure.subplots(1, 2)
    for i, (name, (values, credits)) in enumerate(divergences.items()):
        left.plot(p, values, linewidth=2, label=name, **line_style(i))
        right.plot(p, credits, linewidth=2, **line_style(i))
    for axes, title, unit, lowest in (
        (left, "How far apart: D", "nats", 0),
        (right, "What it says to the first token: its credit", "above 0: more likely", -TALLEST),
    ):
        frame(axes, title, "the policy's probability of the first token", unit, grid="y")
        axes.axhline(0, color=INK, linewidth=0.8)
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
        axes.set_ylim(lowest, TALLEST)
    columns = len(divergences)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, labelcolor=INK)
    return figure


def health_curves(metrics: pd.DataFrame) -> Figure:
    """Four panels from the metrics of a run of SDPO (``records.read_run(folder).metrics``); thin:
    each step, thick: running mean.
    """
    figure = sheet(10, 6)
    for axes, (title, unit, names) in zip(figure.subplots(2, 2).flat, HEALTH):
        frame(axes, title, "updates", unit, grid="y")
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        recorded = [name for name in names if name in metrics]
        for i, name in enumerate(recorded):
            step_curve(axes, metrics, name, label=name, **line_style(i))
        if unit == "share":
            axes.set_ylim(0, 1.05)
        elif "Δ" not in unit:  # a difference may be below 0
            axes.set_ylim(bottom=0)
        axes.legend(fontsize=8.5, frameon=False, labelcolor=INK)
    return figure
