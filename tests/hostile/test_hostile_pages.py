"""Words from outside on every page: questions, completions, names, feedback, files.

A page has the same elements and attributes whatever the words are; they are text on it.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from workbench.core import Group, Inspection, Problem, Rollout, Verdict
from workbench.viz import curves, html, page
from workbench.viz.tokens import Channel, Layer
from workbench.viz.view import TokenView

FIRE = "window.fired=1"
HOSTILE = [
    f"<script>{FIRE}</script>",
    f"</script><script>{FIRE}</script>",
    f"<SCRIPT SRC=data:text/javascript,{FIRE}></SCRIPT>",
    f"<scr\0ipt>{FIRE}</scr\0ipt>",
    f"<<script>{FIRE}//<</script>",
    f"</style><script>{FIRE}</script>",
    f"</title><script>{FIRE}</script>",
    f"</textarea></select></pre></figure><script>{FIRE}</script>",
    f"<img src=x onerror={FIRE}>",
    f"<img src=x onerror={FIRE}//",
    f"<svg onload={FIRE}>",
    f"<svg><script>{FIRE}</script></svg>",
    f"<svg><animate onbegin={FIRE} attributeName=x dur=1s>",
    f"<svg><use href='data:image/svg+xml,<svg onload={FIRE}>#x'/></svg>",
    f"<svg><foreignObject><body onload={FIRE}></foreignObject></svg>",
    f"<math><mtext></mtext><mglyph><style><img src=x onerror={FIRE}></style></math>",
    f"<details open ontoggle={FIRE}>",
    f"<body onload={FIRE}>",
    f"<input autofocus onfocus={FIRE}>",
    f"<iframe srcdoc='<script>parent.{FIRE}</script>'>",
    f"<iframe src='javascript:parent.{FIRE}'>",
    f"<object data='data:text/html,<script>parent.{FIRE}</script>'>",
    f"<a href='javascript:{FIRE}'>x</a>",
    f"javascript:{FIRE}",
    f"<form action='javascript:{FIRE}'><button autofocus>",
    f"<meta http-equiv=refresh content='0;url=javascript:{FIRE}'>",
    "<base href='https://example.invalid/'>",
    "<link rel=stylesheet href='https://example.invalid/x.css'>",
    "<style>*{background:url(https://example.invalid/)}</style>",
    "@import url('https://example.invalid/x.css');",
    "red;background:url(https://example.invalid/)",
    "}*{color:red}/*",
    "expression(alert(1))",
    f'" onmouseover="{FIRE}" style="position:fixed;inset:0" x="',
    f"' onmouseover='{FIRE}' x='",
    f"` onmouseover=`{FIRE}` x=`",
    f"x onmouseover={FIRE}",
    "--><b>",
    "<!--",
    f"<!--><script>{FIRE}</script>-->",
    "<![CDATA[<b>]]>",
    f"]]><script>{FIRE}</script>",
    "<?xml version='1.0'?>",
    "<!DOCTYPE html>",
    "&lt;b&gt;&#60;script&#62;&#x3c;b",
    "&notanentity;&amp",
    "\u2028\u2029</script>",
    "\u202egnp.exe\u202c",
    "\u2066\u2067\u2068\u200f\u061c",
    "\x1b[2J\x1b]0;title\x07",
    "\x00\x01\x08\x7f\x85\x9b",
    "\ufeff\u200b\u2060",
    "\ud800",
    "\udfff<b>",
    "a\r\n<b>\tc",
    f"${FIRE} ${{{FIRE}}} {{{{{FIRE}}}}}",
    "%3Cscript%3E \\u003cscript\\u003e \\x3cscript\\x3e",
    "＜script＞ ‹script› ＂onload＂",
    "x" * 20_000,
]
TOKENS = list(range(6))
SAFE = """html head meta title style body main h1 h2 h3 p nav ol li a section figure figcaption div
span b br pre table thead tbody tr th td form label input details summary code svg defs g path text
tspan use clippath rect circle line"""


class Skeleton(HTMLParser):
    """The elements of a page, with the names of their attributes, and its text."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.parts: list[tuple] = []
        self.styles: list[str] = []
        self.text = ""
        self.inside = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        self.parts.append((tag, *sorted(name for name, _ in attrs)))
        assert tag in SAFE.split(), tag
        for name, value in attrs:
            value = value or ""
            assert not name.startswith("on") and name not in ("srcdoc", "src", "action"), name
            if name in ("href", "xlink:href"):
                assert value.startswith("#"), value
            if name == "style":
                assert not {"url(", "expression", "@import", "position"} & set(value.split(":"))
                assert "url(" not in value.replace("url(#", "")

    def handle_endtag(self, tag):
        self.inside = ""
        self.parts.append(("/", tag))

    def handle_data(self, data):
        if self.inside == "style":
            self.styles.append(data)
        else:
            self.text += data

    def handle_comment(self, data):
        self.parts.append(("comment", data))

    def handle_decl(self, decl):
        self.parts.append(("declaration", decl))

    def handle_pi(self, data):
        self.parts.append(("instruction", data))

    def unknown_decl(self, data):
        self.parts.append(("unknown", data))


