"""Words from outside as text on a page: no markup, and nothing that turns the page around."""

from __future__ import annotations

import html

from workbench.viz.texts import prose


def escape(text: str) -> str:
    """For an element or an attribute in quotes; what cannot be seen is written out, as ⟨U+202E⟩."""
    return html.escape(prose(text))
