"""Pictures say what the numbers say, to every eye, whatever text a model wrote."""

import math
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from workbench.core import Group, Problem, Rollout, Verdict
from workbench.spans import Spans
from workbench.viz import curves, html, style, texts, tokens
from workbench.viz.page import (
    Section,
    cards,
    page,
    paragraphs,
    plain_table,
    preformatted,
    svg,
    table,
)

HOSTILE = [
    "<script>alert(1)</script>",
    "</style><b>",
    "</span></figure>",
    '" onmouseover="alert(1)',
    "' autofocus '",
    "&lt;&amp;",
    "\u202eolleh\u202c",
    "\u200f",
    "שלום",
    "<!--",
    "]]>",
    "\x00\x1b[31m",
    "\ud800",
    " ",
    "\n",
    "",
    "😀",
    "x" * 100_000,
]


class Reader(HTMLParser):
    """What a browser makes of it: every element with its attributes and its text."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.text = [], [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.elements.append(element)
        if tag not in ("meta", "br", "wbr", "img"):
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1]["tag"] == tag, (
            f"</{tag}> closes <{self.open[-1]['tag'] if self.open else 'nothing'}>"
        )
        self.open.pop()

    def handle_data(self, data):
        self.text += data
        for element in self.open:
            element["text"] += data


def read(html: str) -> Reader:
    reader = Reader(html)
    assert not reader.open, "every element is closed"
    return reader


def rollout(ids, reward=1.0, **more) -> Rollout:
    return Rollout(
        (1,),
        tuple(ids),
        tuple(-0.1 * i for i in range(len(ids))),
        "",
        Verdict(reward, reward == 1),
        **more,
    )


def group(*rollouts: Rollout, question="1+1") -> Group:
    return Group(Problem("p", ({"role": "user", "content": question},), "2"), rollouts)


def drawn_tokens(html: str) -> list[dict]:
    return [e for e in read(html).elements if e["tag"] == "span" and e.get("role") == "img"]


def contrast(a: str, b: str) -> float:
    """WCAG 2 contrast ratio of two #rrggbb colours."""

    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return np.dot(
            [0.2126, 0.7152, 0.0722],
            [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts],
        )

    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


# ---- heat map ------------------------------------------------------------------------------------


def test_hostile_tokens_are_text():
    made = html.group_html(
        group(rollout(range(len(HOSTILE))), question=HOSTILE[0] + HOSTILE[1] + HOSTILE[6]),
        [np.linspace(-1, 1, len(HOSTILE))],
        HOSTILE.__getitem__,
    )
    spans = drawn_tokens(made)
    assert [s["text"] for s in spans] == texts.Written.of(
        range(len(HOSTILE)), HOSTILE.__getitem__
    ).shown()
    tags = {e["tag"] for e in read(made).elements}
    assert tags <= {"figure", "style", "figcaption", "div", "section", "span", "b", "br"}
    assert not [
        k
        for s in spans
        for k in s
        if k.startswith("on")
        or k not in ("tag", "text", "class", "role", "title", "aria-label", "style")
    ]
    assert all(len(s["title"]) < 300 for s in spans), "a long token does not make a long tooltip"
    made.encode()  # lone surrogates would make the file unwritable


def test_white_space_and_direction_marks_are_made_visible():
    assert texts.visible(" \n\t\r") == "·⏎⇥␍"
    assert texts.visible("a\u202eb\u200f\x00\u2028") == "a⟨U+202E⟩b⟨U+200F⟩⟨U+0000⟩⟨U+2028⟩"
    assert texts.visible("") == "∅"
    assert texts.visible("é😀שלום") == "é😀שלום"


def test_joiners_are_marked_only_where_nothing_is_joined():
    for ordinary in ("👩\u200d👩\u200d👧", "می\u200cخواهم", "क्\u200dष"):
        assert texts.visible(ordinary) == texts.prose(ordinary) == ordinary
        assert texts.Written.of([0, 1], ["so ", ordinary].__getitem__).shown() == ["so ", ordinary]
    assert texts.visible("a\u200db\u200c") == "a⟨U+200D⟩b⟨U+200C⟩"
    assert texts.prose("pass\u200cword 👩\u200d") == "pass⟨U+200C⟩word 👩⟨U+200D⟩"
    assert texts.visible("\u202e\u200d\u202c") == "⟨U+202E⟩⟨U+200D⟩⟨U+202C⟩"


