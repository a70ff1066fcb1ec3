"""A number on every token, drawn: a group of rollouts as static HTML that needs no script, in light and in dark.

Blue with a line above the token is positive, orange with a line below is negative, so nothing rests on colour alone. The scale is
symmetric and robust. Tokens are what a model wrote: they are always escaped, and white space and control characters are made visible.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import numpy as np

from workbench.core import Group, Rollout

LEVELS = 8  # shades on each side of zero
FAINT = 1 / 200  # of the scale's end: a smaller number is drawn like 0 (its tooltip still has it)
MARKS = {1: "▲", -1: "▼", 0: "·"}
_SHOWN = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}


@dataclass(frozen=True)
class Channel:
    """What the numbers are, and what a positive and a negative one mean, in the legend's words."""

    name: str
    unit: str
    up: str
    down: str


CREDIT = Channel("realised credit", "the factor on ∇ log π of the token in the update", "made more likely", "made less likely")


@dataclass(frozen=True)
class Theme:
    paper: str
    ink: str
    dim: str
    up: str  # the strongest background on either side of zero, and the line that goes with it
    down: str
    up_line: str
    down_line: str


LIGHT = Theme("#ffffff", "#17191d", "#5b6068", "#74b4ff", "#ffa352", "#0a4fa8", "#9c4400")
DARK = Theme("#17191d", "#f2f3f5", "#a6abb4", "#1c5cab", "#964700", "#93c5ff", "#ffbd82")


class Token(NamedTuple):
    """One completion token. ``step`` counts lines: a step ends with a token that holds a line break."""

    rollout: int
    step: int
    index: int
    id: int
    text: str
    logprob: float
    value: float


def tokens(group: Group, painting: Sequence[Sequence[float]], decode: Callable[[int], str]) -> list[list[Token]]:
    """The tokens of each rollout with their numbers: what the heat map draws. A rollout without numbers gets NaN."""
    if len(painting) != len(group.rollouts):
        raise ValueError(f"{len(painting)} lists of numbers for {len(group.rollouts)} rollouts")
    found = []
    for number, (rollout, values) in enumerate(zip(group.rollouts, painting)):
        values = list(values) or [math.nan] * len(rollout.completion_ids)
        if len(values) != len(rollout.completion_ids):
            raise ValueError(f"{len(values)} numbers for the {len(rollout.completion_ids)} tokens of rollout {number}")
        row, step = [], 0
        for index, (token, logprob, value) in enumerate(zip(rollout.completion_ids, rollout.logprobs, values)):
            text = decode(token)
            row.append(Token(number, step, index, token, text, logprob, math.nan if value is None else float(value)))
            step += "\n" in text
        found.append(row)
    return found


def step_sums(row: Sequence[Token]) -> list[float]:
    """The numbers of one rollout summed per step; NaN where a step has none."""
    sums = [math.nan] * (row[-1].step + 1)
    for token in row:
        if math.isfinite(token.value):
            sums[token.step] = token.value + (sums[token.step] if math.isfinite(sums[token.step]) else 0.0)
    return sums


def robust_limit(values: Iterable[float]) -> float:
    """Where the symmetric scale ends: the largest size, or three times the root mean square of the non-zero numbers if that is less, so
    that a few outliers do not pale the rest. 1 when there is nothing to scale."""
    sizes = np.abs(np.fromiter((v for v in values if math.isfinite(v) and v), float))
    return float(min(sizes.max(), 3 * np.sqrt(np.mean(sizes**2)))) if len(sizes) else 1.0


def level(value: float, limit: float) -> int:
    """-LEVELS ... LEVELS. Every number that is not faint is at least one shade away from zero."""
    if not math.isfinite(value) or abs(value) < FAINT * limit:
        return 0
    return int(math.copysign(min(LEVELS, max(1, math.ceil(abs(value) / limit * LEVELS))), value))


def background(shade: int, theme: Theme) -> str:
    """#rrggbb of a level: a straight mix of the paper with the colour of its sign."""
    share = abs(shade) / LEVELS
    ends = zip(_channels(theme.paper), _channels(theme.up if shade > 0 else theme.down))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in ends)


def _channels(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i: i + 2], 16) for i in (1, 3, 5))


