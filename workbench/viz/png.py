"""Tokens as pictures, for slides and for pages that show no HTML: one group, and the credit of
several methods beside each other. Light colours only.
"""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from workbench.core import Group, Rollout
from workbench.viz.style import LIGHT, MONO, background, edge, level, shortened
from workbench.viz.tokens import (
    CREDIT,
    Channel,
    Layer,
    Token,
    marked_as,
    step_sums,
    tokens,
    visible,
    worded,
)

COLUMNS = 100  # characters in a line of tokens
LONGEST = 60  # characters of one token
# inches at one point: a character of DejaVu Sans Mono, and a line with room for the lines above and
# below its tokens
CHARACTER, LINE = 0.00836, 0.0235


class _Placed(NamedTuple):
    """A token in its line: the place and width of its shown text, in characters."""

    x: int
    width: int
    shown: str
    token: Token


def group_png(
    group: Group,
    layer: Layer,
    decode: Callable[[int], str],
    marks: Mapping[tuple[int, int], str] = {},
) -> bytes:
    """The rollouts below one another, each step on its own line (wrapped at COLUMNS) with its sum
    at the right. Long tokens are cut short.

    ``marks`` puts words on tokens, by (rollout, token): the failure point is framed.
    """
    rows = tokens(group, layer.values, decode)
    blocks = [list(_lines(row, COLUMNS)) for row in rows]
    ends = [line[-1].x + line[-1].width for block in blocks for line in block]
    width = max(*ends, 66) + 2
    figure, axes = _paper(width + 12, 2.4 + sum(len(block) + 1.7 for block in blocks), size=10)
    _heading(axes, layer)
    y = 2.4
    for rollout, row, block in zip(group.rollouts, rows, blocks):
        name = f"{row[0].rollout + 1} {_mark(rollout)}"
        words = f"{name}  reward {rollout.verdict.reward:g} · {len(row)} tokens"
        _write(axes, 0, y, words, color=LIGHT.dim)
        sums = step_sums(row)
        step = -1
        for line in block:
            y += 1
            if line[0].token.step > step:
                step = line[0].token.step
                total = marked_as(sums[step], layer.channel)
                _write(axes, width + 10, y, total, color=LIGHT.dim, ha="right")
            for placed in line:
                _color(axes, placed.x, y, placed, layer)
                if "failure point" in marks.get((placed.token.rollout, placed.token.index), ""):
                    _frame(axes, placed.x, y, placed.width)
        y += 1.7
    with warnings.catch_warnings(), io.BytesIO() as file:
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # drawn as a box
        figure.savefig(file, format="png", dpi=110)
        return file.getvalue()


def credit_columns(
    credits: Mapping[str, tuple[Group, Sequence[np.ndarray]]],
    decode: Callable[[int], str],
    per_row: int = 4,
    width: int = 27,
) -> Figure:
    """Several credits of one question: a column of ``width`` characters for each method, its
    attempts below one another, what the policy did not write in italics.

    ``credits``: name -> (group, [T] numbers for each rollout). Each column has its own scale: the
    methods' units are the same, their sizes are not. Blue with a line above: made more likely;
    orange with a line below: less.
    """
    layers = {name: Layer.of(CREDIT, values) for name, (_, values) in credits.items()}
    blocks = {}
    for name, (group, values) in credits.items():
        rows = tokens(group, values, decode)
        blocks[name] = [list(_lines(row, width - 1)) for row in rows]
    names = list(credits)
    shelves = [names[i : i + per_row] for i in range(0, len(names), per_row)]
    heights = []
    for shelf in shelves:
        heights.append(2.2 + max(sum(len(block) + 1 for block in blocks[name]) for name in shelf))
    figure, axes = _paper(per_row * width, sum(heights), size=8.5, margin=0)
    for shelf, top in zip(shelves, np.cumsum([0, *heights])):
        for column, name in enumerate(shelf):
            x = column * width + 0.5
            axes.text(x, top + 1, name, fontsize=10.5, weight="bold", color=LIGHT.ink, va="center")
            _column(axes, x, top + 2.2, credits[name][0], blocks[name], layers[name])
    return figure


