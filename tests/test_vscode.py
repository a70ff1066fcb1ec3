"""A saved or live notebook as VS Code shows it, as far as its public sources tell.

Nobody can press its buttons here, so its rules are written down and played through:

- the types of an output are tried in a fixed order, ``application/vnd.*`` before ``text/html``
  (microsoft/vscode, extensions/ipynb/src/deserializers.ts);
- a workspace that is not trusted shows only types that cannot run anything (notebookCommon.ts);
- a widget has a renderer where the Jupyter extension is installed, which passes the output on to
  the next type where no kernel has its model (microsoft/vscode-jupyter, ipywidgets/renderer), and
  where there is no next one VS Code writes an error (webviewPreloads.ts);
- all outputs of a notebook are in one page, and HTML is put into it as it is, style sheets too;
  the body says which theme it is (backLayerWebView.ts, with the security policy below).
"""

import re

import pytest
from test_browser import browser, colors, texts  # noqa: F401
from test_view import TEXTS, WIDGET, displayed, inspection

from workbench.viz import style
from workbench.viz.view import TokenView

ORDER = ("application/vnd.", "text/html", "text/markdown", "image/png", "text/plain")
HARMLESS = ("text/markdown", "image/png", "text/plain")
ERROR = "no renderer"
POLICY = "default-src 'none';script-src 'unsafe-inline' 'unsafe-eval';style-src 'unsafe-inline'"
# what VS Code's own style sheet does to the elements of an output
SHEET = (
    "table,thead,tr,th,td,tbody{border:none!important;border-collapse:collapse}"
    "table,th,tr{text-align:left!important}th,td{padding:4px 8px}"
    "thead{font-weight:bold;background-color:rgba(130,130,130,.16)}"
    "body{background:#1e1e1e;color:#ccc;font:13px sans-serif}#container>div{overflow-x:auto}"
)


def chosen(data: dict, *, extension: bool, model: bool, trusted: bool) -> str:
    """The type that is shown of one output; "" where none is, ERROR for an error message."""

    def place(kind: str) -> int:
        return next(i for i, start in enumerate(ORDER) if kind.startswith(start))

    for kind in sorted(data, key=place):
        safe = trusted or kind in HARMLESS
        drawn = kind != WIDGET or (extension and model)
        if safe and drawn:
            return kind
    return ERROR if trusted else ""


@pytest.fixture
def outputs():
    return displayed(TokenView(inspection(), TEXTS.__getitem__))


@pytest.mark.parametrize(
    ("how", "static", "live"),
    [
        ({"extension": True, "model": True}, "text/html", WIDGET),
        ({"extension": True, "model": False}, "text/html", "text/html"),
        ({"extension": False, "model": False}, "text/html", "text/html"),
        ({"extension": True, "model": True, "trusted": False}, "text/plain", ""),
    ],
)
def test_each_output_has_something_to_show_and_no_error(outputs, how, static, live):
    assert [chosen(data, **{"trusted": True, **how}) for data in outputs] == [static, live]
    if live == "text/html":
        assert outputs[1]["text/html"] == "", "the static view stands alone"


def opened(browser, outputs, theme: str, scripts: bool = True, system: str = "light"):  # noqa: F811
    """A page with these pieces of HTML, one output each."""
    context = browser.new_context(
        java_script_enabled=scripts, color_scheme=system, viewport={"width": 900, "height": 700}
    )
    page = context.new_page()
    body = "".join(f"<div>{text}</div>" for text in outputs)
    page.set_content(
        f"<meta http-equiv='Content-Security-Policy' content=\"{POLICY}\"><style>{SHEET}</style>"
        f"<body class='{theme}'><div id=container>{body}</div>"
    )
    return page


@pytest.mark.browser
@pytest.mark.parametrize(("theme", "colours"), [("vscode-dark", "DARK"), ("vscode-light", "LIGHT")])
@pytest.mark.parametrize("scripts", [True, False])
def test_the_static_view_is_whole(browser, outputs, theme, colours, scripts):  # noqa: F811
    """In VS Code's theme, not the system's; layers switch, with scripts or without."""
    other = "light" if theme == "vscode-dark" else "dark"
    pieces = [data["text/html"] for data in outputs]
    page = opened(browser, pieces, theme, scripts, other)
    theme = getattr(style, colours)
    assert colors(page.locator(".wb-heat")) == [(theme.ink, theme.paper)]
    page.get_by_label("entropy", exact=True).check()
    [legend] = [text for text in page.locator("figcaption").all() if text.is_visible()]
    assert legend.text_content().startswith("entropy")
    assert colors(page.locator(".wb-card .wb-t"))[0][1] == style.background(8, theme, signed=False)
    cards = [card.bounding_box() for card in page.locator(".wb-card").all()]
    assert cards[0]["y"] == cards[1]["y"], "side by side"
    page.context.close()


@pytest.mark.browser
def test_the_live_view_takes_the_place_of_the_static_one(browser):  # noqa: F811
    """Its style sheet reaches the other output, because both are in one page."""
    view = TokenView(inspection(), TEXTS.__getitem__)
    static = displayed(view)[0]["text/html"]
    rule = f"<style>#{view.widget.twin}{{display:none!important}}</style>live"
    page = opened(browser, [static, rule], "vscode-dark")
    assert not page.locator(".wb-twin").is_visible() and page.get_by_text("live").is_visible()
    page.context.close()


@pytest.mark.browser
def test_what_a_strict_sanitizer_leaves_can_be_read(browser, outputs):  # noqa: F811
    """No style at all, no form, no script: the words stay, in order and once."""
    html = re.sub(r"(?s)<style>.*?</style>|</?(form|input)[^>]*>", "", outputs[0]["text/html"])
    html = re.sub(r""" (style|class|id)=("[^"]*"|[\w:-]+)""", "", html)
    assert "style" not in html.lower()
    page = opened(browser, [html], "vscode-light", scripts=False)
    cards = page.locator("section")
    assert [card.count() for card in cards.all()] == [1, 1]
    written = ["".join(texts(card.locator("[role=img]"))) for card in cards.all()]
    assert written == ["ab⏎cd⏎e", "ab⏎e"]
    assert "reward" in cards.first.text_content()
    page.context.close()