def visible(text: str) -> str:
    """Text with its white space, control and direction characters made visible (U+202E would turn the page around)."""
    return "".join(_SHOWN.get(c) or (f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c)
                   for c in text) or "∅"


def signed(value: float, digits: int = 2) -> str:
    """+1.73, −0.38, 0, or "none" for a number that is not there."""
    if not math.isfinite(value):
        return "none"
    return f"{value:+.{digits}f}".replace("-", "−") if value else "0"


def marked(value: float, digits: int = 2) -> str:
    """``signed`` with a triangle that says the sign again."""
    return f"{MARKS[int(np.sign(value)) if math.isfinite(value) else 0]} {signed(value, digits)}"


def group_html(group: Group, painting: Sequence[Sequence[float]], decode: Callable[[int], str], *, channel: Channel = CREDIT,
               limit: float | None = None, labels: Sequence[str] = ()) -> str:
    """The question and its rollouts, in the order given, each with its reward, its painted tokens, and the sum of every step.

    ``limit`` fixes the ends of the scale (to compare two maps); ``labels`` name the rollouts instead of their numbers.
    """
    rows = tokens(group, painting, decode)
    values = [token.value for row in rows for token in row]
    limit = limit or robust_limit(values)
    longest = max((sum(len(visible(t.text)) for t in row if t.step == s) for row in rows for s in range(row[-1].step + 1)), default=0)
    cards = "".join(_card(rollout, row, labels[i] if labels else str(i + 1), channel, limit)
                    for i, (rollout, row) in enumerate(zip(group.rollouts, rows)))
    question = "".join(f'<div class="wb-q">{escape(m["role"])}: <b>{escape(visible(m["content"]))}</b></div>' for m in group.problem.messages)
    return (f'<figure class="wb-heat" dir="ltr" style="{_box(LIGHT)}"><style>{_CSS}</style>{_legend(values, limit, channel)}{question}'
            f'<div class="wb-grid" style="--wb-card:{min(max(longest + 10, 24), 100)}ch">{cards}</div></figure>')


def _card(rollout: Rollout, row: Sequence[Token], label: str, channel: Channel, limit: float) -> str:
    verdict = rollout.verdict
    notes = [f"reward {verdict.reward:g}", f"{len(row)} tokens"]
    notes += [rollout.origin] if rollout.origin != "policy" else []
    notes += [f"{rollout.borrowed} borrowed"] if rollout.borrowed else []
    notes += [] if rollout.finished else ["cut off"]
    lines = []
    for step, total in enumerate(step_sums(row)):
        spans = "".join(_token(t, rollout, len(row), channel, limit) for t in row if t.step == step)
        lines.append(f'<div class="wb-line"><span class="wb-toks">{spans}</span>'
                     f'<span class="wb-sum" title="{escape(channel.name)} summed over step {step + 1}"> {marked(total)}</span></div>')
    mark = "✓" if verdict.correct else "✗"
    return (f'<section class="wb-card"><div class="wb-head"><b>{escape(label)}</b> <b class="wb-mark">{mark}</b> '
            f'{escape(" · ".join(notes))}</div>{"".join(lines)}</section>')


def _token(token: Token, rollout: Rollout, total: int, channel: Channel, limit: float) -> str:
    shade = level(token.value, limit)
    shown = visible(token.text)
    parts = [f"“{shown[:40]}{'…' if len(shown) > 40 else ''}”", f"token {token.index + 1} of {total}", f"id {token.id}"]
    if math.isfinite(token.logprob):
        parts.append(f"log-prob {signed(token.logprob, 3)} (p = {math.exp(token.logprob):.3f})")
    if token.index < rollout.borrowed:
        parts.append("borrowed: not written by the policy")
    parts.append(f"{channel.name} {signed(token.value, 3)}")
    label = escape(", ".join(parts))
    kind = f"wb-{'u' if shade > 0 else 'd'}{abs(shade)}" if shade else "wb-none" if math.isnan(token.value) else "wb-0"
    return (f'<span class="wb-t {kind}" role="img" title="{label}" aria-label="{label}"'
            f'{f""" style="{_paint(shade, LIGHT)}" """.rstrip() if shade else ""}>{escape(shown)}</span>')


