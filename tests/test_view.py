"""The token view without a browser: what it computes, draws statically, sends, and lets Python and
the browser set.
"""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_viz import HOSTILE, contrast, group, read, rollout

from workbench.core import Inspection, Step, TokenStats, WorkbenchError
from workbench.records import Run
from workbench.viz import display, html, style, tokens
from workbench.viz.layers import all_layers, channel_of
from workbench.viz.texts import Written
from workbench.viz.view import STATIC_TOKENS, TokenView

WIDGET = "application/vnd.jupyter.widget-view+json"
TEXTS = ["a", "b\n", "c", "d\n", "e"]


def displayed(shown) -> list[dict]:
    """What a notebook gets when a cell ends with ``shown``: the data of each of its outputs."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    InteractiveShell.instance()
    try:
        with capture_output() as captured:
            shown._ipython_display_()
    finally:
        InteractiveShell.clear_instance()
        del sys.ps1  # by which others would think that they are at a prompt
    print(captured.stdout, end="")
    return [output.data for output in captured.outputs]


def reading(*logprobs, k=2) -> TokenStats:
    size = len(logprobs)
    return TokenStats(
        (1,),
        np.array(logprobs),
        np.full(size, 0.5),
        np.arange(1, size + 1),
        np.tile(np.arange(k), (size, 1)),
        np.tile(np.log([0.75, 0.25])[:k], (size, 1)),
    )


def inspection(**more) -> Inspection:
    """Two rollouts of 5 and 3 tokens; the second has no teacher. Step 2 of the first is wrong."""
    pair = group(rollout([0, 1, 2, 3, 4], reward=0.0), rollout([0, 1, 4]))
    pair = type(pair)(
        pair.problem,
        (
            type(pair.rollouts[0])(**{**vars(pair.rollouts[0]), "text": "ab\ncd\ne"}),
            pair.rollouts[1],
        ),
    )
    layers = {
        "GRPO credit": (np.array([-1.0, -1, -2, -1, 0]), np.array([1.0, 1, np.nan])),
        "GRPO pg": (np.array([-1.0, -1, -1, -1, 0]), np.array([1.0, 1, np.nan])),
    }
    return Inspection(
        pair,
        layers,
        (reading(-1, -2, -3, -4, -5), reading(-0.5, -0.5, -0.5)),
        (reading(-1.5, -2, -2, -4, -9), None),
        (Step(1, 3, 6), None),
        **more,
    )


@pytest.fixture
def view() -> TokenView:
    return TokenView(inspection(), TEXTS.__getitem__)


# ---- layers --------------------------------------------------------------------------------------


def test_layers_follow_from_the_readings():
    found = all_layers(inspection())
    assert found["delta"][0].tolist() == [-0.5, 0, 1, 0, -4] and np.isnan(found["delta"][1]).all()
    assert found["log-prob"][0].tolist() == [-1, -2, -3, -4, -5] and found["teacher log-prob"][
        0
    ].tolist() == [-1.5, -2, -2, -4, -9]
    assert found["rank"][0].tolist() == pytest.approx(np.log2([1, 2, 3, 4, 5]))
    assert found["ratio"][0][1] == pytest.approx(math.exp(-2 + 0.1) - 1), "the sampler said -0.1"
    assert found["GRPO mask"][0].tolist() == [1, 1, 1, 1, 0] and found["GRPO mask"][1].tolist() == [
        1,
        1,
        0,
    ]
    assert "borrowed" not in found and np.isnan(found["teacher entropy"][1]).all()


def test_layers_of_the_inspection_are_not_replaced_and_a_bare_group_has_some():
    given = {"delta": (np.zeros(5), np.zeros(3))}
    made = inspection()
    assert (
        all_layers(Inspection(made.group, given, made.student, made.teacher))["delta"]
        is given["delta"]
    )
    bare = all_layers(Inspection(group(rollout([1, 2, 3], origin="guided", borrowed=2)), {}))
    assert list(bare) == ["log-prob", "borrowed"] and bare["borrowed"][0].tolist() == [1, 1, 0]


def test_what_a_layer_means_goes_by_the_last_word_of_its_name():
    assert (
        channel_of("GRPO credit").unit == tokens.CREDIT.unit
        and channel_of("GRPO credit").name == "GRPO credit"
    )
    assert not channel_of("teacher entropy").signed and channel_of("delta").signed
    truth = channel_of("true advantage")
    assert truth.signed and truth.unit == "change of the chance of ending right"
    assert (channel_of("mine").up, channel_of("mine").down) == ("positive", "negative")


# ---- what the browser gets -----------------------------------------------------------------------


def test_data_is_plain_json_with_both_sides(view):
    data = json.loads(json.dumps(view.data(), allow_nan=False))
    (shown,) = data["groups"]
    first, second = shown["rollouts"]
    assert [data["texts"][i] for i in first["texts"]] == ["a", "b⏎", "c", "d⏎", "e"]
    assert first["starts"] == [0, 2, 4] and first["wrong"] == 1 and second["wrong"] is None
    assert set(first["sides"]) == {"student", "teacher"} and set(second["sides"]) == {"student"}
    assert [data["texts"][i] for i in first["sides"]["teacher"]["top"][2]] == ["a", "b⏎"]
    assert first["sides"]["teacher"]["top_logprob"][2] == [-0.2877, -1.386] and first["sides"][
        "teacher"
    ]["rank"] == [1, 2, 3, 4, 5]
    layers = {layer["name"]: layer for layer in shown["layers"]}
    assert layers["GRPO credit"]["values"][1] == [1, 1, None]
    assert layers["delta"]["max"] == 4 and layers["delta"]["robust"] == 4
    assert not layers["entropy"]["signed"]


def test_a_wrong_step_is_found_by_line_breaks_not_by_lengths():
    made = inspection()
    longer = TokenView(made, ["<several>", "b\n", "c", "d\n", "e"].__getitem__)
    assert longer.data()["groups"][0]["rollouts"][0]["wrong"] == 1
    missing = Inspection(made.group, {}, first_errors=(Step(3, 7, 7), None))
    assert TokenView(missing, TEXTS.__getitem__).data()["groups"][0]["rollouts"][0]["wrong"] == 2, (
        "a missing step: the last"
    )


def test_a_recorded_run_and_bare_groups_can_be_shown(tmp_path):
    pair = inspection().group
    run = Run(
        tmp_path,
        {},
        {},
        None,
        ((4, pair, [[0.5, None, 0, 0, 0], []]), (9, pair, [[1] * 5, [1] * 3])),
    )
    view = TokenView(run, TEXTS.__getitem__)
    assert [g["title"] for g in view.data()["groups"]] == ["step 4: p", "step 9: p"]
    assert view.layer == "credit" and view.to_frame()["credit"].tolist()[:2] == [
        0.5,
        pytest.approx(math.nan, nan_ok=True),
    ]
    assert np.isnan(view.layers[0]["credit"][1]).all()
    named = TokenView(pair, TEXTS.__getitem__, layers={"mine": [[1] * 5, [2] * 3]})
    assert named.layer == "mine" and "log-prob" in named.layers[0]
    with pytest.raises(
        WorkbenchError, match="layer 'mine' does not have one number for each token"
    ):
        TokenView(pair, TEXTS.__getitem__, layers={"mine": [[1] * 4, [2] * 3]})
    with pytest.raises(WorkbenchError, match="no group"):
        TokenView([], str)


# ---- state ---------------------------------------------------------------------------------------


def test_what_is_chosen_is_checked(view):
    view.failure_point, view.span = np.int64(4), [1, 5]
    assert (view.failure_point, view.span) == (4, (1, 5))
    for name, value, words in [
        ("failure_point", 5, "failure_point 5 is outside 0 to 4"),
        ("failure_point", -1, "outside"),
        ("failure_point", "x", "failure_point is a number from 0 to 4, not 'x'"),
        ("selected", 2, "selected 2 is outside 0 to 1"),
        (
            "span",
            (3, 3),
            r"span \(3, 3\) is not a part of the 5 tokens of rollout "
            r"0",
        ),
        ("span", (1, 6), "not a part"),
        ("span", 3, r"span is \(start, end\) or None, not 3"),
        ("layer", "no", "no layer 'no'; there are GRPO credit, GRPO pg"),
        ("beside", "no", "no layer 'no' to put beside"),
        ("beside", 2, "beside 2 is outside"),
        ("group", 1, "group 1 is outside"),
    ]:
        with pytest.raises(WorkbenchError, match=words):
            setattr(view, name, value)
    assert (view.failure_point, view.span, view.layer) == (4, (1, 5), "GRPO credit"), (
        "nothing of a refused value stays"
    )
    view.selected = 1
    assert (view.failure_point, view.span) == (None, None), "they were places in another rollout"


def test_callbacks_hear_of_what_they_asked_for(view):
    points, everything = [], []
    view.on_change(lambda v: points.append(v.failure_point), "failure_point")
    view.on_change(lambda v: everything.append(v.layer))
    view.failure_point = 2
    view.layer = "delta"
    view.failure_point = 2  # not a change
    view.selected = 1
    assert points == [2, None] and everything == ["GRPO credit", "delta", "delta"]


def test_another_group_starts_afresh():
    bare = group(rollout([0, 1]))
    view = TokenView([inspection(), bare], TEXTS.__getitem__, layer="GRPO pg", beside="delta")
    view.selected, view.failure_point = 1, 2
    view.group = 1
    assert (view.selected, view.failure_point, view.layer, view.beside) == (
        0,
        None,
        "log-prob",
        None,
    )


def test_the_widget_and_python_agree(view):
    pytest.importorskip("anywidget")
    view.failure_point = 3
    widget, heard = view.widget, []
    assert (
        widget.failure_point == 3 and widget.layer == "GRPO credit" and widget.data == view.data()
    )
    view.on_change(
        lambda v: heard.append((v.selected, v.failure_point, v.span)),
        "selected",
        "failure_point",
        "span",
    )
    widget.set_state({"selected": 1, "failure_point": 2, "span": [0, 3]})  # what a click sends
    assert (view.selected, view.failure_point, view.span) == (1, 2, (0, 3)) and heard == [
        (1, 2, (0, 3))
    ]
    view.span = None
    assert widget.span is None
    widget.set_state({"failure_point": 3})  # rollout 1 has three tokens
    assert view.failure_point == widget.failure_point == 2
    view.beside = 0
    assert widget.beside == 0


def test_works_without_anywidget():
    code = (
        "import sys; sys.modules['anywidget'] = None; sys.path.insert(0, 'tests')\n"
        "from test_view import *\n"
        "view = TokenView(inspection(), TEXTS.__getitem__)\n"
        "assert [set(data) for data in displayed(view)] == [{'text/plain', 'text/html'}] and "
        "view.to_png()\n"
        "try: view.widget\n"
        "except WorkbenchError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(
        "the live token view needs anywidget: pip install 'workbench[notebook]'"
    )


# ---- static --------------------------------------------------------------------------------------


def tokens_of(html: str) -> list[dict]:
    return [e for e in read(html).elements if e.get("role") == "img"]


def test_static_html_switches_layers_without_a_script(view):
    view.layer = "delta"
    made = view.to_html()
    page = read(made)
    buttons = [e for e in page.elements if e["tag"] == "input"]
    assert (
        len(buttons) == len(view.layers[0])
        and [b for b in buttons if "checked" in b] == buttons[:1]
    )
    assert not {e["tag"] for e in page.elements} & {"script", "link", "img", "iframe"}
    spans = tokens_of(made)
    assert len(spans) == 8
    loss = spans[4]  # delta -4, credit 0
    assert (
        "w0d8" in loss["class"].split() and f"background-color:{style.LIGHT.down}" in loss["style"]
    ), "the first layer needs no style sheet"
    assert (
        loss["aria-label"] == "“e”, token 5 of 5"
        and "delta −4.000" in loss["title"]
        and "entropy 0.500" in loss["title"]
    )
    wrong = spans[2]
    assert (
        "w1d8" in wrong["class"]
        and "wb-wrong" in wrong["class"]
        and "first wrong step" in wrong["aria-label"]
    )
    captions = [e for e in page.elements if e["tag"] == "figcaption"]
    assert (
        captions[0]["text"].startswith("delta")
        and "style" not in captions[0]
        and all(c["style"] == "display:none" for c in captions[1:])
    )
    sums = [
        e["text"].strip()
        for e in page.elements
        if "wb-only1" in e.get("class", "").split() and e["tag"] == "span"
    ]
    assert sums[:3] == ["▼ −2.00", "▼ −3.00", "· 0"], "the credit of each step"
    assert ":has(.wb-r1:checked) .wb-toks .w1d8{background-color:var(--wb-d8)!important}" in made


def test_static_html_shows_what_was_chosen(view):
    view.failure_point, view.span = 2, (2, 4)
    classes = [e["class"].split() for e in tokens_of(view.to_html())]
    assert ["wb-fail" in c for c in classes[:5]] == [False, False, True, False, False]
    assert ["wb-range" in c for c in classes[:5]] == [False, False, True, True, False]


def test_a_notebook_without_widget_state_has_the_colours(view):
    static, live = displayed(view)
    assert "<figure" in static["text/html"] and "w0d" in static["text/html"]
    assert WIDGET not in static, "JupyterLab would show the widget alone, or that it is gone"
    assert live[WIDGET]["model_id"] == view.widget.model_id
    words = {kind: text for kind, text in live.items() if kind.startswith("text/")}
    assert words == {"text/html": ""}, "GitHub would show it"
    long = TokenView(
        group(rollout([0] * (STATIC_TOKENS + 1))),
        TEXTS.__getitem__,
        layers={"mine": [[1.0] * (STATIC_TOKENS + 1)]},
    )
    small = displayed(long)[0]["text/html"]
    assert "mine" in small and "log-prob</label>" not in small and 'type="radio"' not in small


def test_nbconvert_shows_the_static_twin(view):
    pytest.importorskip("nbconvert")
    import nbformat
    from nbconvert import HTMLExporter

    outputs = [nbformat.v4.new_output("display_data", data) for data in displayed(view)]
    cell = nbformat.v4.new_code_cell("view", outputs=outputs)
    page, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))

    def drawn(text):
        return re.findall(r'class="(wb-t w0[^"]*)"', text)

    assert drawn(page) == drawn(view.to_html()) != [] and page.count('type="radio"') == len(
        view.layers[0]
    )


def test_an_export_says_what_it_weighs_and_how_to_make_it_smaller(
    view, tmp_path, capsys, monkeypatch
):
    path = tmp_path / "a.html"
    assert view.to_html(path) is None, "a cell that ends with it would show all of the page"
    assert capsys.readouterr().out == f"{path}: 0.1 MB\n"
    monkeypatch.setattr(display, "BIG", 0.3)
    values = [[1.0] * 3000]
    layers = {"one": values, "two": values}
    long = TokenView(group(rollout([0] * 3000)), TEXTS.__getitem__, layers=layers)
    long.to_html(path)
    assert capsys.readouterr().out.endswith(
        f"{path.stat().st_size / 1e6:.1f} MB (layers=['one'] makes it smaller)\n"
    )
    whole = path.stat().st_size
    long.to_html(path, layers=["one"])
    assert path.stat().st_size < 0.8 * whole and "two" not in path.read_text()
    with pytest.raises(WorkbenchError, match="there is no layer 'three'; there are one, two"):
        long.to_html(path, layers=["three"])
    displayed(long)
    words = "(a group of fewer rollouts makes it smaller) to the notebook."
    assert re.fullmatch(rf"This adds \d\.\d MB {re.escape(words)}", read_last(capsys))


def read_last(capsys) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_the_page_and_the_picture_are_written(view, tmp_path):
    view.to_html(tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert (
        text.startswith('<!doctype html><html lang="en"><meta charset="utf-8">')
        and view.to_html() in text
    )
    view.failure_point = 1
    view.to_png(tmp_path / "a.png")
    assert view.to_png() == (tmp_path / "a.png").read_bytes()
    assert view.to_png()[:8] == b"\x89PNG\r\n\x1a\n"
    from matplotlib.image import imread

    pixels = {
        tuple(p)
        for p in (imread(tmp_path / "a.png")[..., :3].reshape(-1, 3) * 255)
        .round()
        .astype(int)
        .tolist()
    }
    limit = tokens.robust_limit([-1.0, -1, -2, -1, 1, 1])
    for value in (-1.0, -2.0, 1.0):
        assert style.rgb(style.background(style.level(value, limit), style.LIGHT)) in pixels


def test_one_row_a_token(view):
    frame = view.to_frame()
    assert len(frame) == 8 and frame["token"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert frame["text"].tolist()[:5] == TEXTS and frame["step"].tolist()[:5] == [0, 0, 1, 1, 2]
    assert (
        frame["GRPO credit"][2] == -2 and frame["delta"][4] == -4 and math.isnan(frame["delta"][6])
    )
    assert frame["first_wrong_step"].tolist() == [
        False,
        False,
        True,
        True,
        False,
        False,
        False,
        False,
    ]
    assert frame["reward"].tolist() == [0.0] * 5 + [1.0] * 3


def test_hostile_text_stays_text():
    ids = list(range(len(HOSTILE)))
    hostile = group(rollout(ids), question="<script>" + HOSTILE[6])
    view = TokenView(hostile, HOSTILE.__getitem__, layers={"<b>": [np.linspace(-1, 1, len(ids))]})
    page = read(view.to_html())
    assert [e["text"] for e in page.elements if e.get("role") == "img"] == [
        *Written.of(range(len(HOSTILE)), HOSTILE.__getitem__).shown()
    ]
    assert {e["tag"] for e in page.elements} <= {
        "figure",
        "style",
        "figcaption",
        "div",
        "section",
        "span",
        "b",
        "br",
        *("form", "label", "input", "details", "summary", "p"),
    }
    assert view.to_png()
    json.dumps(view.data()).encode()
    assert view.data()["texts"][6] == "⟨U+202E⟩olleh⟨U+202C⟩"


@pytest.mark.parametrize("theme", [style.LIGHT, style.DARK])
def test_sizes_are_readable_and_grow(theme):
    shades = [style.background(shade, theme, signed=False) for shade in range(style.LEVELS + 1)]
    ratios = [contrast(theme.ink, shade) for shade in shades]
    assert (
        min(ratios) >= 4.5
        and ratios == sorted(ratios, reverse=True)
        and len(set(shades)) == len(shades)
    )
    assert contrast(theme.size_line, theme.paper) >= 4.5
    assert all(contrast(line, theme.paper) >= 3 for line in (theme.up_line, theme.down_line)), (
        "focus rings"
    )


def test_colours_follow_the_system_and_jupyterlab():
    sheet = html.css()
    light, dark = f"--wb-paper:{style.LIGHT.paper}", f"--wb-paper:{style.DARK.paper}"
    system, lab_light, lab_dark = (
        sheet.index(s)
        for s in (
            "@media(prefers-color-scheme:dark)",
            '[data-jp-theme-light="true"]',
            '[data-jp-theme-light="false"]',
        )
    )
    assert (
        sheet.index(light)
        < system
        < sheet.index(dark)
        < lab_light
        < sheet.index(light, lab_light)
        < lab_dark
        < sheet.index(dark, lab_dark)
    )


def test_sizes_have_no_sign():
    html = TokenView(inspection(), TEXTS.__getitem__, layer="entropy").to_html()
    first = tokens_of(html)[0]
    assert "w0s8" in first["class"] and "border-bottom:2px dotted" in first["style"]
    caption = next(e["text"] for e in read(html).elements if e["tag"] == "figcaption")
    assert "0.50: less sure, dotted line" in caption and "▲" not in caption
