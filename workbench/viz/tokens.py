"""A number on every token, drawn: a group of rollouts as static HTML that needs no script, in light
and in dark.

Blue with a line above the token is positive, orange with a line below is negative, violet with a
dotted line is a size without a sign, so nothing rests on colour alone. The scale is symmetric and
robust. Tokens are what a model wrote: they are always escaped, and white space and control
characters are made visible.

Colours follow the system's light or dark setting, and JupyterLab's theme where there is one. Light
colours are also on the elements themselves, for viewers that drop style sheets (GitHub).
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    """What the numbers are, and what a positive and a negative one mean, in the legend's words.

    Not ``signed``: sizes, 0 or more.
    """

    name: str
    unit: str
    up: str
    down: str
    signed: bool = True


CREDIT = Channel(
    "realised credit",
    "the factor on ∇ log π of the token in the update",
    "made more likely",
    "made less likely",
)


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
    "#ffffff",
    "#17191d",
    "#5b6068",
    "#74b4ff",
    "#ffa352",
    "#0a4fa8",
    "#9c4400",
    "#c4a3f5",
    "#6332ad",
)
DARK = Theme(
    "#17191d",
    "#f2f3f5",
    "#a6abb4",
    "#1c5cab",
    "#964700",
    "#93c5ff",
    "#ffbd82",
    "#6a45a8",
    "#cfb3ff",
)


class Layer(NamedTuple):
    """One way to paint a group: numbers of [T] for each rollout, and where the scale ends."""

    channel: Channel
    values: Sequence[Sequence[float]]
    limit: float


class Token(NamedTuple):
    """One completion token.

    ``step`` counts lines: a step ends with a token that holds a line break.
    """

    rollout: int
    step: int
    index: int
    id: int
    text: str
    logprob: float
    value: float


def tokens(
    group: Group, values: Sequence[Sequence[float]], decode: Callable[[int], str]
) -> list[list[Token]]:
    """The tokens of each rollout with their numbers: what the heat map draws.

    A rollout without numbers gets NaN.
    """
    if len(values) != len(group.rollouts):
        raise ValueError(f"{len(values)} lists of numbers for {len(group.rollouts)} rollouts")
    found = []
    for number, (rollout, values) in enumerate(zip(group.rollouts, values)):
        values = list(values) or [math.nan] * len(rollout.completion_ids)
        if len(values) != len(rollout.completion_ids):
            raise ValueError(
                f"{len(values)} numbers for the {len(rollout.completion_ids)} tokens of "
                f"rollout {number}"
            )
        row, step = [], 0
        for index, (token, logprob, value) in enumerate(
            zip(rollout.completion_ids, rollout.logprobs, values)
        ):
            text = decode(token)
            row.append(
                Token(
                    number,
                    step,
                    index,
                    int(token),
                    text,
                    logprob,
                    math.nan if value is None else float(value),
                )
            )
            step += "\n" in text
        found.append(row)
    return found


def step_sums(row: Sequence[Token]) -> list[float]:
    """The numbers of one rollout summed per step; NaN where a step has none."""
    sums = [math.nan] * (row[-1].step + 1)
    for token in row:
        if math.isfinite(token.value):
            sums[token.step] = token.value + (
                sums[token.step] if math.isfinite(sums[token.step]) else 0.0
            )
    return sums


def robust_limit(values: Iterable[float]) -> float:
    """Where the symmetric scale ends: the largest size, or three times the root mean square of the
    non-zero numbers if that is less, so that a few outliers do not pale the rest. 1 when there is
    nothing to scale.
    """
    sizes = np.abs(np.fromiter((v for v in values if math.isfinite(v) and v), float))
    return float(min(sizes.max(), 3 * np.sqrt(np.mean(sizes**2)))) if len(sizes) else 1.0


def level(value: float, limit: float) -> int:
    """-LEVELS ... LEVELS. Every number that is not faint is at least one shade away from zero."""
    if not math.isfinite(value) or abs(value) < FAINT * limit:
        return 0
    return int(math.copysign(min(LEVELS, max(1, math.ceil(abs(value) / limit * LEVELS))), value))


def background(shade: int, theme: Theme, signed: bool = True) -> str:
    """#rrggbb of a level: a straight mix of the paper with the colour of its sign, or of sizes."""
    share = abs(shade) / LEVELS
    ends = zip(
        _channels(theme.paper),
        _channels(theme.size if not signed else theme.up if shade > 0 else theme.down),
    )
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in ends)