def _legend(values: Sequence[float], limit: float, channel: Channel) -> str:
    known = [v for v in values if math.isfinite(v)]
    if not any(known):
        return f'<figcaption>{escape(channel.name)}: {"0 on every token" if known else "no numbers"}</figcaption>'
    beyond = any(abs(v) > limit for v in known)
    faint = f" No line: smaller than {FAINT:.1%} of the scale." if any(0 < abs(v) < FAINT * limit for v in known) else ""
    sides = [sign for sign in (-1, 1) if any(v * sign > 0 for v in known)]
    shades = [s for s in range(-LEVELS, LEVELS + 1) if s == 0 or math.copysign(1, s) in sides]
    bar = "".join(f'<span class="wb-t wb-{"u" if s > 0 else "d"}{abs(s)}" style="{_paint(s, LIGHT)}">&nbsp;</span>' if s else
                  '<span class="wb-t wb-0">0</span>' for s in shades)
    low = f"▼ line below, {channel.down}: {'≤ ' if beyond else ''}{signed(-limit)} " if -1 in sides else ""
    high = f" {'≥ ' if beyond else ''}{signed(limit)}: {channel.up}, line above ▲" if 1 in sides else ""
    return (f'<figcaption><b>{escape(channel.name)}</b> ({escape(channel.unit)})<br>{escape(low)}'
            f'<span class="wb-bar" aria-hidden="true">{bar}</span>{escape(high)}.{faint} At the right of each step: the sum over its tokens.</figcaption>')


def _box(theme: Theme) -> str:
    return f"background-color:{theme.paper};color:{theme.ink}"


def _paint(shade: int, theme: Theme) -> str:
    side = f"border-top:2px solid {theme.up_line}" if shade > 0 else f"border-bottom:2px solid {theme.down_line}"
    return f"background-color:{background(shade, theme)};color:{theme.ink};{side}"


def _important(style: str) -> str:
    return style.replace(";", "!important;") + "!important"


def _css() -> str:
    """Light colours are also on the elements themselves, for viewers that drop style sheets; the dark ones override them."""
    dark = "".join(f".wb-heat .wb-{'u' if s > 0 else 'd'}{abs(s)}{{{_important(_paint(s, DARK))}}}"
                   for s in range(-LEVELS, LEVELS + 1) if s)
    return f"""
.wb-heat{{margin:1em 0;padding:.8em;border-radius:6px;font:14px/1.5 system-ui,sans-serif}}
.wb-heat figcaption,.wb-head,.wb-sum{{color:{LIGHT.dim};font-size:13px}}
.wb-heat figcaption{{margin-bottom:.7em}}
.wb-heat b{{color:{LIGHT.ink}}}
.wb-q{{margin:.3em 0 .7em;overflow-wrap:anywhere}}
.wb-q b,.wb-toks,.wb-bar,.wb-sum{{font-family:ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace}}
.wb-grid{{display:grid;gap:.7em;grid-template-columns:repeat(auto-fill,minmax(min(100%,var(--wb-card)),1fr))}}
.wb-card{{border:1px solid {LIGHT.dim}66;border-radius:6px;padding:.5em .7em;min-width:0}}
.wb-head{{margin-bottom:.35em}}
.wb-line{{display:flex;justify-content:space-between;gap:1em;align-items:baseline}}
.wb-toks{{min-width:0}}
.wb-sum{{white-space:nowrap}}
.wb-t{{display:inline-block;max-width:100%;overflow-wrap:anywhere;unicode-bidi:isolate;white-space:pre-wrap;
 border-top:2px solid transparent;border-bottom:2px solid transparent;line-height:1.35;margin-bottom:1px;min-width:.6em;text-align:center}}
.wb-none{{outline:1px dotted {LIGHT.dim};outline-offset:-2px}}
@media(prefers-color-scheme:dark){{
.wb-heat{{{_important(_box(DARK))}}}
.wb-heat figcaption,.wb-head,.wb-sum{{color:{DARK.dim}}}
.wb-heat b{{color:{DARK.ink}}}
.wb-card{{border-color:{DARK.dim}66}}
.wb-none{{outline-color:{DARK.dim}}}
{dark}}}
@media print{{.wb-t{{-webkit-print-color-adjust:exact;print-color-adjust:exact}}}}"""


_CSS = _css()
