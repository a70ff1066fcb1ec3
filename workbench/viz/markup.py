"""Words from outside as text on a page: no markup, and nothing that turns the page around."""

from __future__ import annotations

import html
import re

# control characters but the line break, marks of the direction of writing, halves of characters
_UNSEEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def escape(text: str) -> str:
    """For an element or an attribute in quotes; what cannot be seen is written out, as ⟨U+202E⟩."""
    return html.escape(_UNSEEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text))