def _column(axes: Axes, x: float, y: float, group: Group, blocks: Sequence, layer: Layer) -> None:
    """The attempts of one method below one another, from the line ``y`` on."""
    for rollout, block in zip(group.rollouts, blocks):
        writer = "own" if rollout.origin == "policy" else rollout.origin
        words = f"{_mark(rollout)} {writer}"
        _write(axes, x, y, words, size=8, color=LIGHT.dim)
        for line in block:
            y += 1
            for placed in line:
                borrowed = placed.token.index < rollout.borrowed
                style = "italic" if borrowed else "normal"
                _color(axes, x + placed.x, y, placed, layer, size=8.5, style=style)
        y += 1


# ---- one line of tokens --------------------------------------------------------------------------


def _mark(rollout: Rollout) -> str:
    return "✓" if rollout.verdict.correct else "✗"


def _lines(row: Sequence[Token], columns: int) -> Iterator[list[_Placed]]:
    """The lines of one rollout: each step begins one, and goes on below where it is too long."""
    for _, step in groupby(row, key=lambda token: token.step):
        line: list[_Placed] = []
        x = 0
        for token in step:
            shown = shortened(visible(token.text), min(LONGEST, columns))
            width = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in shown)
            if line and x + width > columns:
                yield line
                line, x = [], 0
            line.append(_Placed(x, width, shown, token))
            x += width
        yield line


def _paper(width: float, height: float, *, size: float, margin: float = 1) -> tuple[Figure, Axes]:
    """An empty picture of ``width`` characters and ``height`` lines of ``size`` points; its axes
    count in them.
    """
    figsize = (width * size * CHARACTER, height * size * LINE)
    figure = Figure(figsize=figsize, facecolor=LIGHT.paper)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-margin, width - margin), ylim=(height, -0.3 * margin))
    axes.axis("off")
    return figure, axes


def _heading(axes: Axes, layer: Layer) -> None:
    """What the colours mean, in two lines."""
    channel: Channel = layer.channel
    ends = f"colour: {channel.up}"
    if channel.signed:
        ends = f"▼ line below: {channel.down}   ▲ line above: {channel.up}"
    scale = f"{ends}   scale to {worded(layer.limit, channel)}"
    _write(axes, 0, 0.3, f"{channel.name} ({channel.unit})", size=8.5)
    _write(axes, 0, 1.1, scale, size=8.5, color=LIGHT.dim)


def _write(axes: Axes, x: float, y: float, text: str, **how) -> None:
    how = {"size": 10, "color": LIGHT.ink, **how}
    axes.text(x, y, text, family=MONO, va="center", parse_math=False, **how)


def _color(axes: Axes, x: float, y: float, placed: _Placed, layer: Layer, **how) -> None:
    """One token at ``x``: its background, the line of its side, and its text."""
    signed = layer.channel.signed
    shade = level(placed.token.value, layer.limit)
    width = placed.width
    if shade:
        color = background(shade, LIGHT, signed)
        axes.add_patch(Rectangle((x, y - 0.42), width, 0.84, color=color, linewidth=0))
        height = y - 0.42 if signed and shade > 0 else y + 0.42
        axes.plot(
            (x, x + width),
            (height, height),
            color=edge(shade, LIGHT, signed),
            linewidth=1.4,
            linestyle="-" if signed else ":",
            solid_capstyle="butt",
        )
    _write(axes, x + width / 2, y, placed.shown, ha="center", **how)


def _frame(axes: Axes, x: float, y: float, width: float) -> None:
    how = {"fill": False, "edgecolor": LIGHT.ink, "linewidth": 1.4}
    axes.add_patch(Rectangle((x, y - 0.45), width, 0.9, **how))
