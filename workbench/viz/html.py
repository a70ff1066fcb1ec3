"""A group of rollouts as a heat map in static HTML that needs no script, in light and in dark.

Blue with a line above the token is positive, orange with a line below is negative, violet with a
dotted line is a size without a sign, so nothing rests on colour alone. The scale is symmetric and
robust. Tokens are what a model wrote: they are always escaped, and white space and control
characters are made visible.

Colours follow the system's light or dark setting, and the theme of JupyterLab or VS Code where
there is one. Light colours are also on the elements themselves, for viewers that drop style sheets
(GitHub).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, groupby
from pathlib import Path

import numpy as np

from workbench.core import Group, Rollout
from workbench.viz.style import DARK, FAINT, LEVELS, LIGHT, Theme, background, edge, level
from workbench.viz.texts import Decode, escape
from workbench.viz.tokens import (
    CREDIT,
    Channel,
    Layer,
    Token,
    marked_as,
    signed,
    step_sums,
    tokens,
    worded,
)

MARKED = {"failure point": "wb-fail", "span": "wb-range", "first wrong step": "wb-wrong"}
# the layout of the cards for viewers that drop style sheets
CARD = (
    "display:inline-block;vertical-align:top;width:47%;margin:4px;padding:6px;"
    "border:1px solid #cccccc;white-space:pre-wrap"
)
TITLE = 40  # characters of a token in its own tooltip


def group_html(
    group: Group,
    values: Sequence[Sequence[float]],
    decode: Decode,
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
    decode: Decode,
    labels: Sequence[str] = (),
    marks: Mapping[tuple[int, int], str] = {},
) -> str:
    """``group_html`` for several layers, with buttons that switch between them without a script;
    the first is on.

    ``marks`` puts words on tokens, by (rollout, token): each of MARKED that they name is outlined.
    """
    rows = [tokens(group, layer.values, decode) for layer in layers]  # [layer][rollout][token]
    head = "".join(
        _only(j, layers, "figcaption", _legend(rows[j], layer)) for j, layer in enumerate(layers)
    )
    for message in group.problem.messages:
        content = escape(message["content"])
        head += f'<div class="wb-q">{escape(message["role"])}: <span>{content}</span></div>'
    cards = ""
    for i, rollout in enumerate(group.rollouts):
        label = labels[i] if labels else str(i + 1)
        cards += _card(label, rollout, [layer_rows[i] for layer_rows in rows], layers, marks)
    width = min(max(_longest_step(rows[0]) + 10, 24), 100)
    others = "".join(map(_without_styles, layers[1:], rows[1:]))
    return (
        f'<figure class="wb-heat" dir="ltr" '
        f'style="background-color:{LIGHT.paper};color:{LIGHT.ink}">'
        f"<style>{css(len(layers))}</style>{_switch(layers)}{head}"
        f'<div class="wb-grid" style="--wb-card:{width}ch">{cards}</div>{others}</figure>'
    )


def _without_styles(layer: Layer, rows: Sequence[Sequence[Token]]) -> str:
    """A layer that opens by itself, for viewers that drop style sheets (a notebook that is not
    trusted): neighbours of one colour are one element. Where there are styles it is not shown.
    """
    cards = ""
    for number, row in enumerate(rows, 1):
        lines = [""] * (row[-1].step + 1)
        shades = groupby(row, key=lambda token: (token.step, level(token.value, layer.limit)))
        for (step, shade), run in shades:
            shown = escape("".join(token.shown for token in run))
            style = f' style="{_inline_style(shade, layer.channel.signed)}"' if shade else ""
            lines[step] += f"<span{style}>{shown}</span>"
        cards += f"<p><b>{number}</b><br>{'<br>'.join(lines)}</p>"
    name = escape(layer.channel.name)
    return f'<details class="wb-plain"><summary>{name}</summary>{cards}</details>'


def _longest_step(rows: Sequence[Sequence[Token]]) -> int:
    """Characters of the longest step of a group."""
    sizes = Counter()
    for token in chain.from_iterable(rows):
        sizes[token.rollout, token.step] += len(token.shown)
    return max(sizes.values(), default=0)


def _switch(layers: Sequence[Layer]) -> str:
    """Radio buttons; ``method=dialog`` is a form that the Enter key does not send, and that keeps
    the buttons of two figures apart.
    """
    if len(layers) < 2:
        return ""
    buttons = ""
    for j, layer in enumerate(layers):
        radio = f'<input type="radio" name="layer" class="wb-r wb-r{j}"{"" if j else " checked"}/>'
        buttons += f"<label>{radio}{escape(layer.channel.name)}</label>"
    return (
        '<form class="wb-switch" style="display:none" method="dialog" aria-label="Layer">'
        f"{buttons}</form>"
    )


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
    wrong = []
    for by_layer in zip(*rows):
        token = by_layer[0]
        words = marks.get((token.rollout, token.index), "")
        wrong += [token.step + 1] if "first wrong step" in words else []
        steps[token.step] += _token(by_layer, rollout, layers, words)
    lines = ""
    for step, totals in enumerate(zip(*map(step_sums, rows))):
        lines += f'<div class="wb-line"><span class="wb-toks">{steps[step]}</span>'
        for j, layer in enumerate(layers):
            title = f"{layer.channel.name} summed over step {step + 1}"
            words = f" {marked_as(totals[j], layer.channel)}"
            lines += _only(j, layers, "span", words, "wb-sum", title)
        lines += "</div>"
    notes = [
        rollout.verdict.words,
        f"{len(rows[0])} tokens",
        rollout.origin if rollout.origin != "policy" else "",
        f"{rollout.borrowed} borrowed" if rollout.borrowed else "",
        "" if rollout.finished else "cut off",
        f"first error: step {wrong[0]}" if wrong else "",
    ]
    return (
        f'<section class="wb-card" style="{CARD}"><div class="wb-head"><b>{escape(label)}</b> '
        f'<b class="wb-mark">{rollout.verdict.mark}</b> {escape(_listed(notes, " · "))}</div>'
        f"{lines}</section>"
    )


def _listed(words: Sequence[str], comma: str = ", ") -> str:
    """The words that there are."""
    return comma.join(filter(None, words))


def _token(by_layer: Sequence[Token], rollout: Rollout, layers: Sequence[Layer], words: str) -> str:
    """One token, with its number in each layer.

    Of one layer the title says all, and a screen reader takes it for the name; with several layers
    it holds the numbers, which are a description.
    """
    token = by_layer[0]
    shown = token.shown
    p = f"(p = {math.exp(token.logprob):.3f})"
    name = [
        f"“{shown[:TITLE]}{'…' if len(shown) > TITLE else ''}”",
        f"token {token.index + 1} of {len(rollout.completion_ids)}",
        words,
    ]
    title = [
        f"id {token.id}",
        f"log-prob {signed(token.logprob, 3)} {p}" if math.isfinite(token.logprob) else "",
        "borrowed: not written by the policy" if token.index < rollout.borrowed else "",
    ]
    classes = ["wb-t"]
    for j, layer in enumerate(layers):
        value = by_layer[j].value
        title.append(f"{layer.channel.name} {worded(value, layer.channel, 3)}")
        classes.append(shade_class(value, layer, f"w{j}" if len(layers) > 1 else "wb-"))
    classes += [kind for word, kind in MARKED.items() if word in words]
    label = f' aria-label="{escape(_listed(name))}"' if len(layers) > 1 else ""
    title = title if label else name + title
    shade = level(token.value, layers[0].limit)
    style = f' style="{_inline_style(shade, layers[0].channel.signed)}"' if shade else ""
    return (
        f'<span class="{_listed(classes, " ")}" role="img" title="{escape(_listed(title))}"'
        f"{label}{style}>{escape(shown)}</span>"
    )


def shade_class(value: float, layer: Layer, prefix: str = "wb-") -> str:
    """The style sheet's class of a number: u1 to u8 above 0, d1 to d8 below it, s1 to s8 for sizes;
    none for NaN; 0, where the layer is the only one.
    """
    if shade := level(value, layer.limit):
        return prefix + _shade_name(shade, layer.channel.signed)
    if math.isnan(value):
        return f"{prefix}none"
    return "wb-0" if prefix == "wb-" else ""


def _shade_name(shade: int, signed: bool) -> str:
    return f"{'s' if not signed else 'u' if shade > 0 else 'd'}{abs(shade)}"


def _legend(rows: Sequence[Sequence[Token]], layer: Layer) -> str:
    channel, limit = layer.channel, layer.limit
    values = np.array([token.value for token in chain.from_iterable(rows)])
    numbers = values[np.isfinite(values)]
    if not numbers.any():
        return f"{escape(channel.name)}: {'0 on every token' if len(numbers) else 'no numbers'}"
    sizes = abs(numbers)
    beyond = sizes.max() > limit
    low = high = notes = ""
    if numbers.min() < 0:
        low = f"▼ line below, {channel.down}: {'≤ ' if beyond else ''}{signed(-limit)} "
    if numbers.max() > 0:
        line = "line above ▲" if channel.signed else "dotted line"
        high = f" {'≥ ' if beyond else ''}{worded(limit, channel)}: {channel.up}, {line}"
    if ((sizes > 0) & (sizes < FAINT * limit)).any():
        notes += f" No line: smaller than {FAINT:.1%} of the scale."
    if len(numbers) < len(values):
        notes += " Grey italics: no number."
    bar = "".join(
        f'<span class="wb-t wb-{_shade_name(shade, channel.signed)}" '
        f'style="{_inline_style(shade, channel.signed)}">&nbsp;</span>'
        if shade
        else '<span class="wb-t wb-0">0</span>'
        for shade in range(-LEVELS if low else 0, LEVELS + 1 if high else 1)
    )
    return (
        f"<b>{escape(channel.name)}</b> ({escape(channel.unit)})<br>{escape(low)}"
        f'<span class="wb-bar" aria-hidden="true">{bar}</span>{escape(high)}.{notes} At '
        "the right of each step: the sum over its tokens."
    )


def _inline_style(shade: int, signed: bool) -> str:
    """The light colours of a level: its background, the ink, and the line of its side."""
    side = "top" if signed and shade > 0 else "bottom"
    border = f"border-{side}:2px {'solid' if signed else 'dotted'} {edge(shade, LIGHT, signed)}"
    return f"background-color:{background(shade, LIGHT, signed)};color:{LIGHT.ink};{border}"


# ---- the style sheet -----------------------------------------------------------------------------


def css(layers: int = 1) -> str:
    """The style sheet of a heat map; with several layers, of their switch too."""
    rules = [_THEMES, _RULES, _shades(".wb-heat", "wb-")]
    if layers > 1:
        # with these rules the buttons work, and what works without them goes
        rules.append(".wb-switch{display:flex!important}.wb-plain{display:none!important}")
        rules.append(
            ".wb-heat:has(.wb-r:checked) .wb-toks .wb-t"
            "{background-color:transparent!important;border-color:transparent!important}"
        )
        for j in range(layers):
            scope = f".wb-heat:has(.wb-r{j}:checked)"
            rules += [
                f"{scope} .wb-only:not(.wb-only{j}){{display:none!important}}",
                f"{scope} .wb-only{j}{{display:revert!important}}",
                _shades(f"{scope} .wb-toks", f"w{j}"),
            ]
    return "\n".join(rules)


def _shades(scope: str, prefix: str) -> str:
    """Rules for the classes of one layer.

    Important: they override the light colours on the elements themselves.
    """
    rules = f"{scope} .{prefix}none{{color:var(--wb-dim)!important;font-style:italic}}"
    for kind, border in (
        ("u", "top:2px solid var(--wb-up)"),
        ("d", "bottom:2px solid var(--wb-down)"),
        ("s", "bottom:2px dotted var(--wb-size)"),
    ):
        rules += f'{scope} [class*=" {prefix}{kind}"]{{border-{border}!important}}'
        for shade in range(1, LEVELS + 1):
            color = f"{{background-color:var(--wb-{kind}{shade})!important}}"
            rules += f"{scope} .{prefix}{kind}{shade}{color}"
    return rules


def _variables(theme: Theme, scheme: str) -> str:
    variables = (
        f"color-scheme:{scheme};--wb-paper:{theme.paper};--wb-ink:{theme.ink};"
        f"--wb-dim:{theme.dim};--wb-up:{theme.up_line};--wb-down:{theme.down_line};"
        f"--wb-size:{theme.size_line}"
    )
    for shade in range(1, LEVELS + 1):
        variables += (
            f";--wb-u{shade}:{background(shade, theme)};--wb-d{shade}:{background(-shade, theme)}"
            f";--wb-s{shade}:{background(shade, theme, signed=False)}"
        )
    return variables


_THEMES = f"""
.wb-heat{{{_variables(LIGHT, "light")}}}
@media(prefers-color-scheme:dark){{.wb-heat{{{_variables(DARK, "dark")}}}}}
:is([data-jp-theme-light="true"],.vscode-light) .wb-heat{{{_variables(LIGHT, "light")}}}
:is([data-jp-theme-light="false"],.vscode-dark) .wb-heat{{{_variables(DARK, "dark")}}}"""
_RULES = Path(__file__).with_name("html.css").read_text(encoding="utf-8")
