"""How much of an expert a policy learns, drawn: a token's weight against its probability, the
policy where TrSFT ends, and who was given what.

Nothing rests on colour alone: lines differ in style, bars in hatching, rollouts in their marks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from workbench.core import Group, Rollout
from workbench.viz.curves import COLORS, STYLES
from workbench.viz.page import INK

EXPERT = COLORS[0]
ROUNDING = 1e-9  # what is no more than this is rounding and no boundary token
QUESTION, GAP = 2.6, 1.9  # widths of the question and of a decision; a rollout is 1 wide


def gradient_weights(p: np.ndarray, weights: Mapping[str, np.ndarray]) -> Figure:
    """[N] weights of grad log p in -grad loss, by name, against the [N] probabilities p of the
    token: the same lines over p and over log p.
    """
    figure = Figure(figsize=(10, 3.4), layout="constrained", facecolor="white")
    for axes, scale in zip(figure.subplots(1, 2, sharey=True), ("linear", "log")):
        _plain(axes)
        for i, (name, weight) in enumerate(weights.items()):
            axes.plot(p, weight, color=COLORS[i], linestyle=STYLES[i], linewidth=2.2, label=name)
        axes.set(
            xscale=scale,
            xlim=(p.min() if scale == "log" else 0, 1),
            ylim=(0, 1.06),
            xlabel=f"p of the expert's token ({scale})",
        )
    figure.axes[0].set_ylabel("weight of ∇ log p")
    figure.axes[1].legend(frameon=False, fontsize=9)
    return figure


def optimum(expert: Sequence[float], alpha: float) -> np.ndarray:
    """The distribution [N] that TrSFT ends at, given the expert's [N]: the minimum of E_{c ~
    expert} l(p(c)) (arXiv 2512.17636, Prop. 1).

    The loss is convex, so the minimum is where the slope expert / max(p, alpha) is one number,
    lambda, on all that is kept, and at most that on the rest. Likeliest first, a token joins while
    its slope at 0, expert / alpha, is over lambda. One that joins and would then be under alpha
    stays on the boundary, where its slope does not depend on p: it gets what the others leave.
    """
    expert = np.asarray(expert, float)
    kept = 0.0  # lambda; without a boundary token the expert's mass on what is kept
    for share in sorted(expert, reverse=True):
        kept = min(kept + share, max(kept, share / alpha if alpha else np.inf))
    found = np.where(expert > alpha * kept * (1 + ROUNDING), expert / kept, 0.0)
    if 1 - found.sum() > ROUNDING:
        found[np.argmax(np.where(found == 0, expert, -1.0))] = 1 - found.sum()
    return found


def optima(expert: Sequence[float], alphas: Sequence[float]) -> Figure:
    """The expert's distribution (outlined) and ``optimum`` (filled), a panel for each alpha: small
    multiples of what a slider shows one by one.
    """
    expert = np.asarray(expert, float)
    figure = Figure(
        figsize=(min(10, 3.2 * len(alphas)), 2.9), layout="constrained", facecolor="white"
    )
    for axes, alpha in zip(
        figure.subplots(1, len(alphas), sharey=True, squeeze=False).flat, alphas
    ):
        _plain(axes)
        found, places = optimum(expert, alpha), np.arange(len(expert))
        inside = (found > 0) & (found < alpha)
        axes.bar(
            places,
            found,
            0.6,
            color=np.where(inside, COLORS[1], EXPERT),
            hatch=np.where(inside, "//", ""),
            edgecolor="white",
        )
        axes.bar(places, expert, 0.8, fill=False, edgecolor=INK, linewidth=1.2)
        for place, value in zip(places, found):
            axes.annotate(
                f"{value:.4g}",
                (place, max(value, expert[place])),
                (0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8.5,
                color=INK,
            )
        axes.set(title=f"α = {alpha:.3g}", ylim=(0, 1.12), xlabel="token")
        axes.set_xticks(places, places + 1)
    figure.axes[0].set_ylabel("probability")
    figure.supxlabel(
        "outline: the expert   filled: where TrSFT ends   orange, hatched: the boundary token",
        fontsize=9,
        color=INK,
    )
    return figure


def micro_groups(groups: Sequence[Group], stages: Sequence[tuple[int, float, float]]) -> Figure:
    """A row for each problem, a cell for each rollout, and before each micro-group the decision:
    the mean return so far against its bar.

    ``stages``: (rollouts, share of the solution that is given, bar) of each micro-group. Hatched:
    the share of a rollout that an expert wrote.
    """
    figure = Figure(figsize=(10, 0.36 * len(groups) + 0.8), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.axis("off")
    x, done = QUESTION, 0
    for n, ratio, bar in stages:
        if done:
            for y, group in enumerate(groups):
                mean = group.rewards[:done].mean()
                words, weight = (
                    (f"{mean:.2f} < {bar:.2g} ▸", "bold")
                    if mean < bar
                    else (f"{mean:.2f} ≥ {bar:.2g}", "normal")
                )
                axes.text(
                    x + GAP / 2 - 0.05,
                    y,
                    words,
                    va="center",
                    ha="center",
                    fontsize=8.5,
                    fontweight=weight,
                    color=INK,
                )
            x += GAP
        axes.text(
            x + 0.45 * n,
            -0.85,
            f"L = {ratio:g}",
            ha="center",
            fontsize=9,
            fontweight="bold",
            color=INK,
        )
        for j in range(n):
            for y, group in enumerate(groups):
                _cell(axes, x + j, y, group.rollouts[done + j])
        x, done = x + n, done + n
    for y, group in enumerate(groups):
        axes.text(
            0,
            y,
            group.problem.messages[-1]["content"],
            va="center",
            fontsize=8.5,
            family="DejaVu Sans Mono",
            color=INK,
            parse_math=False,
        )
    axes.set(xlim=(0, x), ylim=(len(groups) - 0.4, -1.2))
    return figure


def _cell(axes: Axes, x: float, y: float, rollout: Rollout) -> None:
    given = 0.9 * rollout.borrowed / len(rollout.completion_ids)
    if given:
        axes.add_patch(
            Rectangle(
                (x, y - 0.36),
                given,
                0.72,
                facecolor="#bcd8f5",
                edgecolor=EXPERT,
                hatch="////",
                linewidth=0,
            )
        )
    axes.add_patch(Rectangle((x, y - 0.36), 0.9, 0.72, fill=False, edgecolor=INK, linewidth=0.9))
    axes.text(
        x + 0.45,
        y,
        "✓" if rollout.verdict.correct else "✗",
        ha="center",
        va="center",
        fontsize=9,
        color=INK,
        bbox={"boxstyle": "circle,pad=0.06", "facecolor": "white", "edgecolor": "none"},
    )


def _plain(axes: Axes) -> None:
    axes.set_facecolor("none")
    axes.tick_params(colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