def _channels(color: str) -> tuple[int, ...]:
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


def visible(text: str) -> str:
    """Text with its white space, control and direction characters made visible (U+202E would turn
    the page around).
    """
    return (
        "".join(
            _SHOWN.get(c)
            or (
                f"⟨U+{ord(c):04X}⟩"
                if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
                else c
            )
            for c in text
        )
        or "∅"
    )


def signed(value: float, digits: int = 2) -> str:
    """+1.73, −0.38, 0, or "none" for a number that is not there."""
    if not math.isfinite(value):
        return "none"
    return f"{value:+.{digits}f}".replace("-", "−") if value else "0"


def marked(value: float, digits: int = 2) -> str:
    """``signed`` with a triangle that says the sign again."""
    return f"{MARKS[int(np.sign(value)) if math.isfinite(value) else 0]} {signed(value, digits)}"


def worded(value: float, channel: Channel, digits: int = 2) -> str:
    """``signed``, or without a sign where the channel has none."""
    return (
        signed(value, digits)
        if channel.signed or not math.isfinite(value) or not value
        else f"{value:.{digits}f}"
    )


def marked_as(value: float, channel: Channel) -> str:
    return marked(value) if channel.signed else worded(value, channel)


def group_html(
    group: Group,
    values: Sequence[Sequence[float]],
    decode: Callable[[int], str],
    *,
    channel: Channel = CREDIT,
    limit: float | None = None,
    labels: Sequence[str] = (),
) -> str:
    """The question and its rollouts, in the order given, each with its reward, its painted tokens,
    and the sum of every step.

    ``limit`` fixes the ends of the scale (to compare two maps); ``labels`` name the rollouts
    instead of their numbers.
    """
    return layers_html(
        group,
        [
            Layer(
                channel,
                values,
                limit or robust_limit(v for row in values for v in row if v is not None),
            )
        ],
        decode,
        labels,
    )


def layers_html(
    group: Group,
    layers: Sequence[Layer],
    decode: Callable[[int], str],
    labels: Sequence[str] = (),
    marks: Mapping[tuple[int, int], str] = {},
) -> str:
    """``group_html`` for several layers, with buttons that switch between them without a script;
    the first is on.

    ``marks`` puts words on tokens, by (rollout, token): each of MARKED that they name is outlined.
    """
    rows = [tokens(group, layer.values, decode) for layer in layers]
    shown = [[visible(t.text) for t in row] for row in rows[0]]
    longest = max(
        (
            sum(len(text) for text, t in zip(texts, row) if t.step == s)
            for texts, row in zip(shown, rows[0])
            for s in range(row[-1].step + 1)
        ),
        default=0,
    )
    cards = "".join(
        _card(
            rollout,
            [of[i] for of in rows],
            shown[i],
            labels[i] if labels else str(i + 1),
            layers,
            marks,
        )
        for i, rollout in enumerate(group.rollouts)
    )
    question = "".join(
        f'<div class="wb-q">{escape(m["role"])}: <b>{escape(visible(m["content"]))}</b></div>'
        for m in group.problem.messages
    )
    legends = "".join(
        _only(j, layers, "figcaption", _legend([t.value for row in rows[j] for t in row], layer))
        for j, layer in enumerate(layers)
    )
    return (
        '<figure class="wb-heat" dir="ltr" '
        f'style="{_box(LIGHT)}"><style>{css(layers)}</style>{_switch(layers)}{legends}{question}'
        '<div class="wb-grid" '
        f'style="--wb-card:{min(max(longest + 10, 24), 100)}ch">{cards}</div></figure>'
    )


MARKED = {"failure point": "wb-fail", "span": "wb-range", "first wrong step": "wb-wrong"}


