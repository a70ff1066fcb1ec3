"""Tokens as pictures, for slides and for pages that show no HTML: one group, and the credit of
several methods beside each other. Light colours only.
"""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from workbench.core import Group, Rollout
from workbench.viz.style import LIGHT, MONO, background, edge, level, shortened
from workbench.viz.texts import Decode
from workbench.viz.tokens import (
    CREDIT,
    Layer,
    Token,
    marked_as,
    step_sums,
    tokens,
    worded,
)

COLUMNS = 100  # characters in a line of tokens
LONGEST = 60  # characters of one token
# inches at one point: a character of DejaVu Sans Mono, and a line with room for the lines above and
# below its tokens
CHARACTER, LINE = 0.00836, 0.0235


Line = list[tuple[str, Token]]  # tokens side by side, each with its shown text


def group_png(
    group: Group,
    layer: Layer,
    decode: Decode,
    marks: Mapping[tuple[int, int], str] = {},
) -> bytes:
    """The rollouts below one another, each step on its own line (wrapped at COLUMNS) with its sum
    at the right. Long tokens are cut short.

    ``marks`` puts words on tokens, by (rollout, token): the failure point is framed.
    """
    rows = tokens(group, layer.values, decode)
    blocks = [list(_lines(row, COLUMNS)) for row in rows]
    width = 2 + max(
        66, *(_width("".join(t for t, _ in line)) for block in blocks for line in block)
    )
    figure, axes = _paper(width + 12, 2.4 + sum(len(block) + 1.7 for block in blocks), size=10)
    _heading(axes, layer)
    y = 2.4
    for number, (rollout, row, block) in enumerate(zip(group.rollouts, rows, blocks), 1):
        reward = f"{rollout.verdict.words} · {len(row)} tokens"
        _write(axes, 0, y, f"{number} {rollout.verdict.mark}  {reward}", color=LIGHT.dim)
        sums = [marked_as(total, layer.channel) for total in step_sums(row)]
        for line in block:
            y += 1
            _draw(axes, 0, y, line, layer, marks=marks, joined=True)
            step = line[0][1].step
            _write(axes, width + 10, y, sums[step], color=LIGHT.dim, ha="right")
            sums[step] = ""  # a step that goes on below has its sum in its first line
        y += 1.7
    # hinting would make characters wider or narrower than their places
    plain = matplotlib.rc_context({"text.hinting": "no_hinting"})
    with plain, warnings.catch_warnings(), io.BytesIO() as file:
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # drawn as a box
        figure.savefig(file, format="png", dpi=110)
        return file.getvalue()


def credit_columns(
    credits: Mapping[str, tuple[Group, Sequence[np.ndarray]]],
    decode: Decode,
    per_row: int = 4,
    width: int = 27,
    notes: Mapping[str, str] = {},
) -> Figure:
    """Several credits of one question: a column of ``width`` characters for each method, its
    attempts below one another, what the policy did not write in italics.

    ``credits``: name -> (group, [T] numbers for each rollout). Each column has its own scale: the
    methods' units are the same, their sizes are not. Blue with a line above: made more likely;
    orange with a line below: less. ``notes``: a few words beside a column's name.
    """
    columns = {name: list(_column(*credit, decode, width)) for name, credit in credits.items()}
    names = list(columns)
    shelves = [names[i : i + per_row] for i in range(0, len(names), per_row)]
    heights = [2.2 + max(len(columns[name]) for name in shelf) for shelf in shelves]
    figure, axes = _paper(per_row * width, sum(heights), size=8.5, margin=0)
    for shelf, top in zip(shelves, np.cumsum([0, *heights])):
        for place, name in enumerate(shelf):
            x = place * width + 0.5
            layer = Layer.of(CREDIT, credits[name][1])
            _write(axes, x, top + 1, name, size=10.5, weight="bold", family="DejaVu Sans")
            beside = {"size": 8, "color": LIGHT.dim, "ha": "right"}
            _write(axes, x + width - 1.5, top + 1, notes.get(name, ""), **beside)
            for y, (rollout, line) in enumerate(columns[name]):
                if line is None:
                    writer = "own" if rollout.origin == "policy" else rollout.origin
                    words = f"{rollout.verdict.mark} {writer}"
                    _write(axes, x, top + y + 2.2, words, size=8, color=LIGHT.dim)
                else:
                    _draw(axes, x, top + y + 2.2, line, layer, size=8.5, italic=rollout.borrowed)
    return figure


