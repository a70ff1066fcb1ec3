"""A self-contained HTML page: one file, no network, no script, light and dark, readable when
printed. The tour and the comparison of runs are such pages.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from workbench.viz.style import DARK, INK, LIGHT
from workbench.viz.texts import escape


@dataclass(frozen=True)
class Section:
    """``html`` is trusted: build it with the functions below, which escape what they are given."""

    title: str
    html: str


def paragraphs(*texts: str) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def preformatted(text: str) -> str:
    return f'<pre tabindex="0">{escape(text)}</pre>'


def cards(texts: Sequence[str]) -> str:
    """Texts side by side, each in a box, as many in a row as fit."""
    return f'<div class="cards">{"".join(map(preformatted, texts))}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column names the row."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = ""
    for name, *cells in rows:
        numbers = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        body += f'<tr><th scope="row">{escape(name)}</th>{numbers}</tr>'
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table as aligned text, for a terminal."""
    return "\n".join("  ".join(cells).rstrip() for cells in _aligned([header, *rows]))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table in Markdown, for pages too narrow for its lines: there cells wrap, not they.

    (Notebooks wrap the lines of a code block, which makes nonsense of aligned text.)
    """
    head, *lines = _aligned([header, *rows])
    name, *cells = ("-" * (len(cell) - 1) for cell in head)
    rule = [f":{name}", *(f"{cell}:" for cell in cells)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    """Cells as wide as their column: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for name, *cells in rows:
        yield [name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]


def svg(figure: Figure, alt: str) -> str:
    """A figure as inline SVG whose axes and text take the page's ink."""
    buffer = io.BytesIO()
    # text stays text; ids differ between the figures of a page
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": alt}):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue().decode(), flags=re.DOTALL)
    text = text[text.index("<svg") :].replace("xlink:href", "href").replace(INK, "currentColor")
    opening, rest = text.split(">", 1)
    opening = re.sub(r' xmlns(:\w+)?="[^"]*"| (width|height)="[^"]*"', "", opening)
    return f'<div class="figure">{opening} role="img" aria-label="{escape(alt)}">{rest}</div>'


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole document. ``lead`` is one plain sentence under the title."""
    links = body = ""
    for number, section in enumerate(sections, 1):
        heading = escape(section.title)
        links += f'<li><a href="#s{number}">{heading}</a></li>'
        body += f'<section id="s{number}"><h2>{heading}</h2>{section.html}</section>'
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title><style>{_CSS}</style></head>
<body><main><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>
<nav aria-label="Contents"><ol>{links}</ol></nav>{body}</main></body></html>
"""


# the colours of a theme, as page.css names them
_COLORS = (
    ":root{{--paper:{0.paper};--ink:{0.ink};--dim:{0.dim};--hair:{0.dim}66;--link:{0.up_line}}}"
)
_CSS = f"""
{_COLORS.format(LIGHT)}
@media(prefers-color-scheme:dark){{{_COLORS.format(DARK)}}}
{Path(__file__).with_name("page.css").read_text(encoding="utf-8")}"""