def _switch(layers: Sequence[Layer]) -> str:
    """Radio buttons; ``method=dialog`` is a form that the Enter key does not send, and that keeps
    the buttons of two figures apart.
    """
    buttons = "".join(
        '<label><input type="radio" name="layer" class="wb-r '
        f'wb-r{j}"{"" if j else " checked"}/>{escape(layer.channel.name)}</label>'
        for j, layer in enumerate(layers)
    )
    return (
        f'<form class="wb-switch" method="dialog" aria-label="Layer">{buttons}</form>'
        if len(layers) > 1
        else ""
    )


def _only(
    j: int, layers: Sequence[Layer], tag: str, html: str, kind: str = "", rest: str = ""
) -> str:
    """An element that is there while layer ``j`` is on."""
    names = f"{kind} wb-only wb-only{j}".strip() if len(layers) > 1 else kind
    return f'<{tag}{f""" class="{names}" """.rstrip() if names else ""}{" style=display:none" if j else ""}{rest}>{html}</{tag}>'


def _card(
    rollout: Rollout,
    rows: Sequence[Sequence[Token]],
    shown: Sequence[str],
    label: str,
    layers: Sequence[Layer],
    marks: Mapping[tuple[int, int], str],
) -> str:
    verdict, count = rollout.verdict, len(shown)
    notes = [f"reward {verdict.reward:g}", f"{count} tokens"]
    notes += [rollout.origin] if rollout.origin != "policy" else []
    notes += [f"{rollout.borrowed} borrowed"] if rollout.borrowed else []
    notes += [] if rollout.finished else ["cut off"]
    wrong = [
        t.step + 1 for t in rows[0] if "first wrong step" in marks.get((t.rollout, t.index), "")
    ]
    notes += [f"first error: step {wrong[0]}"] if wrong else []
    spans = [""] * (rows[0][-1].step + 1)
    for same in zip(*rows):
        words = marks.get((same[0].rollout, same[0].index), "")
        spans[same[0].step] += _token(same, shown[same[0].index], rollout, layers, words)
    sums = list(zip(*map(step_sums, rows)))
    lines = "".join(
        f'<div class="wb-line"><span class="wb-toks">{spans[step]}</span>'
        + "".join(
            _only(
                j,
                layers,
                "span",
                f" {marked_as(total, layer.channel)}",
                "wb-sum",
                f' title="{escape(layer.channel.name)} summed over step {step + 1}"',
            )
            for j, (layer, total) in enumerate(zip(layers, sums[step]))
        )
        + "</div>"
        for step in range(len(spans))
    )
    mark = "✓" if verdict.correct else "✗"
    return (
        f'<section class="wb-card"><div class="wb-head"><b>{escape(label)}</b> <b '
        f'class="wb-mark">{mark}</b> '
        f"{escape(' · '.join(notes))}</div>{lines}</section>"
    )


def _token(
    same: Sequence[Token], shown: str, rollout: Rollout, layers: Sequence[Layer], words: str
) -> str:
    """One token, with its number in each layer.

    With several layers the numbers are its title (a screen reader's description).
    """
    token, signs = same[0], [layer.channel.signed for layer in layers]
    shades = [level(t.value, layer.limit) for t, layer in zip(same, layers)]
    name = [
        f"“{shown[:40]}{'…' if len(shown) > 40 else ''}”",
        f"token {token.index + 1} of {len(rollout.completion_ids)}",
    ]
    name += [words] if words else []
    parts = [f"id {token.id}"]
    if math.isfinite(token.logprob):
        parts.append(f"log-prob {signed(token.logprob, 3)} (p = {math.exp(token.logprob):.3f})")
    if token.index < rollout.borrowed:
        parts.append("borrowed: not written by the policy")
    parts += [
        f"{layer.channel.name} {worded(t.value, layer.channel, 3)}"
        for t, layer in zip(same, layers)
    ]
    label, title = (name, parts) if len(layers) > 1 else (name + parts, name + parts)
    kinds = (
        ["wb-t"]
        + [
            _kind(t.value, shade, sign, f"w{j}" if len(layers) > 1 else "wb-")
            for j, (t, shade, sign) in enumerate(zip(same, shades, signs))
        ]
        + [MARKED[word] for word in MARKED if word in words]
    )
    paint = f' style="{_paint(shades[0], LIGHT, signs[0])}"' if shades[0] else ""
    return (
        f'<span class="{" ".join(filter(None, kinds))}" role="img" '
        f'title="{escape(", ".join(title))}" '
        f'aria-label="{escape(", ".join(label))}"{paint}>{escape(shown)}</span>'
    )