def test_ordinary_spaces_stay_and_odd_ones_are_marked():
    pieces = ["so", " 1", " ", "+", "  2", "\n", " a", " ", "\u00a0"]
    shown = texts.Written.of(range(len(pieces)), pieces.__getitem__).shown()
    assert shown == ["so", " 1", " ", "+", "··2", "⏎", "·a", "·", "\u00a0"]


def test_characters_of_several_tokens_are_joined():
    bytes_of = "é 😀!".encode()

    class Bytes:
        def decode(self, ids):
            return bytes(ids).decode(errors="replace")

    written = texts.Written.of(bytes_of, Bytes())
    assert written.text == "é 😀!" and "".join(written.pieces) == written.text
    assert written.shown() == ["é", "‥", " ", "😀", "‥", "‥", "‥", "!"]
    assert written.starts == [0, 0, 1, 2, 2, 2, 2, 3]
    rows = tokens.tokens(group(rollout(bytes_of)), [[0.0] * len(bytes_of)], Bytes())
    assert [token.shown for token in rows[0]] == written.shown()


def test_the_view_counts_steps_as_the_locators_do():
    """Real text has blank lines; the view once counted each of them."""
    text = "\n\nFirst.\n\n\nThen 3.\n\nSo 4."
    made = rollout(range(len(text)), finished=False)
    made = type(made)(**{**vars(made), "text": text})
    (row,) = tokens.tokens(group(made), [[]], text.__getitem__)
    layout = Spans(made, lambda ids: "".join(text[i] for i in ids))
    assert [t.step for t in row] == [layout.step_of(t) for t in range(len(text))]


@pytest.mark.parametrize("theme", [style.LIGHT, style.DARK])
def test_text_is_readable_on_every_colour(theme):
    for shade in range(-style.LEVELS, style.LEVELS + 1):
        assert contrast(theme.ink, style.background(shade, theme)) >= 4.5
    assert contrast(theme.dim, theme.paper) >= 4.5
    for line in (theme.up_line, theme.down_line):
        assert contrast(line, theme.paper) >= 4.5


@pytest.mark.parametrize("theme", [style.LIGHT, style.DARK])
def test_colours_match_the_sign_and_grow(theme):
    def blueness(shade):
        red, _, blue = style.rgb(style.background(shade, theme))
        return blue - red

    neutral = blueness(0)
    steps = [blueness(s) for s in range(-style.LEVELS, style.LEVELS + 1)]
    assert steps == sorted(steps) and len(set(steps)) == len(steps)
    assert steps[0] < neutral < steps[-1]


def test_levels():
    assert [style.level(v, 2.0) for v in (0, 0.01, 2.0, 99, -0.01, -2.0, -99, math.nan)] == [
        0,
        1,
        8,
        8,
        -1,
        -8,
        -8,
        0,
    ]
    assert style.level(0.0099, 2.0) == style.level(-1e-12, 2.0) == 0
    assert style.level(0.25, 2.0) == 1 and style.level(0.2501, 2.0) == 2


def test_scale_is_robust_and_never_zero():
    assert tokens.robust_limit([0.0, math.nan]) == 1.0
    assert tokens.robust_limit([]) == 1.0
    assert tokens.robust_limit([-3.0] * 3 + [0.0] * 50) == 3.0
    assert tokens.robust_limit([2.0] * 8 + [4.0] * 2) == 4.0
    assert tokens.robust_limit([1.0] * 999 + [20.0]) == pytest.approx(3 * math.sqrt(1.399))


def test_the_legend_shows_the_signs_that_occur_and_says_what_lies_beyond():
    def caption(values, **how):
        page = read(html.group_html(group(rollout([1, 2])), [values], str, **how))
        return next(e["text"] for e in page.elements if e["tag"] == "figcaption")

    assert (
        "▼ line below, made less likely: −2.00" in (both := caption([1.0, -2.0]))
        and "+2.00: made more likely, line above ▲" in both
    )
    assert "▲" not in caption([0.0, -2.0]) and "▼" not in caption([0.0, 2.0])
    assert "≤ −1.00" in caption([1.0, -2.0], limit=1.0)
    assert "No line: smaller than 0.5% of the scale" in caption(
        [1.0, -0.004]
    ) and "No line" not in caption([1.0, 0.0])


