"""Learning curves of one or several runs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.viz.style import INK, SMOOTH, frame, instead, label_ends, line_style, sheet

# column of the metrics, title, unit, and whether it is a share
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
    figure = sheet(10, 6.4)
    last = max((int(metrics["step"].max()) + 1 for metrics in runs.values()), default=1)
    for axes, (column, title, unit, share) in zip(figure.subplots(2, 2).flat, PANELS):
        frame(axes, title, "updates", unit, grid="y")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for i, (name, metrics) in enumerate(runs.items()):
            if column in metrics:
                step_curve(axes, metrics, column, label=name, **line_style(i))
        if not axes.lines:
            instead(axes, "not recorded")
        axes.set_xlim(-0.02 * last, 1.02 * last)
        axes.set_ylim(0, 1 if share else 1.08 * axes.get_ylim()[1])
    _add_evaluations(figure.axes[0], runs)
    if len(runs) > 1:
        _name_lines(figure.axes[0])
    return figure


def discovery_curves(curves: Mapping[str, np.ndarray]) -> Figure:
    """discovery@k of several ways to look for a solution: by name, [3, budget] mean, low and high
    at k = 1, 2, ... (statistics.bootstrap_nested).
    """
    figure = sheet(8, 4)
    title = "Solved within k generations"
    axes = frame(figure.subplots(), title, "k, generations", "share of runs", grid="y")
    for i, (name, (mean, low, high)) in enumerate(curves.items()):
        k = np.arange(1, len(mean) + 1)
        style = line_style(i)
        axes.step(k, mean, where="post", linewidth=2.2, label=name, **style)
        axes.fill_between(k, low, high, step="post", color=style["color"], alpha=0.12, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(ylim=(0, 1), xlim=(0, 1.02 * max(len(mean) for mean, _, _ in curves.values())))
    _name_lines(axes)
    return figure


def evaluations(metrics: pd.DataFrame) -> pd.DataFrame:
    """The evaluations of a run: updates made before, avg, low, high.

    The last one is after the last update.
    """
    columns = ["updates", "avg", "low", "high"]
    tables = []
    for prefix, updates in (("eval", 0), ("final_eval", 1)):
        if "eval_avg" in metrics and f"{prefix}_avg" in metrics:
            rows = metrics.dropna(subset=f"{prefix}_avg")
            table = rows[["step", *(f"{prefix}_{name}" for name in columns[1:])]]
            tables.append(table.set_axis(columns, axis=1).assign(updates=rows["step"] + updates))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def running_mean(metrics: pd.DataFrame, column: str) -> pd.Series:
    """The mean of each SMOOTH steps around a step, by step."""
    return metrics.set_index("step")[column].rolling(SMOOTH, min_periods=1, center=True).mean()


def step_curve(axes: Axes, metrics: pd.DataFrame, column: str, *, label: str, **style) -> None:
    """One number of each step: thin as it is, thick as a running mean."""
    axes.plot(metrics["step"], metrics[column], color=style["color"], linewidth=0.8, alpha=0.45)
    axes.plot(running_mean(metrics, column), linewidth=2.2, label=label, **style)


def _add_evaluations(axes: Axes, runs: Mapping[str, pd.DataFrame]) -> None:
    """The validation problems of each run: dots, and their intervals as bars and a band."""
    note = f"line: training rollouts (thick: mean of {SMOOTH} steps)"
    for i, metrics in enumerate(runs.values()):
        x, mean, low, high = evaluations(metrics).to_numpy(float).T
        color = line_style(i)["color"]
        if len(x):
            axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
            axes.errorbar(
                x,
                mean,
                np.abs([mean - low, high - mean]),
                color=color,
                linestyle="none",
                marker="o",
                markersize=6,
                capsize=3,
                zorder=3,
                clip_on=False,
            )
    if axes.containers:
        note += "\ndots: validation, 95 % interval"
    axes.set_title(note, loc="right", fontsize=8.5, color=INK)  # inside, it would lie on a line


def _name_lines(axes: Axes) -> None:
    """The name of each line beside its end."""
    named = [line for line in axes.lines if not line.get_label().startswith("_")]
    label_ends(
        axes, [(line.get_label(), *line.get_xydata()[-1], line.get_color()) for line in named]
    )