def decode(word: str):
    return [word, "1", word + "2", "3", "4", word].__getitem__


def asked(question: str, *rollouts: Rollout) -> Group:
    messages = ({"role": "system", "content": question}, {"role": "user", "content": question})
    return Group(Problem(question, messages, question), rollouts)


def answered(word: str, reward: float) -> Rollout:
    ids = tuple(TOKENS)
    verdict = Verdict(reward, reward == 1, word)
    return Rollout((1,), ids, tuple(-0.1 * i for i in ids), f"1\n{word}", verdict)


VALUES = [np.linspace(-1, 1, 6), np.linspace(1, -1, 6)]


def pair(word: str) -> Group:
    return asked(word, answered(word, 1.0), answered(word, 0.0))


# --- every page, as a function of one word --------------------------------------------------------


def heat_map(word):
    return html.group_html(pair(word), VALUES, decode(word))


def heat_map_with_names(word):
    channel = Channel(word, word, word, word)
    return html.group_html(pair(word), VALUES, decode(""), channel=channel, labels=[word, word])


def layers_and_marks(word):
    layers = [Layer.of(Channel(f"{word}{i}", word, word, word), VALUES) for i in range(3)]
    marks = {(0, 1): word, (1, 2): f"failure point, {word}"}
    return html.layers_html(pair(word), layers, decode(word), marks=marks)


def view_of_layers(word):
    layers = {f"{word} credit": VALUES, f"other {word}": VALUES}
    view = TokenView(pair(word), decode(word), layers=layers)
    view.failure_point = 2
    return view.to_html()


def view_of_an_inspection(word):
    layers = {"credit": tuple(VALUES), f"{word}": tuple(VALUES)}
    return TokenView(Inspection(pair(word), layers), decode(word)).to_html()


def view_page(word, folder):
    TokenView(pair(word), decode(word), layers={word: VALUES}).to_html(folder / "view.html")
    return (folder / "view.html").read_text(encoding="utf-8")


def headings(word):
    sections = [page.Section(word, page.paragraphs("a")), page.Section(word, "")]
    return page.page(word, word, sections)


def prose(word):
    return page.page("a", "b", [page.Section("c", page.paragraphs(word, word))])


def preformatted(word):
    return page.preformatted(word)


def cards(word):
    return page.cards([word, word])


def a_table(word):
    return page.table([word, word], [[word, word], ["a", word]])


def a_picture(word):
    return page.svg(curves.learning_curves({"run": METRICS}), word)


METRICS = pd.DataFrame(
    {
        "step": range(4),
        "correct": [0.1, 0.2, 0.3, 0.4],
        "contrast": 0.5,
        "entropy": 1.0,
        "length": 9.0,
        "generated": 10,
        "loss": 0.1,
        "seconds_sample": 1.0,
        "seconds_train": 1.0,
    }
)
PAGES = [
    heat_map,
    heat_map_with_names,
    layers_and_marks,
    view_of_layers,
    view_of_an_inspection,
    headings,
    prose,
    preformatted,
    cards,
    a_table,
]


def check(hostile: str, harmless: str) -> Skeleton:
    """The same elements, the same style sheet, and nothing in it that turns or breaks a page."""
    one, other = Skeleton(hostile), Skeleton(harmless)
    assert one.parts == other.parts
    assert len(one.styles) == len(other.styles)
    hostile.encode()
    unseen = set("\0\x1b\x07\x7f\x85\u202e\u2066\u2067\u2068\u200f\u061c\u2028\u2029")
    assert not unseen & set(hostile)
    return one


@cache
def harmless_page(make, word: str) -> str:
    return make(word)


def like(word: str) -> str:
    """As long, with the same line breaks."""
    return "".join("\n" if character == "\n" else "x" for character in word)


@pytest.mark.parametrize(
    "word",
    [
        pytest.param(w, marks=pytest.mark.slow if i % 5 else (), id=str(i))
        for i, w in enumerate(HOSTILE)
    ],
)
@pytest.mark.parametrize("make", PAGES, ids=lambda make: make.__name__)
def test_words_are_text(make, word):
    skeleton = check(make(word), harmless_page(make, like(word)))
    if word.isprintable() and " " not in word and len(word) < 100:
        assert word in skeleton.text


def test_a_view_as_a_page(tmp_path):
    for word in HOSTILE[:4]:
        check(view_page(word, tmp_path), view_page("x" * len(word), tmp_path))


def test_a_picture_has_its_words_as_text():
    for word in HOSTILE[:1]:
        check(a_picture(word), a_picture("x"))


# a run's folder has the name of a file; $ is a matter of the figures themselves
NAMES = [w for w in HOSTILE if w.isprintable() and "$" not in w and len(w) < 99]


