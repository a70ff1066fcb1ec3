"""Where the tokens and the steps of a completion are in its text, and common beginnings of texts.

Nothing here knows a model: only ids and a function that decodes them.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from workbench.core import Rollout, Step

Decode = Callable[[Sequence[int]], str]
_PART = "\N{REPLACEMENT CHARACTER}"  # what a part of a character is decoded to
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
# a line with its line breaks; blank lines go with the line before
_STEP = re.compile(r"\n*[^\n]*(?:\n+|\Z)")
# the end of a sentence: not of a title or of a number in a list ("1. First")
_TITLES = "".join(rf"(?<!\b{title})" for title in ("Mr", "Mrs", "Ms", "Dr", "St", "vs"))
_SENTENCE_END = re.compile(rf"{_TITLES}(?<!^\d)(?<![.!?]\s\d)[.!?][\"')]*\s+(?=[\"'(]*[A-Z\d$])")


def split_steps(text: str) -> list[Step]:
    """The written steps of a text: its lines, each with the line breaks after it.

    They cover the text without gaps.
    """
    spans = [match.span() for match in _STEP.finditer(text) if match.end() > match.start()]
    return [Step(i, start, end) for i, (start, end) in enumerate(spans)]


def thought_steps(text: str) -> list[Step]:
    """The steps of a text in words: its lines, or where it has one line alone, its sentences."""
    lines = split_steps(text)
    if len(lines) != 1:
        return lines
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    places = pairwise([0, *ends, len(text)])
    return [Step(i, start, end) for i, (start, end) in enumerate(places)]


def step_texts(text: str) -> list[str]:
    """What each written step says."""
    return [text[step.start : step.end] for step in split_steps(text)]


def thought_texts(text: str) -> list[str]:
    """What each step of a text in words says."""
    return [text[step.start : step.end] for step in thought_steps(text)]


def step_places(text: str, starts: Sequence[int]) -> list[int]:
    """[T] the written step in which each token begins; a token after the text stands in the last
    step.
    """
    ends = [step.end for step in split_steps(text)]
    return [min(bisect_right(ends, start), max(len(ends) - 1, 0)) for start in starts]


def token_starts(decode: Decode, ids: Sequence[int]) -> list[int]:
    """[T] the character at which each token begins.

    A token that holds only a part of a character begins where that character does.
    """
    ids = list(ids)
    text = decode(ids)
    pieces = [decode([token]) for token in ids]
    if "".join(pieces) == text:
        return [0, *accumulate(map(len, pieces))][: len(ids)]
    # pieces of characters, or a tokenizer that decodes a token differently after others
    return _starts_by_window(decode, ids, text)


def _starts_by_window(decode: Decode, ids: list[int], text: str) -> list[int]:
    """Token by token, each decoded after the last ones that end with a whole character: decoding
    every beginning of a long completion anew takes seconds.
    """
    starts = []
    before = begin = 0  # tokens: the window, and what in it is not yet placed
    at = whole = 0  # the character at which ``begin`` begins; whole characters since
    for t in range(len(ids)):
        starts.append(at + whole)
        new = decode(ids[before : t + 1])[len(decode(ids[before:begin])) :]
        whole = len(new.rstrip(_PART))
        if new and not new.endswith(_PART) and text.startswith(new, at):
            at, whole = at + len(new), 0
            before, begin = begin, t + 1
    return starts


def common_prefix(left: Sequence, right: Sequence) -> int:
    """Length of the longest common beginning, in characters (or items)."""
    size = min(len(left), len(right))
    if left[:size] == right[:size]:
        return size
    return next(i for i in range(size) if left[i] != right[i])


@dataclass(frozen=True)
class Spans:
    """One completion as text: ``text`` is what its tokens say (without the end-of-turn token)."""

    rollout: Rollout
    decode: Decode

    @cached_property
    def text(self) -> str:
        return self.decode(self.rollout.completion_ids[: self.written])

    @cached_property
    def written(self) -> int:
        """Tokens before the end of the turn, which is mostly one token: what ``decode`` leaves
        out.
        """
        ids = self.rollout.completion_ids
        if not self.rollout.finished:
            return len(ids)
        said, last = self.decode(ids), len(ids) - 1
        for size in reversed(range(len(ids))):
            shorter = self.decode(ids[:size])
            if shorter == said:
                return size
            if len(shorter) < len(said):  # it leaves nothing out
                break
        return last

    @cached_property
    def steps(self) -> list[Step]:
        return thought_steps(self.text)

    @cached_property
    def lines(self) -> list[str]:
        """The text of each step."""
        return thought_texts(self.text)

    @cached_property
    def starts(self) -> list[int]:
        """[T] where each token begins in ``text``; the end-of-turn token begins at its end."""
        starts = token_starts(self.decode, self.rollout.completion_ids[: self.written])
        return starts + [len(self.text)] * (len(self.rollout.completion_ids) - self.written)

    def step_at(self, character: int) -> int:
        """The step that holds a character.

        The end of the text belongs to the step that was not written.
        """
        return bisect_right([step.end for step in self.steps], character)

    def step_of(self, token: int) -> int:
        return self.step_at(self.starts[token])

    def token_at(self, character: int) -> int:
        """The (first) token that holds a character; the last token at the end of the text."""
        return bisect_left(self.starts, self.starts[bisect_right(self.starts, character) - 1])

    def place(self, character: int) -> tuple[int, int]:
        """(step, token) of a character."""
        return self.step_at(character), self.token_at(character)

    def first_token(self, step: int) -> int:
        """The token in which a step begins; the last token for the step that was not written."""
        if step >= len(self.steps):
            return len(self.starts) - 1
        return self.token_at(self.steps[step].start)

    def tokens_through(self, step: int) -> int:
        """How many tokens it takes to have all of a step, its line break included."""
        return sum(start < self.steps[step].end for start in self.starts[: self.written])


def shared_steps(own: Sequence[str], other: Sequence[str]) -> int:
    """How many leading steps two completions have in common."""
    return common_prefix(list(map(says, own)), list(map(says, other)))


def says(step: str) -> tuple[str, ...]:
    """What a step comes down to: its numbers in any order (85+47 is 47+85), or its words where it
    has none.
    """
    return tuple(sorted(_NUMBER.findall(step))) or tuple(step.casefold().split())
