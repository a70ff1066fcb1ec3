"""A number on every token: the nouns of the heat map, and how its texts and numbers are worded.

``html.py`` draws them as a page without a script, ``png.py`` as a picture, ``view.py`` live.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

from workbench.core import Group
from workbench.spans import step_places
from workbench.viz.texts import Decode, Written

MARKS = {1: "▲", -1: "▼", 0: "·"}
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Channel:
    """What the numbers are, and what a positive and a negative one mean, in the legend's words.

    Not ``signed``: sizes, 0 or more.
    """

    name: str
    unit: str
    up: str
    down: str
    signed: bool = True


CREDIT = Channel(
    "realised credit",
    "the factor on ∇ log π of the token in the update",
    "made more likely",
    "made less likely",
)


class Layer(NamedTuple):
    """Numbers to colour a group by: [T] for each rollout, and where the scale ends."""

    channel: Channel
    values: Sequence[Sequence[float]]
    limit: float

    @classmethod
    def of(cls, channel: Channel, values: Sequence[Sequence[float]]) -> Layer:
        """The layer on its ``robust_limit``. None counts as NaN."""
        numbers = (v for v in chain.from_iterable(values) if v is not None)
        return cls(channel, values, robust_limit(numbers))


class Token(NamedTuple):
    """One completion token.

    ``step`` is the written step (``spans.split_steps``) in which it begins; the end-of-turn token
    stands in the last one. ``shown`` is its text as it is drawn.
    """

    rollout: int
    step: int
    index: int
    id: int
    text: str
    shown: str
    logprob: float
    value: float


def tokens(group: Group, values: Sequence[Sequence[float]], decode: Decode) -> list[list[Token]]:
    """The tokens of each rollout with their numbers: what the heat map draws.

    A rollout without numbers gets NaN. Raises ValueError where numbers do not fit the tokens.
    """
    if len(values) != len(group.rollouts):
        raise ValueError(f"{len(values)} lists of numbers for {len(group.rollouts)} rollouts")
    rows = []
    for number, (rollout, numbers) in enumerate(zip(group.rollouts, values)):
        size = len(rollout.completion_ids)
        numbers = list(numbers) or [math.nan] * size
        if len(numbers) != size:
            raise ValueError(f"{len(numbers)} numbers for the {size} tokens of rollout {number}")
        written = Written.of(rollout.completion_ids, decode)
        steps = step_places(written.text, written.starts)
        columns = zip(steps, written.pieces, written.shown(), numbers)
        row = []
        for index, (step, text, shown, value) in enumerate(columns):
            value = math.nan if value is None else float(value)
            token_id, logprob = int(rollout.completion_ids[index]), rollout.logprobs[index]
            row.append(Token(number, step, index, token_id, text, shown, logprob, value))
        rows.append(row)
    return rows


def step_sums(row: Sequence[Token]) -> list[float]:
    """The numbers of one rollout summed per step; NaN where a step has none."""
    numbers: list[list[float]] = [[] for _ in range(row[-1].step + 1)]
    for token in row:
        if math.isfinite(token.value):
            numbers[token.step].append(token.value)
    return [sum(step) if step else math.nan for step in numbers]


def robust_limit(values: Iterable[float]) -> float:
    """Where the symmetric scale ends: the largest size, or three times the root mean square of the
    non-zero numbers if that is less, so that a few outliers do not pale the rest.

    1 when there is nothing to scale.
    """
    sizes = np.abs(np.fromiter((v for v in values if math.isfinite(v) and v), float))
    return float(min(sizes.max(), 3 * np.sqrt(np.mean(sizes**2)))) if len(sizes) else 1.0


def signed(value: float, digits: int = 2) -> str:
    """+1.73, −0.38, 0, or "none" for a number that is not there."""
    if not math.isfinite(value):
        return "none"
    return f"{value:+.{digits}f}".replace("-", MINUS) if value else "0"


def marked(value: float) -> str:
    """``signed`` with a triangle that says the sign again."""
    return f"{MARKS[int(np.sign(value)) if math.isfinite(value) else 0]} {signed(value)}"


def worded(value: float, channel: Channel, digits: int = 2) -> str:
    """``signed``, or without a sign where the channel has none."""
    if channel.signed or not math.isfinite(value) or not value:
        return signed(value, digits)
    return f"{value:.{digits}f}"


def marked_as(value: float, channel: Channel) -> str:
    """``marked``, or without a sign where the channel has none."""
    return marked(value) if channel.signed else worded(value, channel)