def _column(
    group: Group, values: Sequence, decode: Decode, width: int
) -> Iterator[tuple[Rollout, Line | None]]:
    """For each rollout a line for its heading, None, and its lines of tokens."""
    for rollout, row in zip(group.rollouts, tokens(group, values, decode)):
        yield rollout, None
        for line in _lines(row, width - 1):
            yield rollout, line


# ---- one line of tokens --------------------------------------------------------------------------


def _width(text: str) -> int:
    """In characters; those of East Asian scripts are two wide."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _lines(row: Sequence[Token], columns: int) -> Iterator[Line]:
    """The lines of one rollout: each step begins one, and goes on below where it is too long."""
    for _, step in groupby(row, key=lambda token: token.step):
        line: Line = []
        for token in step:
            shown = shortened(token.shown, min(LONGEST, columns))
            if line and _width("".join(text for text, _ in line) + shown) > columns:
                yield line
                line = []
            line.append((shown, token))
        yield line


def _paper(width: float, height: float, *, size: float, margin: float = 1) -> tuple[Figure, Axes]:
    """An empty picture of ``width`` characters and ``height`` lines of ``size`` points; its axes
    count in them.
    """
    inches = (width * size * CHARACTER, height * size * LINE)
    figure = Figure(figsize=inches, facecolor=LIGHT.paper)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-margin, width - margin), ylim=(height, -0.3 * margin))
    axes.axis("off")
    return figure, axes


def _heading(axes: Axes, layer: Layer) -> None:
    """What the colours mean, in two lines."""
    channel = layer.channel
    ends = f"colour: {channel.up}"
    if channel.signed:
        ends = f"▼ line below: {channel.down}   ▲ line above: {channel.up}"
    scale = f"{ends}   scale to {worded(layer.limit, channel)}"
    _write(axes, 0, 0.3, f"{channel.name} ({channel.unit})", size=8.5)
    _write(axes, 0, 1.1, scale, size=8.5, color=LIGHT.dim)


def _write(axes: Axes, x: float, y: float, text: str, **how) -> None:
    # the second has scripts that the first has not, such as Hebrew
    how = {"size": 10, "color": LIGHT.ink, "family": [MONO, "DejaVu Sans"], **how}
    axes.text(x, y, text, va="center", parse_math=False, **how)


# round a failure point
FRAME = {"fill": False, "edgecolor": LIGHT.ink, "linewidth": 1.4}


def _draw(
    axes: Axes,
    x: float,
    y: float,
    line: Line,
    layer: Layer,
    *,
    size: float = 10,
    italic: int = 0,
    marks: Mapping[tuple[int, int], str] = {},
    joined: bool = False,
) -> None:
    """One line of tokens from ``x`` on: of each its background, the line of its side, and its text,
    the first ``italic`` of a rollout in italics.

    ``joined``: write the ordinary letters of the line at once (a page of tokens has thousands).
    """
    signed = layer.channel.signed
    boxes, paper, sides, ink, words = [], [], [], [], ""
    start = x
    for shown, token in line:
        width = _width(shown)
        shade = level(token.value, layer.limit)
        if shade:
            left, right, top, foot = x, x + width, y - 0.42, y + 0.42
            boxes.append([(left, top), (right, top), (right, foot), (left, foot)])
            paper.append(background(shade, LIGHT, signed))
            side = y - 0.42 if signed and shade > 0 else y + 0.42
            sides.append([(x, side), (x + width, side)])
            ink.append(edge(shade, LIGHT, signed))
        if "failure point" in marks.get((token.rollout, token.index), ""):
            axes.add_patch(Rectangle((x, y - 0.45), width, 0.9, **FRAME))
        plain = joined and shown.isascii()
        words += shown if plain else " " * width
        if not plain:
            style = "italic" if token.index < italic else "normal"
            _write(axes, x + width / 2, y, shown, ha="center", size=size, style=style)
        x += width
    # autolim: the axes have their ends
    axes.add_collection(PolyCollection(boxes, facecolors=paper, linewidths=0), autolim=False)
    dash = "-" if signed else ":"
    lines = LineCollection(sides, colors=ink, linewidths=1.4, linestyles=dash, capstyle="butt")
    axes.add_collection(lines, autolim=False)
    if words.strip():
        _write(axes, start, y, words, size=size)