def test_sign_has_a_second_carrier():
    made = html.group_html(group(rollout([0, 1, 2, 3])), [[1.0, -1.0, 0.0, math.nan]], str)
    up, down, zero, none = drawn_tokens(made)
    assert (
        "border-top:2px solid" in up["style"]
        and "border-bottom" not in up["style"]
        and up["class"] == "wb-t wb-u8"
    )
    assert (
        "border-bottom:2px solid" in down["style"]
        and "border-top" not in down["style"]
        and down["class"] == "wb-t wb-d8"
    )
    assert "style" not in zero and zero["class"] == "wb-t wb-0"
    assert "style" not in none and none["class"] == "wb-t wb-none"
    assert (
        f"--wb-d8:{style.DARK.down}" in made
        and ".wb-d8{background-color:var(--wb-d8)!important}" in made
    ), "the dark theme overrides the light colours"


def test_labels_tell_every_number():
    made = html.group_html(
        group(rollout([7, 8], origin="expert", borrowed=1, finished=False)), [[0.5, math.nan]], str
    )
    first, second = (s["title"] for s in drawn_tokens(made))
    assert first == (
        "“7”, token 1 of 2, id 7, log-prob 0 (p = 1.000), borrowed: not written by the "
        "policy, realised credit +0.500"
    )
    assert second == "“8”, token 2 of 2, id 8, log-prob −0.100 (p = 0.905), realised credit none"
    assert "reward 1 · 2 tokens · expert · 1 borrowed · cut off" in read(made).text


def test_steps_end_with_line_breaks_and_sum_their_tokens():
    texts = ["a", "b\n", "\n", "c\n", "d"]
    values = [1.0, -3.0, 0.5, math.nan, 0.75]
    (row,) = tokens.tokens(group(rollout(range(5))), [values], texts.__getitem__)
    assert [t.step for t in row] == [0, 0, 0, 1, 2], "a blank line goes with the line before"
    sums = tokens.step_sums(row)
    assert sums[0] == -1.5 and math.isnan(sums[1]) and sums[2] == 0.75
    shown = [
        e["text"].strip()
        for e in read(
            html.group_html(group(rollout(range(5))), [values], texts.__getitem__)
        ).elements
        if e.get("class") == "wb-sum"
    ]
    assert shown == ["▼ −1.50", "· none", "▲ +0.75"]


def test_rollouts_keep_their_order_and_missing_numbers_are_none():
    both = group(rollout([1], reward=0.0), rollout([2, 3]))
    made = html.group_html(both, [[], [None, 0.0]], str)
    assert [s["title"].rsplit(" ", 1)[1] for s in drawn_tokens(made)] == ["none", "none", "0"]
    heads = [e["text"] for e in read(made).elements if e.get("class") == "wb-head"]
    assert heads == ["1 ✗ reward 0 · 1 tokens", "2 ✓ reward 1 · 2 tokens"]


def test_a_group_that_teaches_nothing_says_so():
    assert "realised credit: 0 on every token" in html.group_html(
        group(rollout([1, 2])), [[0.0, 0.0]], str
    )
    assert "realised credit: no numbers" in html.group_html(group(rollout([1, 2])), [[]], str)


def test_numbers_that_do_not_fit_the_tokens_are_refused():
    with pytest.raises(ValueError, match="2 lists of numbers for 1 rollouts"):
        html.group_html(group(rollout([1])), [[1.0], [1.0]], str)
    with pytest.raises(ValueError, match="2 numbers for the 1 tokens of rollout 0"):
        html.group_html(group(rollout([1])), [[1.0, 1.0]], str)


# ---- curves --------------------------------------------------------------------------------------


def metrics(n=12, **more) -> pd.DataFrame:
    steps = np.arange(n)
    data = {
        "step": steps,
        "correct": steps / n,
        "contrast": 1 - steps / n,
        "entropy": 0.5 + steps / n,
        "length": 30.0 + steps,
    }
    data["eval_avg"] = np.where(steps % 5 == 0, 0.3 + steps / 20, np.nan)
    data["eval_low"], data["eval_high"] = data["eval_avg"] - 0.1, data["eval_avg"] + 0.05
    for name in ("avg", "low", "high"):
        data[f"final_eval_{name}"] = [np.nan] * (n - 1) + [
            {"avg": 0.9, "low": 0.8, "high": 0.95}[name]
        ]
    return pd.DataFrame(data | more)


