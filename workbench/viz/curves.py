"""Learning curves of one or several runs.

The colours and line styles differ both, hold on light and dark paper, and are told apart by the
colour-blind.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.viz.page import INK

# each at least 3 : 1 against white and against near-black
COLORS = ("#2878c8", "#d06a00", "#0f8f74", "#b0528f", "#80762a")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
SMOOTH = 5  # steps in the running mean of the training rollouts

PANELS = (
    ("correct", "Correct", "share of completions", True),
    ("contrast", "Groups with contrast", "share of groups", True),
    ("entropy", "Entropy", "nats per token", False),
    ("length", "Length", "tokens per completion", False),
)


def learning_curves(runs: Mapping[str, pd.DataFrame]) -> Figure:
    """Four panels from the metrics of each run (``records.read_run(folder).metrics``) by its name.

    Correct: the rollouts of the training step (thin; thick: running mean) and, where the run was
    evaluated, the held-out validation problems (markers with the 95 % interval over problems as a
    band). A step's number counts the updates made before it.
    """
    figure = Figure(figsize=(10, 6.4), layout="constrained", facecolor="white")
    last = max((int(metrics["step"].max()) + 1 for metrics in runs.values()), default=1)
    for axes, (column, title, unit, share) in zip(figure.subplots(2, 2).flat, PANELS):
        _frame(axes, title, unit)
        recorded = [column in metrics for metrics in runs.values()]
        for i, (name, metrics) in enumerate(runs.items()):
            if recorded[i]:
                _line(
                    axes,
                    metrics,
                    column,
                    COLORS[i % len(COLORS)],
                    STYLES[(i + i // len(COLORS)) % len(STYLES)],
                    name,
                )
                if column == "correct":
                    _evaluations(axes, metrics, COLORS[i % len(COLORS)])
        if not any(recorded):
            axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=INK)
        axes.set_xlim(-0.02 * last, 1.02 * last)
        axes.set_ylim(0, 1 if share else 1.08 * axes.get_ylim()[1])
    first = figure.axes[0]
    notes = [f"line: training rollouts (thick: mean of {SMOOTH} steps)"]
    if any("eval_avg" in m for m in runs.values()):
        notes.append("dots: validation, 95 % interval")
    first.text(
        0.98, 0.04, "\n".join(notes), transform=first.transAxes, ha="right", fontsize=8.5, color=INK
    )
    if len(runs) > 1:
        _label_ends(first)
    return figure


def evaluations(metrics: pd.DataFrame) -> pd.DataFrame:
    """The evaluations of a run: updates made before, avg, low, high.

    The last one is after the last update.
    """
    names = ["avg", "low", "high"]
    if "eval_avg" not in metrics:
        return pd.DataFrame(columns=["updates", *names])
    during = metrics.dropna(subset="eval_avg")
    found = [(row.step, row.eval_avg, row.eval_low, row.eval_high) for row in during.itertuples()]
    if "final_eval_avg" in metrics:
        last = metrics.dropna(subset="final_eval_avg")
        found += [
            (row.step + 1, row.final_eval_avg, row.final_eval_low, row.final_eval_high)
            for row in last.itertuples()
        ]
    return pd.DataFrame(found, columns=["updates", *names])


def _frame(axes: Axes, title: str, unit: str) -> None:
    axes.set_facecolor("none")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_ylabel(unit, color=INK)
    axes.set_xlabel("updates", color=INK)
    axes.tick_params(colors=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.grid(axis="y", color=INK, alpha=0.15)


def _line(axes: Axes, metrics: pd.DataFrame, column: str, color: str, style, name: str) -> None:
    steps, values = metrics["step"].to_numpy(), metrics[column].to_numpy(float)
    axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.45)
    smooth = metrics[column].rolling(SMOOTH, min_periods=1, center=True).mean().to_numpy(float)
    axes.plot(steps, smooth, color=color, linewidth=2.2, linestyle=style, label=name)


def _label_ends(axes: Axes) -> None:
    """The name of each run beside the end of its line, moved apart where they would touch."""
    place = -np.inf
    for line in sorted(
        (line for line in axes.lines if not line.get_label().startswith("_")),
        key=lambda line: line.get_ydata()[-1],
    ):
        place = max(line.get_ydata()[-1], place + 0.06)
        axes.annotate(
            line.get_label(),
            (line.get_xdata()[-1], place),
            (8, 0),
            textcoords="offset points",
            va="center",
            color=line.get_color(),
            fontsize=9,
            annotation_clip=False,
        )


def _evaluations(axes: Axes, metrics: pd.DataFrame, color: str) -> None:
    found = evaluations(metrics)
    if found.empty:
        return
    x, low, high = (found[c].to_numpy(float) for c in ("updates", "low", "high"))
    axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    axes.errorbar(
        x,
        found["avg"],
        yerr=np.abs(np.array([low, high]) - found["avg"].to_numpy(float)),
        color=color,
        linestyle="none",
        marker="o",
        markersize=6,
        capsize=3,
        zorder=3,
        clip_on=False,
    )


def discovery_curves(found: Mapping[str, np.ndarray]) -> Figure:
    """discovery@k of several ways to look for a solution: by name, [3, budget] mean, low and high
    at k = 1, 2, ... (discovery.interval).
    """
    figure = Figure(figsize=(8, 4), layout="constrained", facecolor="white")
    axes = figure.subplots()
    _frame(axes, "Solved within k generations", "share of runs")
    for i, (name, (mean, low, high)) in enumerate(found.items()):
        k, color = np.arange(1, len(mean) + 1), COLORS[i % len(COLORS)]
        axes.step(
            k,
            mean,
            where="post",
            color=color,
            linewidth=2.2,
            linestyle=STYLES[i % len(STYLES)],
            label=name,
        )
        axes.fill_between(k, low, high, step="post", color=color, alpha=0.12, linewidth=0)
    axes.set(
        xlabel="k, generations",
        ylim=(0, 1),
        xlim=(0, 1.02 * max(len(mean) for mean, _, _ in found.values())),
    )
    _label_ends(axes)
    return figure
