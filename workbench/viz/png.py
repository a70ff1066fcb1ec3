"""A token heat map as a PNG: for slides and for pages that show no HTML. Light colours only."""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections.abc import Callable, Mapping

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from workbench.core import Group
from workbench.viz.tokens import (
    LIGHT,
    Layer,
    background,
    level,
    marked_as,
    step_sums,
    tokens,
    visible,
    worded,
)

COLUMNS = 100  # characters in a line of tokens
LONGEST = 60  # characters of one token
# inches: DejaVu Sans Mono at 10 points, and a line of it with room for the lines above and below
CHARACTER, LINE = 0.0836, 0.235


def group_png(
    group: Group,
    layer: Layer,
    decode: Callable[[int], str],
    marks: Mapping[tuple[int, int], str] = {},
) -> bytes:
    """The rollouts below one another, each step on its own line (wrapped at COLUMNS) with its sum
    at the right. Long tokens are cut short.
    """
    places, heads, sums, y = [], [], [], 2.4
    for rollout, row in zip(group.rollouts, tokens(group, layer.values, decode)):
        verdict = rollout.verdict
        heads.append(
            (
                y,
                f"{row[0].rollout + 1} {'✓' if verdict.correct else '✗'}  reward "
                f"{verdict.reward:g} · {len(row)} tokens",
            )
        )
        for step, total in enumerate(step_sums(row)):
            y, x = y + 1, 0
            sums.append((y, marked_as(total, layer.channel)))
            for token in (t for t in row if t.step == step):
                text = visible(token.text)
                text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
                width = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
                if x and x + width > COLUMNS:
                    y, x = y + 1, 0
                places.append((x, y, width, text, token))
                x += width
        y += 1.7
    return _draw(layer, places, heads, sums, marks, y)


def _draw(layer: Layer, places, heads, sums, marks, lines: float) -> bytes:
    wide = max([x + width for x, _, width, _, _ in places] + [66]) + 2
    figure = Figure(figsize=((wide + 12) * CHARACTER, lines * LINE), facecolor=LIGHT.paper)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-1, wide + 11), ylim=(lines, -0.3))
    axes.axis("off")
    write = lambda x, y, text, **how: axes.text(  # noqa: E731
        x,
        y,
        text,
        **{
            "family": "DejaVu Sans Mono",
            "fontsize": 10,
            "color": LIGHT.ink,
            "va": "center",
            "parse_math": False,
        }
        | how,
    )
    channel = layer.channel
    ends = (
        f"▼ line below: {channel.down}   ▲ line above: {channel.up}"
        if channel.signed
        else f"colour: {channel.up}"
    )
    write(0, 0.3, f"{channel.name} ({channel.unit})", fontsize=8.5)
    write(
        0, 1.1, f"{ends}   scale to {worded(layer.limit, channel)}", color=LIGHT.dim, fontsize=8.5
    )
    for y, text in heads:
        write(0, y, text, color=LIGHT.dim)
    for y, total in sums:
        write(wide + 10, y, total, color=LIGHT.dim, ha="right")
    for x, y, width, text, token in places:
        shade, mark = level(token.value, layer.limit), marks.get((token.rollout, token.index), "")
        if shade:
            axes.add_patch(
                Rectangle(
                    (x, y - 0.42),
                    width,
                    0.84,
                    color=background(shade, LIGHT, channel.signed),
                    linewidth=0,
                )
            )
            edge = (
                LIGHT.size_line
                if not channel.signed
                else LIGHT.up_line
                if shade > 0
                else LIGHT.down_line
            )
            height = y - 0.42 if channel.signed and shade > 0 else y + 0.42
            axes.plot(
                (x, x + width),
                (height, height),
                color=edge,
                linewidth=1.4,
                solid_capstyle="butt",
                linestyle="-" if channel.signed else ":",
            )
        if "failure point" in mark:
            axes.add_patch(
                Rectangle((x, y - 0.45), width, 0.9, fill=False, edgecolor=LIGHT.ink, linewidth=1.4)
            )
        write(x + width / 2, y, text, ha="center")
    with warnings.catch_warnings(), io.BytesIO() as file:
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # drawn as a box
        figure.savefig(file, format="png", dpi=110)
        return file.getvalue()
