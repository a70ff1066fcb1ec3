"""A group of rollouts as a heat map in static HTML that needs no script, in light and in dark.

Blue with a line above the token is positive, orange with a line below is negative, violet with a
dotted line is a size without a sign, so nothing rests on colour alone. The scale is symmetric and
robust. Tokens are what a model wrote: they are always escaped, and white space and control
characters are made visible.

Colours follow the system's light or dark setting, and JupyterLab's theme where there is one. Light
colours are also on the elements themselves, for viewers that drop style sheets (GitHub).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from workbench.core import Group, Rollout
from workbench.viz.style import DARK, FAINT, LEVELS, LIGHT, Theme, background, edge, level
from workbench.viz.tokens import (
    CREDIT,
    Channel,
    Layer,
    Token,
    marked_as,
    signed,
    step_sums,
    tokens,
    visible,
    worded,
)

MARKED = {"failure point": "wb-fail", "span": "wb-range", "first wrong step": "wb-wrong"}
TITLE = 40  # characters of a token in its own tooltip


def group_html(
    group: Group,
    values: Sequence[Sequence[float]],
    decode: Callable[[int], str],
    *,
    channel: Channel = CREDIT,
    limit: float | None = None,
    labels: Sequence[str] = (),
) -> str:
    """The question and its rollouts, in the order given, each with its reward, its coloured tokens,
    and the sum of every step.

    ``values``: [T] numbers for each rollout. ``limit`` fixes the ends of the scale (to compare two
    maps); ``labels`` name the rollouts instead of their numbers.
    """
    layer = Layer(channel, values, limit) if limit else Layer.of(channel, values)
    return layers_html(group, [layer], decode, labels)


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
    rows = [tokens(group, layer.values, decode) for layer in layers]  # [layer][rollout][token]
    legends = ""
    for j, layer in enumerate(layers):
        numbers = [token.value for row in rows[j] for token in row]
        legends += _only(j, layers, "figcaption", _legend(numbers, layer))
    question = ""
    for message in group.problem.messages:
        content = escape(visible(message["content"]))
        question += f'<div class="wb-q">{escape(message["role"])}: <b>{content}</b></div>'
    cards = ""
    for i, rollout in enumerate(group.rollouts):
        label = labels[i] if labels else str(i + 1)
        cards += _card(label, rollout, [layer_rows[i] for layer_rows in rows], layers, marks)
    width = min(max(_longest_step(rows[0]) + 10, 24), 100)
    return (
        f'<figure class="wb-heat" dir="ltr" '
        f'style="background-color:{LIGHT.paper};color:{LIGHT.ink}">'
        f"<style>{css(len(layers))}</style>{_switch(layers)}{legends}{question}"
        f'<div class="wb-grid" style="--wb-card:{width}ch">{cards}</div></figure>'
    )


def _longest_step(rows: Sequence[Sequence[Token]]) -> int:
    """Characters of the longest step of a group."""
    longest = 0
    for row in rows:
        sizes = [0] * (row[-1].step + 1)
        for token in row:
            sizes[token.step] += len(visible(token.text))
        longest = max(longest, *sizes)
    return longest


def _switch(layers: Sequence[Layer]) -> str:
    """Radio buttons; ``method=dialog`` is a form that the Enter key does not send, and that keeps
    the buttons of two figures apart.
    """
    if len(layers) < 2:
        return ""
    buttons = "".join(
        f'<label><input type="radio" name="layer" class="wb-r wb-r{j}"'
        f"{'' if j else ' checked'}/>{escape(layer.channel.name)}</label>"
        for j, layer in enumerate(layers)
    )
    return f'<form class="wb-switch" method="dialog" aria-label="Layer">{buttons}</form>'


def _only(
    j: int, layers: Sequence[Layer], tag: str, html: str, kind: str = "", title: str = ""
) -> str:
    """An element that is there while layer ``j`` is on."""
    classes = f"{kind} wb-only wb-only{j}".strip() if len(layers) > 1 else kind
    attributes = f' class="{classes}"' if classes else ""
    attributes += " style=display:none" if j else ""
    attributes += f' title="{escape(title)}"' if title else ""
    return f"<{tag}{attributes}>{html}</{tag}>"


def _card(
    label: str,
    rollout: Rollout,
    rows: Sequence[Sequence[Token]],
    layers: Sequence[Layer],
    marks: Mapping[tuple[int, int], str],
) -> str:
    """One rollout; ``rows`` are its tokens, once for each layer."""
    steps = [""] * (rows[0][-1].step + 1)
    for token, *others in zip(*rows):
        words = marks.get((token.rollout, token.index), "")
        steps[token.step] += _token([token, *others], rollout, layers, words)
    lines = ""
    for step, totals in enumerate(zip(*map(step_sums, rows))):
        sums = ""
        for j, (layer, total) in enumerate(zip(layers, totals)):
            title = f"{layer.channel.name} summed over step {step + 1}"
            sums += _only(j, layers, "span", f" {marked_as(total, layer.channel)}", "wb-sum", title)
        lines += f'<div class="wb-line"><span class="wb-toks">{steps[step]}</span>{sums}</div>'
    mark = "✓" if rollout.verdict.correct else "✗"
    notes = escape(" · ".join(_notes(rollout, rows[0], marks)))
    return (
        f'<section class="wb-card"><div class="wb-head"><b>{escape(label)}</b> '
        f'<b class="wb-mark">{mark}</b> {notes}</div>{lines}</section>'
    )


def _notes(
    rollout: Rollout, row: Sequence[Token], marks: Mapping[tuple[int, int], str]
) -> list[str]:
    """What is said of a rollout above its tokens."""
    notes = [f"reward {rollout.verdict.reward:g}", f"{len(row)} tokens"]
    if rollout.origin != "policy":
        notes.append(rollout.origin)
    if rollout.borrowed:
        notes.append(f"{rollout.borrowed} borrowed")
    if not rollout.finished:
        notes.append("cut off")
    for token in row:
        if "first wrong step" in marks.get((token.rollout, token.index), ""):
            return [*notes, f"first error: step {token.step + 1}"]
    return notes


def _token(by_layer: Sequence[Token], rollout: Rollout, layers: Sequence[Layer], words: str) -> str:
    """One token, with its number in each layer.

    With several layers the numbers are its title (a screen reader's description).
    """
    token = by_layer[0]
    shown = visible(token.text)
    name = [
        f"“{shown[:TITLE]}{'…' if len(shown) > TITLE else ''}”",
        f"token {token.index + 1} of {len(rollout.completion_ids)}",
    ]
    if words:
        name.append(words)
    title = [f"id {token.id}"]
    if math.isfinite(token.logprob):
        title.append(f"log-prob {signed(token.logprob, 3)} (p = {math.exp(token.logprob):.3f})")
    if token.index < rollout.borrowed:
        title.append("borrowed: not written by the policy")
    classes = ["wb-t"]
    for j, (same, layer) in enumerate(zip(by_layer, layers)):
        title.append(f"{layer.channel.name} {worded(same.value, layer.channel, 3)}")
        classes.append(shade_class(same.value, layer, f"w{j}" if len(layers) > 1 else "wb-"))
    classes += [kind for word, kind in MARKED.items() if word in words]
    if len(layers) == 1:
        name = title = name + title
    shade = level(token.value, layers[0].limit)
    style = f' style="{_inline_style(shade, layers[0].channel.signed)}"' if shade else ""
    return (
        f'<span class="{" ".join(filter(None, classes))}" role="img" '
        f'title="{escape(", ".join(title))}" '
        f'aria-label="{escape(", ".join(name))}"{style}>{escape(shown)}</span>'
    )


def shade_class(value: float, layer: Layer, prefix: str = "wb-") -> str:
    """The style sheet's class of a number: u1 to u8 above 0, d1 to d8 below it, s1 to s8 for sizes;
    none for NaN; 0, where the layer is the only one.
    """
    shade = level(value, layer.limit)
    if shade:
        return prefix + _shade_name(shade, layer.channel.signed)
    if math.isnan(value):
        return f"{prefix}none"
    return "wb-0" if prefix == "wb-" else ""


def _shade_name(shade: int, signed: bool) -> str:
    side = "s" if not signed else "u" if shade > 0 else "d"
    return f"{side}{abs(shade)}"


def _legend(values: Sequence[float], layer: Layer) -> str:
    channel, limit = layer.channel, layer.limit
    numbers = [v for v in values if math.isfinite(v)]
    if not any(numbers):
        return f"{escape(channel.name)}: {'0 on every token' if numbers else 'no numbers'}"
    negative = any(v < 0 for v in numbers)
    positive = any(v > 0 for v in numbers)
    beyond = any(abs(v) > limit for v in numbers)
    low = high = notes = ""
    if negative:
        low = f"▼ line below, {channel.down}: {'≤ ' if beyond else ''}{signed(-limit)} "
    if positive:
        line = "line above ▲" if channel.signed else "dotted line"
        high = f" {'≥ ' if beyond else ''}{worded(limit, channel)}: {channel.up}, {line}"
    if any(0 < abs(v) < FAINT * limit for v in numbers):
        notes += f" No line: smaller than {FAINT:.1%} of the scale."
    if len(numbers) < len(values):
        notes += " Grey italics: no number."
    bar = _bar(-LEVELS if negative else 0, LEVELS if positive else 0, channel.signed)
    return (
        f"<b>{escape(channel.name)}</b> ({escape(channel.unit)})<br>{escape(low)}"
        f'<span class="wb-bar" aria-hidden="true">{bar}</span>{escape(high)}.{notes} At '
        "the right of each step: the sum over its tokens."
    )


def _bar(first: int, last: int, signed: bool) -> str:
    """The legend's shades, from the level ``first`` to the level ``last``."""
    bar = ""
    for shade in range(first, last + 1):
        if shade:
            kind = f"wb-t wb-{_shade_name(shade, signed)}"
            bar += f'<span class="{kind}" style="{_inline_style(shade, signed)}">&nbsp;</span>'
        else:
            bar += '<span class="wb-t wb-0">0</span>'
    return bar


def _inline_style(shade: int, signed: bool) -> str:
    """The light colours of a level: its background, the ink, and the line of its side."""
    side = "top" if signed and shade > 0 else "bottom"
    border = f"border-{side}:2px {'solid' if signed else 'dotted'} {edge(shade, LIGHT, signed)}"
    return f"background-color:{background(shade, LIGHT, signed)};color:{LIGHT.ink};{border}"


# ---- the style sheet -----------------------------------------------------------------------------


def css(layers: int = 1) -> str:
    """The style sheet of a heat map; with several layers, of their switch too."""
    rules = [_THEMES, _RULES, _shades("wb-")]
    if layers > 1:
        rules.append(
            ".wb-heat:has(.wb-r:checked) .wb-toks .wb-t"
            "{background-color:transparent!important;border-color:transparent!important}"
        )
    for j in range(layers if layers > 1 else 0):
        scope = f".wb-heat:has(.wb-r{j}:checked)"
        rules.append(f"{scope} .wb-only:not(.wb-only{j}){{display:none!important}}")
        rules.append(f"{scope} .wb-only{j}{{display:revert!important}}")
        rules.append(_shades(f"w{j}", f"{scope} .wb-toks"))
    return "\n".join(rules)


def _shades(prefix: str, scope: str = ".wb-heat") -> str:
    """Rules for the classes of one layer.

    Important: they override the light colours on the elements themselves.
    """
    rules = [f"{scope} .{prefix}none{{color:var(--wb-dim)!important;font-style:italic}}"]
    for kind, line in (
        ("u", "top:2px solid var(--wb-up)"),
        ("d", "bottom:2px solid var(--wb-down)"),
        ("s", "bottom:2px dotted var(--wb-size)"),
    ):
        rules.append(f'{scope} [class*=" {prefix}{kind}"]{{border-{line}!important}}')
        for shade in range(1, LEVELS + 1):
            color = f"var(--wb-{kind}{shade})"
            rules.append(f"{scope} .{prefix}{kind}{shade}{{background-color:{color}!important}}")
    return "".join(rules)


def _variables(theme: Theme, scheme: str) -> str:
    colors = {
        "paper": theme.paper,
        "ink": theme.ink,
        "dim": theme.dim,
        "up": theme.up_line,
        "down": theme.down_line,
        "size": theme.size_line,
    }
    for shade in range(1, LEVELS + 1):
        colors[f"u{shade}"] = background(shade, theme)
        colors[f"d{shade}"] = background(-shade, theme)
        colors[f"s{shade}"] = background(shade, theme, signed=False)
    return f"color-scheme:{scheme};" + ";".join(f"--wb-{k}:{color}" for k, color in colors.items())


_LIGHT, _DARK = _variables(LIGHT, "light"), _variables(DARK, "dark")
_THEMES = f"""
.wb-heat{{{_LIGHT}}}
@media(prefers-color-scheme:dark){{.wb-heat{{{_DARK}}}}}
[data-jp-theme-light="true"] .wb-heat{{{_LIGHT}}}
[data-jp-theme-light="false"] .wb-heat{{{_DARK}}}"""
_RULES = Path(__file__).with_name("html.css").read_text(encoding="utf-8")
