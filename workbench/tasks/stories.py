"""Stories in which a few numbers are combined, one equation a step.

In stories.json, ``{a} {b} {c} {d}`` are a story's numbers, ``p``, ``q``, ``r`` the results of its
steps in turn; ``{n}`` and ``{m}`` two names, ``{he}`` the pronoun of the first, ``{t}`` and ``{u}``
two kinds of things. Names and things are one token each for SmolLM2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import NamedTuple

FILE = Path(__file__).with_name("stories.json")
RESULTS = "pqrs"


class Line(NamedTuple):
    """One step of a solution.

    ``result`` holds ``{eq}``, the place of the equation; ``left`` is a sum, product, ... of two of
    the numbers so far.
    """

    reason: str
    result: str
    left: str


@dataclass(frozen=True)
class Story:
    """``largest``: of each of a, b, ...; 2 is the smallest.

    ``constants``: what the words say without a digit (half: 2).
    """

    name: str
    question: str
    largest: tuple[int, ...]
    steps: tuple[Line, ...]
    constants: tuple[int, ...] = ()


class Told(NamedTuple):
    """A story with its numbers and words.

    ``steps``: reason, result with ``{eq}``, the equation's left side, its value.
    """

    story: Story
    numbers: tuple[int, ...]
    words: Mapping[str, str]
    question: str
    steps: tuple[tuple[str, str, str, int], ...]

    @property
    def key(self) -> str:
        """The story and its numbers, whoever it is told of: what a split goes by."""
        return f"{self.story.name} {' '.join(map(str, self.numbers))}"

    @property
    def answer(self) -> int:
        return self.steps[-1][3]


@lru_cache
def _file() -> dict:
    return json.loads(FILE.read_text(encoding="utf-8"))


@lru_cache
def stories(kind: str) -> tuple[Story, ...]:
    """The ``taught`` or the ``held`` ones, as they stand in the file."""
    rows = []
    for row in _file()[kind]:
        steps = tuple(Line(*step) for step in row["steps"])
        constants = tuple(row.get("constants", ()))
        rows.append(Story(row["name"], row["question"], tuple(row["largest"]), steps, constants))
    return tuple(rows)


def tell(story: Story, rng: Random) -> Told | None:
    """The story with numbers and names; None where a result is no whole number of 1 or more."""
    people = _file()["words"]
    numbers = tuple(rng.randint(2, largest) for largest in story.largest)
    pronoun = "he" if rng.random() < 0.5 else "she"
    name = rng.choice(people[pronoun])
    other = rng.choice([each for each in (*people["he"], *people["she"]) if each != name])
    things, more = rng.sample(people["things"], 2)
    words = {"n": name, "m": other, "t": things, "u": more}
    return filled(story, numbers, words | {"he": pronoun, "He": pronoun.capitalize()})


def filled(
    story: Story,
    numbers: tuple[int, ...],
    words: Mapping[str, str],
    slips: Mapping[int, int] = {},
) -> Told | None:
    """The story told with these numbers and words; ``slips``: wrong results by step, from which
    the later steps go on.
    """
    values: dict[str, int] = dict(zip("abcd", numbers))
    slots = {**words, **{name: str(value) for name, value in values.items()}, "eq": "{eq}"}
    steps = []
    for index, (line, name) in enumerate(zip(story.steps, RESULTS)):
        left, operation, right = re.split(r"([-+*/])", line.left)
        first = values[left]
        second = values[right] if right in values else int(right)
        value = _value(first, operation, second)
        if value is None:
            return None
        value = values[name] = slips.get(index, value)
        reason, result = line.reason.format(**slots), line.result.format(**slots)
        steps.append((reason, result, f"{first}{operation}{second}", value))
    return Told(story, numbers, words, story.question.format(**slots), tuple(steps))


def _value(first: int, operation: str, second: int) -> int | None:
    if operation == "/":
        return None if first % second or first == second else first // second
    value = {"+": first + second, "-": first - second, "*": first * second}[operation]
    return value if value > 0 else None
