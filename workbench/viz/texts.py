"""How text that a model wrote is shown: never as markup, its characters whole, and what cannot be
seen made visible.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from workbench.spans import token_starts

# The text of one token id; or a Policy or a tokenizer, which know how tokens are joined.
Decode = Callable[[int], str] | Any

_WHITE_SPACE = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}
# joiners between two characters that a script with joiners, or an emoji, may have
_BESIDE = r"[^\x00-\x7f\u200b-\u200f\u2028-\u202e\u2060-\u206f]"
_JOINERS = re.compile(rf"(?<={_BESIDE})[\u200c\u200d](?={_BESIDE})")
EMPTY = "∅"  # a token without text
REST = "‥"  # a token that holds only the rest of a character


class Written(NamedTuple):
    """A completion as text: where each of its tokens begins, and what each of them says.

    A character that takes several tokens is said by the first of them; the others say "".
    """

    text: str
    starts: list[int]
    pieces: list[str]

    @classmethod
    def of(cls, ids: Sequence[int], decode: Decode) -> Written:
        ids = list(map(int, ids))
        tokenizer = getattr(decode, "tokenizer", decode)
        if not hasattr(tokenizer, "decode"):
            pieces = list(map(decode, ids))
            starts = [0, *accumulate(map(len, pieces))][: len(ids)]
            return cls("".join(pieces), starts, pieces)
        text = tokenizer.decode(ids)
        starts = token_starts(tokenizer.decode, ids)
        pieces: list[str] = []
        said = -1  # where the last piece began
        for t, start in enumerate(starts):
            if start == said:
                pieces.append("")
                continue
            said = start
            end = next((later for later in starts[t + 1 :] if later > start), len(text))
            pieces.append(text[start:end])
        return cls(text, starts, pieces)

    def shown(self) -> list[str]:
        """What is drawn for each token: one space between two words is a space, every other white
        space is marked.
        """
        visible_pieces = []
        for t, (start, piece) in enumerate(zip(self.starts, self.pieces)):
            if not piece:
                inside = t and self.starts[t - 1] == start
                visible_pieces.append(REST if inside else EMPTY)
                continue
            marks = [_mark_in(self.text, start + i) for i in range(len(piece))]
            visible_pieces.append("".join(marks))
        return visible_pieces


def _mark_in(text: str, place: int) -> str:
    around = text[place - 1 : place + 2] if place else ""
    alone = len(around) == 3 and not (around[0].isspace() or around[2].isspace())
    return " " if alone and text[place] == " " else _mark(text, place)


def text_of(token: int, decode: Decode) -> str:
    """The text of one token alone."""
    return Written.of([token], decode).text


def visible(text: str) -> str:
    """Text with its white space, control and direction characters made visible (U+202E would turn
    the page around).
    """
    return "".join(_mark(text, i) for i in range(len(text))) or EMPTY


def prose(text: str) -> str:
    """Text to be read: spaces and line breaks as they are, other characters that cannot be seen
    made visible.
    """
    return "".join(char if char in " \n" else _mark(text, i) for i, char in enumerate(text))


def escape(text: str) -> str:
    """``prose`` for an element of a page, or an attribute in quotes."""
    return html.escape(prose(text))


def table_row(tag: str, cells: Iterable[str], style: str = "") -> str:
    """A row of a table of HTML; ``tag``: td, or th for its head."""
    opening = f'{tag} style="{style}"' if style else tag
    return f"<tr>{''.join(f'<{opening}>{cell}</{tag}>' for cell in cells)}</tr>"


def _mark(text: str, place: int) -> str:
    """One character of a text as it is shown.

    Joiners inside an emoji, or a word of a script that has them (Persian, Hindi), belong to it.
    """
    char = text[place]
    if char in _WHITE_SPACE:
        return _WHITE_SPACE[char]
    unseen = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return f"⟨U+{ord(char):04X}⟩" if unseen and not _JOINERS.match(text, place) else char
