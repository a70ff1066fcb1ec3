"""How everything here looks: colours, line styles, and one way to frame the axes of a figure.

Blue and above is positive, orange and below negative, violet a size without a sign. Colours of
lines differ in their styles too, hold on light and dark paper, and are told apart by the
colour-blind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

# ---- tokens: shades of a number ------------------------------------------------------------------

LEVELS = 8  # shades on each side of zero
FAINT = 1 / 200  # of the scale's end: a smaller number is drawn like 0 (its tooltip still has it)


@dataclass(frozen=True)
class Theme:
    paper: str
    ink: str
    dim: str
    up: str  # the strongest background on either side of zero, and the line that goes with it
    down: str
    up_line: str
    down_line: str
    size: str  # the strongest background of a one-sided scale, and its line
    size_line: str


LIGHT = Theme(
    paper="#ffffff",
    ink="#17191d",
    dim="#5b6068",
    up="#74b4ff",
    down="#ffa352",
    up_line="#0a4fa8",
    down_line="#9c4400",
    size="#c4a3f5",
    size_line="#6332ad",
)
DARK = Theme(
    paper="#17191d",
    ink="#f2f3f5",
    dim="#a6abb4",
    up="#1c5cab",
    down="#964700",
    up_line="#93c5ff",
    down_line="#ffbd82",
    size="#6a45a8",
    size_line="#cfb3ff",
)


def level(value: float, limit: float) -> int:
    """The shade of a number on a scale that ends at ``limit``: -LEVELS ... LEVELS.

    Every number that is not faint is at least one shade away from zero.
    """
    if not math.isfinite(value) or abs(value) < FAINT * limit:
        return 0
    shade = math.ceil(abs(value) / limit * LEVELS)
    return int(math.copysign(min(LEVELS, max(1, shade)), value))


def background(shade: int, theme: Theme, signed: bool = True) -> str:
    """#rrggbb of a level: a straight mix of the paper with the colour of its sign, or of sizes."""
    strongest = theme.size if not signed else theme.up if shade > 0 else theme.down
    share = abs(shade) / LEVELS
    ends = zip(rgb(theme.paper), rgb(strongest))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in ends)


def edge(shade: int, theme: Theme, signed: bool = True) -> str:
    """The colour of the line that says the sign of a level again."""
    if not signed:
        return theme.size_line
    return theme.up_line if shade > 0 else theme.down_line


def rgb(color: str) -> tuple[int, ...]:
    """Red, green and blue, 0 to 255, of #rrggbb."""
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


# ---- figures -------------------------------------------------------------------------------------

# what figures draw their text and axes in; on a page it becomes the page's own ink
INK = "#3d4148"
# each at least 3 : 1 against white and against near-black
COLORS = ("#2878c8", "#d06a00", "#0f8f74", "#b0528f", "#80762a")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = "osD^vPX*"
HATCHES = ("", "//")
MONO = "DejaVu Sans Mono"
SMOOTH = 5  # steps in the running mean of the training rollouts

# arms that look the same in every figure, whatever else is in it
ARMS = (
    "grpo",
    "sdpo",
    "tapo",
    "trapo",
    "scope",
    "grpo-tokens",
    "opd",
    "luffy",
    "kd",
    "sft",
    "base",
    "sft-then-rl",
    "grpo-paper",
    "opd-1",
    "tapo-cold",
    "grpo-cold",
)


def line_style(number: int) -> dict:
    """Colour and line style of the line with this number: neighbours differ in both."""
    return {
        "color": COLORS[number % len(COLORS)],
        # after a round of the colours, each comes with another style
        "linestyle": STYLES[(number + number // len(COLORS)) % len(STYLES)],
    }


def look(arm: str, others: Sequence[str]) -> dict:
    """Colour, line style and marker of an arm, the same in every figure for those in ARMS.

    No two of 40 are alike, neighbours differ in all.
    """
    strangers = [name for name in dict.fromkeys(others) if name not in ARMS]
    number = ARMS.index(arm) if arm in ARMS else len(ARMS) + strangers.index(arm)
    style = {**line_style(number), "marker": MARKERS[number % len(MARKERS)]}
    return {**style, "color": INK} if arm == "base" else style


class Sheet(Figure):
    """A figure whose words are words: a $ in the name of a run begins no formula."""

    def draw(self, renderer) -> None:
        for text in self.findobj(Text):
            # those of a logarithmic axis are matplotlib's own
            text.set_parse_math(text.get_text().startswith(r"$\mathdefault"))
        super().draw(renderer)


def sheet(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    return Sheet(figsize=(width, height), layout="constrained", facecolor="white")


def frame(
    axes: Axes, title: str = "", x: str = "", y: str = "", *, grid: str | None = None
) -> Axes:
    """The one look of axes: title, labels, two spines, and faint lines along ``grid`` (x or y)."""
    axes.set_facecolor("none")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    if grid:
        axes.grid(axis=grid, color=INK, alpha=0.15)
    return axes


def instead(axes: Axes, words: str) -> None:
    """Words in the middle of axes that have nothing to show."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", color=INK)


def label_ends(axes: Axes, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """(name, x, y, colour) of each line's end: its name right of there, moved up where it would
    touch another, and down again from the top of the axes.
    """
    low, high = axes.get_ylim()
    gap = 0.055 * (high - low)
    ends = sorted(ends, key=lambda end: end[2])
    ladder = gap * np.arange(len(ends))  # heights above it are what is free to move
    heights = np.maximum.accumulate([end[2] for end in ends] - ladder)
    heights = np.minimum(heights, high - ladder[-1:]) + ladder
    for (name, x, _, color), height in zip(ends, heights):
        beside(axes, name, (x, height), color, fontsize=9, annotation_clip=False)


def beside(axes: Axes, text: str, place: tuple[float, float], color: str = INK, **how) -> None:
    """Text a little to the right of a place in the axes."""
    how = {"va": "center", "fontsize": 8.5, **how}
    axes.annotate(text, place, (6, 0), textcoords="offset points", color=color, **how)


def interval(axes: Axes, place: float, effect, *, sure: bool = True, upright: bool = False) -> str:
    """A mark at ``effect.mean`` with a line from its ``low`` to its ``high``; gives the colour.

    Filled, blue above 0 and orange below it, where the interval leaves out 0 and the caller is
    ``sure``; hollow otherwise.
    """
    sure = sure and (effect.low > 0 or effect.high < 0)
    color = COLORS[0 if effect.mean > 0 else 1] if sure else INK
    x, y = [effect.low, effect.high, effect.mean], [place] * 3
    if upright:
        x, y = y, x
    axes.plot(x[:2], y[:2], color=color, linewidth=2)
    axes.plot(
        x[2:],
        y[2:],
        marker="o",
        color=color,
        markerfacecolor=color if sure else "white",
        markersize=7,
    )
    return color


def shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
