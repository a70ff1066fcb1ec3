"""A self-contained HTML page: one file, no network, no script, light and dark, readable when
printed.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from matplotlib import rc_context
from matplotlib.figure import Figure

from workbench.viz.tokens import DARK, LIGHT

# what the figures draw their text and axes in; on a page it becomes the page's own ink
INK = "#3d4148"


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
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        "<div "
        f'class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table as aligned text, for a terminal."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


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
    links = "".join(
        f'<li><a href="#s{i}">{escape(s.title)}</a></li>' for i, s in enumerate(sections, 1)
    )
    body = "".join(
        f'<section id="s{i}"><h2>{escape(s.title)}</h2>{s.html}</section>'
        for i, s in enumerate(sections, 1)
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{_CSS}</style></head>
<body><main><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p><nav aria-label="Contents"><ol>{links}</ol></nav>{body}</main></body></html>
"""


_CSS = f"""
body{{margin:0;background:{LIGHT.paper};color:{LIGHT.ink};font:16px/1.55 system-ui,sans-serif}}
main{{max-width:66rem;margin:0 auto;padding:1.5rem 1rem 4rem}}
p,li{{max-width:44rem}} h1{{line-height:1.2;margin-bottom:.3em}} h2{{margin-top:2.2em;line-height:1.25}}
.lead{{font-size:1.15em;color:{LIGHT.dim};margin-top:0}}
nav ol{{padding-left:1.3em}} a{{color:{LIGHT.up_line}}}
pre{{overflow-x:auto;padding:.8em;border:1px solid {LIGHT.dim}66;border-radius:6px;font:13px/1.45 ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace}}
.wide{{overflow-x:auto}} table{{border-collapse:collapse;font-variant-numeric:tabular-nums}}
th,td{{padding:.35em .9em .35em 0;text-align:right;border-bottom:1px solid {LIGHT.dim}66;vertical-align:top}}
th:first-child{{text-align:left}} tbody th{{font-weight:normal}}
.figure svg{{width:100%;height:auto}} .figure text{{font-family:system-ui,sans-serif!important}}
.cards{{display:grid;gap:.7rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,14rem),1fr))}}
.cards pre{{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}}
@media(prefers-color-scheme:dark){{
body{{background:{DARK.paper};color:{DARK.ink}}} .lead{{color:{DARK.dim}}} a{{color:{DARK.up_line}}}
pre,th,td{{border-color:{DARK.dim}66}}}}"""