def test_names_in_curves():
    def drawn(names):
        return page.svg(curves.learning_curves(dict.fromkeys(names, METRICS)), "curves")

    one = check(drawn(NAMES), drawn([f"run {i}" for i in range(len(NAMES))]))
    assert all(name in one.text for name in NAMES)


def test_names_in_comparisons():
    from workbench.viz import comparison

    def drawn(names):
        rows = [
            {"arm": n, "seed": 0, "updates": u, "tokens": u, "avg": 0.1}
            for n in names
            for u in (1, 2)
        ]
        effect = SimpleNamespace(mean=0.1, low=-0.1, high=0.2, seeds=2)
        cells = pd.DataFrame([{"arm": n, "pass@1": 0.1, "pass@2": 0.2} for n in names])
        figures = [
            comparison.bands(pd.DataFrame(rows)),
            comparison.forest(dict.fromkeys(names, effect)),
            comparison.pass_curves(cells, names),
        ]
        return "".join(page.svg(figure, "x") for figure in figures)

    one = Skeleton(drawn(NAMES[:12]))  # (long names leave room for fewer ticks)
    assert all(name in one.text for name in NAMES[:12])


def run_folder(root, name: str, word: str):
    folder = root / name
    folder.mkdir(parents=True)
    config = {"schema_version": 1, "method": word, "model": word, "plan": {"seed": word}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "env.json").write_text("{}")
    (folder / "groups.jsonl").write_text("")
    METRICS.to_json(folder / "metrics.jsonl", orient="records", lines=True)
    return folder


def test_a_comparison_of_runs(tmp_path):
    from workbench.app.compare import write_page
    from workbench.records import SCHEMA_VERSION

    assert SCHEMA_VERSION == 1
    for number, word in enumerate(NAMES[:12:6]):
        name = word.replace("/", "|")
        hostile = run_folder(tmp_path / f"a{number}", name, word)
        harmless = run_folder(tmp_path / f"b{number}", "x", "x")
        pages = []
        for folder in (hostile, harmless):
            write_page([folder], tmp_path / "page.html")
            pages.append((tmp_path / "page.html").read_text(encoding="utf-8"))
        check(*pages)
        shutil.rmtree(hostile)


def story(word):
    from workbench.app.tour_page import Story
    from workbench.methods.grpo import GRPO
    from workbench.training.run import TrainConfig

    groups = [pair(word)]

    def text(ids):
        return word if 0 in ids else "1"

    policy = SimpleNamespace(
        model=SimpleNamespace(parameters=list), decode=text, tokenizer=SimpleNamespace(decode=text)
    )
    run = SimpleNamespace(metrics=METRICS, groups=[(0, groups[0], VALUES)])
    task = SimpleNamespace(name=word, first_error=lambda problem, text: None)
    return Story(groups, groups, run, policy, word, task, GRPO(), TrainConfig())


@pytest.mark.parametrize(
    "number", [0, 50, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, len(HOSTILE), 5))]
)
def test_the_tour(number):
    from workbench.app.tour_page import tour_page

    word = HOSTILE[number]
    harmless = like(word)
    check(tour_page(story(word), word), tour_page(story(harmless), harmless))


def test_what_the_browser_gets_is_plain():
    """As JSON inside a script element it could not end it either: nothing here writes one, and what
    turns a page is visible before it is sent.
    """
    for word in HOSTILE[40:]:
        view = TokenView(pair(word), decode(word), layers={word: VALUES})
        data = json.dumps(view.data(), ensure_ascii=False)
        assert not set("\0\x1b\u202e\u2028\u2029\u200f") & set("".join(view.data()["texts"]))
        assert json.loads(data)["groups"][0]["rollouts"]


def test_a_picture_of_tokens_is_drawn():
    for word in HOSTILE[::20]:
        assert TokenView(pair(word), decode(word), layers={"a": VALUES}).to_png()[:4] == b"\x89PNG"


def test_the_live_view_sets_text_and_never_markup():
    from workbench.viz.view import HERE

    source = (HERE / "view.js").read_text(encoding="utf-8")
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "srcdoc",
    ):
        assert word not in source


def test_there_are_enough():
    assert len(HOSTILE) >= 50 and len(set(HOSTILE)) == len(HOSTILE)
    assert len(PAGES) * len(HOSTILE) >= 500


# --- in a browser ---------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.slow
def test_nothing_is_executed():
    """Every page with every word, in a browser: nothing runs, nothing is asked of the network."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs chromium on the PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()
        requests, dialogs = [], []
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("dialog", lambda dialog: dialogs.append(dialog.dismiss()))
        for word in HOSTILE:
            body = "".join(make(word) for make in PAGES if make is not headings)
            for source in (f"<!doctype html><body>{body}", headings(word)):
                tab.set_content(source, wait_until="load")
                tab.mouse.move(100, 100)
                assert tab.evaluate("window.fired") is None, word
        tab.set_content(f"<img src=x onerror={FIRE}>", wait_until="load")
        tab.wait_for_function("window.fired")  # so that it would have been seen
        browser.close()
    assert not dialogs and [url for url in requests if not url.endswith("x")] == []
