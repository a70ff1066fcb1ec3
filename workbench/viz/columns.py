"""Several credits of one question beside each other: a column for each method, its attempts below
one another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from workbench.core import Group
from workbench.viz.tokens import LIGHT, background, level, robust_limit, tokens, visible

# inches: a line of text, and a character of it (DejaVu Sans Mono at 8.5 points)
LINE, CHARACTER = 0.19, 0.072
ORIGINS = {
    "policy": "own",
    "expert": "expert",
    "guided": "guided",
    "correction": "correction",
    "edited": "edited",
}


def columns(
    credits: Mapping[str, tuple[Group, Sequence[np.ndarray]]],
    decode: Callable[[int], str],
    per_row: int = 4,
    width: int = 27,
) -> Figure:
    """name -> (group, [T] numbers for each rollout).

    Each column has its own scale, the 99th percentile of its numbers: the methods' units are the
    same, their sizes are not. Blue with a line above: made more likely; orange with a line below:
    less.
    """
    blocks = {
        name: _lines(group, values, decode, width - 1) for name, (group, values) in credits.items()
    }
    names = list(blocks)
    rows = [names[i : i + per_row] for i in range(0, len(names), per_row)]
    heights = [max(len(blocks[name]) for name in row) + 2.2 for row in rows]
    figure = Figure(
        figsize=(per_row * width * CHARACTER, sum(heights) * LINE), facecolor=LIGHT.paper
    )
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, per_row * width), ylim=(sum(heights), 0))
    axes.axis("off")
    for row, top in zip(rows, np.cumsum([0, *heights])):
        for i, name in enumerate(row):
            axes.text(
                i * width + 0.5,
                top + 1,
                name,
                fontsize=10.5,
                fontweight="bold",
                color=LIGHT.ink,
                va="center",
            )
            limit = robust_limit(v for values in credits[name][1] for v in values)
            for y, line in enumerate(blocks[name]):
                _draw(axes, i * width + 0.5, top + 2.2 + y, line, limit)
    return figure


def _lines(
    group: Group, values: Sequence[np.ndarray], decode: Callable[[int], str], width: int
) -> list:
    """A heading (text) or a line of (shown text, value, borrowed) for each line of the column; a
    step longer than ``width`` characters goes on below.
    """
    found: list = []
    for rollout, row in zip(group.rollouts, tokens(group, values, decode)):
        found.append(f"{'✓' if rollout.verdict.correct else '✗'} {ORIGINS[rollout.origin]}")
        for step in dict.fromkeys(token.step for token in row):
            line: list = []
            for token in (token for token in row if token.step == step):
                text = visible(token.text)
                if line and sum(len(shown) for shown, *_ in line) + len(text) > width:
                    found.append(line)
                    line = []
                line.append((text, token.value, token.index < rollout.borrowed))
            found.append(line)
    return found


def _draw(axes, x: float, y: float, line, limit: float) -> None:
    if isinstance(line, str):
        axes.text(x, y, line, fontsize=8, color=LIGHT.dim, va="center", family="DejaVu Sans Mono")
        return
    for text, value, borrowed in line:
        shade = level(value, limit)
        if shade:
            axes.add_patch(
                Rectangle(
                    (x, y - 0.42), len(text), 0.84, color=background(shade, LIGHT), linewidth=0
                )
            )
            edge = y - 0.42 if shade > 0 else y + 0.42
            axes.plot(
                (x, x + len(text)),
                (edge, edge),
                color=LIGHT.up_line if shade > 0 else LIGHT.down_line,
                linewidth=1.2,
                solid_capstyle="butt",
            )
        axes.text(
            x + len(text) / 2,
            y,
            text,
            fontsize=8.5,
            ha="center",
            va="center",
            color=LIGHT.ink,
            family="DejaVu Sans Mono",
            style="italic" if borrowed else "normal",
            parse_math=False,
        )
        x += len(text)