def _kind(value: float, shade: int, signed: bool, prefix: str) -> str:
    if shade:
        return f"{prefix}{'s' if not signed else 'u' if shade > 0 else 'd'}{abs(shade)}"
    return f"{prefix}none" if math.isnan(value) else f"{prefix}0" if prefix == "wb-" else ""


def _legend(values: Sequence[float], layer: Layer) -> str:
    channel, limit = layer.channel, layer.limit
    known = [v for v in values if math.isfinite(v)]
    if not any(known):
        return f"{escape(channel.name)}: {'0 on every token' if known else 'no numbers'}"
    beyond = any(abs(v) > limit for v in known)
    faint = (
        f" No line: smaller than {FAINT:.1%} of the scale."
        if any(0 < abs(v) < FAINT * limit for v in known)
        else ""
    )
    faint += " Grey italics: no number." if len(known) < len(values) else ""
    sides = [sign for sign in (-1, 1) if any(v * sign > 0 for v in known)]
    shades = [s for s in range(-LEVELS, LEVELS + 1) if s == 0 or math.copysign(1, s) in sides]
    bar = "".join(
        f'<span class="wb-t {_kind(s, s, channel.signed, "wb-")}" '
        f'style="{_paint(s, LIGHT, channel.signed)}">&nbsp;</span>'
        if s
        else '<span class="wb-t wb-0">0</span>'
        for s in shades
    )
    low = (
        f"▼ line below, {channel.down}: {'≤ ' if beyond else ''}{signed(-limit)} "
        if -1 in sides
        else ""
    )
    how = "line above ▲" if channel.signed else "dotted line"
    high = (
        f" {'≥ ' if beyond else ''}{worded(limit, channel)}: {channel.up}, {how}"
        if 1 in sides
        else ""
    )
    return (
        f"<b>{escape(channel.name)}</b> ({escape(channel.unit)})<br>{escape(low)}"
        f'<span class="wb-bar" aria-hidden="true">{bar}</span>{escape(high)}.{faint} At '
        "the right of each step: the sum over its tokens."
    )


def _box(theme: Theme) -> str:
    return f"background-color:{theme.paper};color:{theme.ink}"


def _paint(shade: int, theme: Theme, signed: bool) -> str:
    side = (
        f"border-bottom:2px dotted {theme.size_line}"
        if not signed
        else f"border-top:2px solid {theme.up_line}"
        if shade > 0
        else f"border-bottom:2px solid {theme.down_line}"
    )
    return f"background-color:{background(shade, theme, signed)};color:{theme.ink};{side}"


def _variables(theme: Theme, scheme: str) -> str:
    names = {
        "paper": theme.paper,
        "ink": theme.ink,
        "dim": theme.dim,
        "up": theme.up_line,
        "down": theme.down_line,
        "size": theme.size_line,
    }
    for shade in range(1, LEVELS + 1):
        names |= {
            f"u{shade}": background(shade, theme),
            f"d{shade}": background(-shade, theme),
            f"s{shade}": background(shade, theme, False),
        }
    return f"color-scheme:{scheme};" + ";".join(
        f"--wb-{name}:{color}" for name, color in names.items()
    )