def test_curves_hold_the_data():
    data = metrics()
    panels = {
        axes.get_title(loc="left"): axes for axes in curves.learning_curves({"run": data}).axes
    }
    for column, title, _, _ in curves.PANELS:
        raw, smooth = panels[title].lines[:2]
        assert (
            raw.get_xdata().tolist() == data["step"].tolist()
            and raw.get_ydata().tolist() == data[column].tolist()
        )
        assert smooth.get_ydata()[5] == pytest.approx(data[column][3:8].mean())
    dots = panels["Correct"].containers[0].lines[0]
    assert dots.get_xdata().tolist() == [0, 5, 10, 12]
    assert dots.get_ydata() == pytest.approx([0.3, 0.55, 0.8, 0.9])
    band = panels["Correct"].collections[0].get_paths()[0].vertices
    assert {(round(x, 6), round(y, 6)) for x, y in band} >= {
        (0, 0.2),
        (0, 0.35),
        (12, 0.8),
        (12, 0.95),
    }


def test_curves_of_several_runs_are_named_and_differ_in_colour_and_style():
    figure = curves.learning_curves({f"seed {i}": metrics() for i in range(3)})
    first = figure.axes[0]
    named = [line for line in first.lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in named] == ["seed 0", "seed 1", "seed 2"]
    assert (
        len({line.get_color() for line in named})
        == len({line.get_linestyle() for line in named})
        == 3
    )
    labels = {
        text.get_text(): text.xy[1] for text in first.texts if text.get_text().startswith("seed")
    }
    assert (
        sorted(labels) == ["seed 0", "seed 1", "seed 2"]
        and np.diff(sorted(labels.values())).min() >= 0.05
    )


def test_curves_without_evaluations_or_columns():
    bare = metrics()[["step", "correct"]]
    assert curves.evaluations(bare).empty
    texts = [
        t.get_text() for axes in curves.learning_curves({"run": bare}).axes for t in axes.texts
    ]
    assert texts.count("not recorded") == 3 and not any("validation" in t for t in texts)


@pytest.mark.parametrize("paper", [style.LIGHT.paper, style.DARK.paper])
def test_curve_colours_stand_out(paper):
    assert all(contrast(color, paper) >= 3 for color in style.COLORS)
    assert contrast(style.INK, style.LIGHT.paper) >= 4.5


# ---- page ----------------------------------------------------------------------------------------


def whole_page() -> str:
    figure = svg(curves.learning_curves({"<run>": metrics()}), 'curves "<1>"')
    heat_map = html.group_html(
        group(rollout(range(len(HOSTILE)))), [[0.5] * len(HOSTILE)], HOSTILE.__getitem__
    )
    return page(
        "<title>",
        "a & b",
        [
            Section("<one>", figure + heat_map),
            Section(
                "two",
                table(["<a>", "b"], [["<x>", "&"]])
                + cards(["</pre>"])
                + preformatted("<script>")
                + paragraphs("<i>"),
            ),
        ],
    )


def test_page_is_self_contained():
    made = whole_page()
    assert not re.search(r"(https?:)?//|@import|url\((?!#)", made)
    reader = read(made)
    assert not {e["tag"] for e in reader.elements} & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "i",
    }
    for element in reader.elements:
        assert all(element.get(name, "#").startswith("#") for name in ("href", "src")), element
    ids = [e["id"] for e in reader.elements if "id" in e]
    assert len(ids) == len(set(ids)), "ids are unique"
    assert {e["href"][1:] for e in reader.elements if e.get("href")} <= set(ids)


def test_page_escapes_and_names_things():
    reader = read(whole_page())
    for text in ("<title>", "a & b", "<one>", "<a>", "<x>", "</pre>", "<script>", "<i>"):
        assert text in reader.text
    (image,) = (e for e in reader.elements if e["tag"] == "svg")
    assert image["role"] == "img" and image["aria-label"] == 'curves "<1>"'
    assert "currentColor" in whole_page() and style.INK not in whole_page()


def test_plain_table_is_aligned():
    assert plain_table(
        ["what", "before", "after"], [["correct", "0.4", "0.65"], ["length, tokens", "7", "8"]]
    ) == (
        "what            before  after\n"
        "correct            0.4   0.65\n"
        "length, tokens       7      8"
    )


def test_signed():
    assert [tokens.signed(v) for v in (1.234, -1.234, 0.0, math.nan, -0.001)] == [
        "+1.23",
        "−1.23",
        "0",
        "none",
        "−0.00",
    ]
    assert tokens.marked(math.nan) == "· none"
