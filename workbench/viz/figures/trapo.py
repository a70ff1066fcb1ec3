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
from workbench.viz.style import COLORS, HATCHES, INK, MONO, frame, line_style, sheet

EXPERT = COLORS[0]
EXPERT_LIGHT = "#bcd8f5"
ROUNDING = 1e-9  # what is no more than this is rounding and no boundary token
QUESTION, GAP = 2.6, 1.9  # widths of the question and of a decision; a rollout is 1 wide


def gradient_weights(p: np.ndarray, weights: Mapping[str, np.ndarray]) -> Figure:
    """[N] weights of grad log p in -grad loss, by name, against the [N] probabilities p of the
    token: the same lines over p and over log p.
    """
    figure = sheet(10, 3.4)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, scale, start in ((left, "linear", 0), (right, "log", p.min())):
        frame(axes, "", f"p of the expert's token ({scale})")
        for i, (name, weight) in enumerate(weights.items()):
            axes.plot(p, weight, linewidth=2.2, label=name, **line_style(i))
        axes.set(xscale=scale, xlim=(start, 1), ylim=(0, 1.06))
    left.set_ylabel("weight of ∇ log p")
    right.legend(frameon=False, fontsize=9)
    return figure


def optimum(expert: Sequence[float], alpha: float) -> np.ndarray:
    """The distribution [N] that TrSFT ends at, given the expert's [N]: the minimum of E_{c ~
    expert} l(p(c)) (arXiv 2512.17636, Prop. 1).

    The loss is convex, so the minimum is where the slope expert / max(p, alpha) is one number,
    lambda, on the support, and at most that on the rest. Likeliest first, a token joins while its
    slope at 0, expert / alpha, is over lambda. One that joins and would then be under alpha stays
    on the boundary, where its slope does not depend on p: it gets what the others leave.
    """
    expert = np.asarray(expert, float)
    slope = 0.0  # lambda; without a boundary token the expert's mass on the support
    for share in sorted(expert, reverse=True):
        slope = min(slope + share, max(slope, share / alpha if alpha else np.inf))
    policy = np.where(expert > alpha * slope * (1 + ROUNDING), expert / slope, 0.0)
    left = 1 - policy.sum()
    if left > ROUNDING:
        policy[np.argmax(np.where(policy == 0, expert, -1.0))] = left
    return policy


def optima(expert: Sequence[float], alphas: Sequence[float]) -> Figure:
    """The expert's distribution (outlined) and ``optimum`` (filled), a panel for each alpha: small
    multiples of what a slider shows one by one.
    """
    expert = np.asarray(expert, float)
    tokens = np.arange(1, len(expert) + 1)
    figure = sheet(min(10, 3.2 * len(alphas)), 2.9)
    panels = figure.subplots(1, len(alphas), sharey=True, squeeze=False).flat
    for axes, alpha in zip(panels, alphas):
        frame(axes, f"α = {alpha:.3g}", "token")
        policy = optimum(expert, alpha)
        boundary = (policy > 0) & (policy < alpha)
        axes.bar(
            tokens,
            policy,
            0.6,
            color=np.where(boundary, COLORS[1], EXPERT),
            hatch=np.where(boundary, HATCHES[1], HATCHES[0]),
            edgecolor="white",
        )
        axes.bar(tokens, expert, 0.8, fill=False, edgecolor=INK, linewidth=1.2)
        for token, share, height in zip(tokens, policy, np.maximum(policy, expert)):
            axes.annotate(
                f"{share:.4g}",
                (token, height),
                (0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8.5,
                color=INK,
            )
        axes.set_ylim(0, 1.12)
        axes.set_xticks(tokens)
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
    figure = sheet(10, 0.36 * len(groups) + 0.8)
    axes = figure.subplots()
    axes.axis("off")
    for row, group in enumerate(groups):
        question = group.problem.messages[-1]["content"]
        _write(axes, 0, row, question, ha="left", family=MONO, parse_math=False)
    x, first = QUESTION, 0
    for size, ratio, bar in stages:
        if first:
            for row, group in enumerate(groups):
                mean = group.rewards[:first].mean()
                _decision(axes, x + GAP / 2 - 0.05, row, mean, bar)
            x += GAP
        _write(axes, x + 0.45 * size, -0.95, f"L = {ratio:g}", fontsize=9, fontweight="bold")
        for row, group in enumerate(groups):
            for i, rollout in enumerate(group.rollouts[first : first + size]):
                _cell(axes, x + i, row, rollout)
        x += size
        first += size
    axes.set(xlim=(0, x), ylim=(len(groups) - 0.4, -1.2))
    return figure


def _write(axes: Axes, x: float, row: float, text: str, **how) -> None:
    axes.text(x, row, text, **{"va": "center", "ha": "center", "fontsize": 8.5, "color": INK} | how)


def _decision(axes: Axes, x: float, row: int, mean: float, bar: float) -> None:
    """Bold: the mean return is under its bar, so an expert helps."""
    if mean < bar:
        _write(axes, x, row, f"{mean:.2f} < {bar:.2g} ▸", fontweight="bold")
    else:
        _write(axes, x, row, f"{mean:.2f} ≥ {bar:.2g}")


def _cell(axes: Axes, x: float, row: int, rollout: Rollout) -> None:
    """One rollout: the share that an expert wrote hatched, and whether it is right."""
    expert = Rectangle(
        (x, row - 0.36),
        0.9 * rollout.borrowed / len(rollout.completion_ids),
        0.72,
        facecolor=EXPERT_LIGHT,
        edgecolor=EXPERT,
        hatch="////",
        linewidth=0,
    )
    if rollout.borrowed:
        axes.add_patch(expert)
    border = Rectangle((x, row - 0.36), 0.9, 0.72, fill=False, edgecolor=INK, linewidth=0.9)
    axes.add_patch(border)
    disc = {"boxstyle": "circle,pad=0.06", "facecolor": "white", "edgecolor": "none"}
    _write(axes, x + 0.45, row, rollout.verdict.mark, fontsize=9, bbox=disc)