def _shades(prefix: str, scope: str) -> str:
    """Rules that paint the classes of one layer.

    Important: they override the light colours on the elements themselves.
    """
    sides = (
        ("u", "top", "up", "solid"),
        ("d", "bottom", "down", "solid"),
        ("s", "bottom", "size", "dotted"),
    )
    return "".join(
        f'.wb-heat{scope} [class*=" {prefix}{kind}"]{{border-{side}:2px {line} '
        f"var(--wb-{color})!important}}"
        + "".join(
            f".wb-heat{scope} "
            f".{prefix}{kind}{shade}{{background-color:var(--wb-{kind}{shade})!important}}"
            for shade in range(1, LEVELS + 1)
        )
        for kind, side, color, line in sides
    ) + (f".wb-heat{scope} .{prefix}none{{color:var(--wb-dim)!important;font-style:italic}}")


def css(layers: Sequence[Layer] = ()) -> str:
    """The style sheet of a heat map; with several layers, of their switch too."""
    if len(layers) < 2:
        return _CSS
    rules = [
        ".wb-heat:has(.wb-r:checked) .wb-toks "
        ".wb-t{background-color:transparent!important;border-color:transparent!important}"
    ]
    for j in range(len(layers)):
        on = f":has(.wb-r{j}:checked)"
        rules.append(
            f".wb-heat{on} .wb-only:not(.wb-only{j}){{display:none!important}}.wb-heat{on} "
            f".wb-only{j}{{display:revert!important}}"
        )
        rules.append(_shades(f"w{j}", on + " .wb-toks"))
    return _CSS + "".join(rules)


_CSS = f"""
.wb-heat{{{_variables(LIGHT, "light")};margin:1em 0;padding:.8em;border-radius:6px;font:14px/1.5 system-ui,sans-serif}}
@media(prefers-color-scheme:dark){{.wb-heat{{{_variables(DARK, "dark")}}}}}
[data-jp-theme-light="true"] .wb-heat{{{_variables(LIGHT, "light")}}}
[data-jp-theme-light="false"] .wb-heat{{{_variables(DARK, "dark")}}}
.wb-heat{{background-color:var(--wb-paper)!important;color:var(--wb-ink)!important}}
.wb-heat .wb-t{{color:var(--wb-ink)!important}}
.wb-heat figcaption,.wb-head,.wb-sum{{color:var(--wb-dim);font-size:13px}}
.wb-heat figcaption{{margin-bottom:.7em}}
.wb-heat b{{color:var(--wb-ink)}}
.wb-switch{{display:flex;flex-wrap:wrap;gap:.1em 1.1em;margin-bottom:.5em;font-size:13px}}
.wb-switch label{{cursor:pointer;white-space:nowrap}}
.wb-switch input{{margin:0 .35em 0 0;vertical-align:-1px;accent-color:var(--wb-up)}}
.wb-q{{margin:.3em 0 .7em;overflow-wrap:anywhere}}
.wb-q b,.wb-toks,.wb-bar,.wb-sum{{font-family:ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace}}
.wb-grid{{display:grid;gap:.7em;grid-template-columns:repeat(auto-fill,minmax(min(100%,var(--wb-card)),1fr))}}
.wb-card{{border:1px solid color-mix(in srgb,var(--wb-dim) 40%,transparent);border-radius:6px;padding:.5em .7em;min-width:0}}
.wb-head{{margin-bottom:.35em}}
.wb-line{{display:flex;justify-content:space-between;gap:1em;align-items:baseline}}
.wb-toks{{min-width:0}}
.wb-sum{{white-space:nowrap}}
.wb-t{{display:inline-block;max-width:100%;overflow-wrap:anywhere;unicode-bidi:isolate;white-space:pre-wrap;
 border-top:2px solid transparent;border-bottom:2px solid transparent;line-height:1.35;margin-bottom:1px;min-width:.6em;text-align:center}}
.wb-wrong{{text-decoration:underline wavy var(--wb-dim) 1px;text-underline-offset:2px}}
.wb-range{{box-shadow:0 3px 0 -1px var(--wb-ink)}}
.wb-fail{{outline:2px solid var(--wb-ink)!important;outline-offset:0!important;border-radius:2px}}
{_shades("wb-", "")}
@media print{{.wb-t{{-webkit-print-color-adjust:exact;print-color-adjust:exact}}}}"""
