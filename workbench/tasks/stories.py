"""Stories in which a few numbers are combined, one equation a step.

    boxes    Tom has 3 boxes with 4 pencils in each. He takes out 5 pencils. How many pencils are
             left in the boxes?                                             p = a*b, q = p-c

``{a} {b} {c} {d}`` are the story's numbers; ``p``, ``q``, ``r`` the results of its steps in turn.
``{n}`` and ``{m}`` are two names, ``{he}`` the pronoun of the first, ``{t}`` and ``{u}`` two kinds
of things. A step is its reason, what follows from it (``{eq}``: the equation), and the equation's
left side. The last step's result is the answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

# each is one token for SmolLM2
HE = "Tom Ben Sam Max Jack Leo Dan Paul Eric Omar Adam Noah".split()
SHE = "Anna Mia Lily Emma Lucy Ella Nina Rosa Kate Jane Ruth Sara".split()
THINGS = (
    "apples pencils books cards coins stamps shells marbles cookies balloons stickers eggs "
    "roses toys bricks pens cups hats nuts beads"
).split()
RESULTS = "pqrs"


class Line(NamedTuple):
    """One step of a solution; ``left`` is a product, sum, ... of two of the numbers so far."""

    reason: str
    result: str
    left: str


@dataclass(frozen=True)
class Story:
    """``numbers``: the largest that each of a, b, ... may be, 2 is the smallest.

    ``constants``: what the words say without a digit (half: 2).
    """

    name: str
    question: str
    numbers: tuple[int, ...]
    lines: tuple[Line, ...]
    constants: tuple[int, ...] = ()


class Told(NamedTuple):
    """A story with its numbers and words; ``steps``: (reason, result with ``{eq}``, left, value)."""

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


_BUY = Line("{a} {t} at {b} dollars each", "that makes {eq} dollars", "a*b")
_BOXES = Line("There are {a} boxes with {b} {t} in each", "that makes {eq} {t}", "a*b")

TAUGHT = (
    Story(
        "find-give",
        "{n} has {a} {t}. {He} finds {b} more and gives {c} to {m}. "
        "How many {t} does {n} have now?",
        (12, 9, 9),
        (
            Line("{He} finds {b} more", "{he} has {eq} {t}", "a+b"),
            Line("{He} gives {c} to {m}", "{he} is left with {eq} {t}", "p-c"),
        ),
    ),
    Story(
        "boxes",
        "{n} has {a} boxes with {b} {t} in each. {He} takes out {c} {t}. "
        "How many {t} are left in the boxes?",
        (6, 6, 9),
        (_BOXES, Line("{n} takes out {c}", "there are {eq} {t} left", "p-c")),
    ),
    Story(
        "more-than",
        "{n} has {a} {t}. {m} has {b} more {t} than {n}. How many {t} do they have together?",
        (9, 9),
        (
            Line("{m} has {b} more than {n}", "{m} has {eq} {t}", "a+b"),
            Line("{n} has {a}", "together they have {eq} {t}", "a+p"),
        ),
    ),
    Story(
        "fewer-than",
        "{n} has {a} {t} and {m} has {b} fewer. Then {m} gets {c} more. "
        "How many {t} does {m} have now?",
        (15, 9, 9),
        (
            Line("{m} has {b} fewer than {n}", "{m} has {eq} {t}", "a-b"),
            Line("{m} gets {c} more", "now {m} has {eq} {t}", "p+c"),
        ),
    ),
    Story(
        "times",
        "{m} has {a} {t}. {n} has {b} times as many. How many {t} do they have together?",
        (9, 5),
        (
            Line("{n} has {b} times as many as {m}", "{n} has {eq} {t}", "a*b"),
            Line("{m} has {a}", "together they have {eq} {t}", "p+a"),
        ),
    ),
    Story(
        "buy",
        "{n} buys {a} {t} for {b} dollars each and a bag for {c} dollars. "
        "How many dollars does {he} pay?",
        (6, 6, 9),
        (_BUY, Line("The bag costs {c} dollars", "{he} pays {eq} dollars", "p+c")),
    ),
    Story(
        "change",
        "{n} buys {a} {t} for {b} dollars each and pays with {c} dollars. "
        "How many dollars does {he} get back?",
        (6, 6, 40),
        (_BUY, Line("{n} pays with {c} dollars", "{he} gets back {eq} dollars", "c-p")),
    ),
    Story(
        "bags",
        "{n} picks {a} {t} and {m} picks {b}. They put all of them into bags of {c}. "
        "How many bags do they fill?",
        (12, 12, 6),
        (
            Line("{n} picks {a} and {m} picks {b}", "they have {eq} {t}", "a+b"),
            Line("There are {c} in a bag", "they fill {eq} bags", "p/c"),
        ),
    ),
    Story(
        "pages",
        "{n} reads {a} pages on Monday and {b} more than that on Tuesday. "
        "The book has {c} pages. How many pages are left?",
        (9, 9, 40),
        (
            Line("On Tuesday {he} reads {b} more", "that makes {eq} pages", "a+b"),
            Line("On Monday {he} read {a}", "{he} has read {eq} pages", "a+p"),
            Line("The book has {c} pages", "there are {eq} pages left", "c-q"),
        ),
    ),
    Story(
        "half",
        "{n} has {a} {t}. {He} gives half of them to {m} and then finds {b} more. "
        "How many {t} does {n} have now?",
        (24, 9),
        (
            Line("{He} gives half away", "{he} is left with {eq} {t}", "a/2"),
            Line("{He} finds {b} more", "now {he} has {eq} {t}", "p+b"),
        ),
        (2,),
    ),
    Story(
        "wages",
        "{n} earns {a} dollars a day for {b} days. {He} spends {c} dollars and then gets {d} "
        "dollars from {m}. How many dollars does {n} have?",
        (6, 5, 9, 9),
        (
            Line("{He} earns {a} dollars a day for {b} days", "that makes {eq} dollars", "a*b"),
            Line("{He} spends {c}", "{he} is left with {eq} dollars", "p-c"),
            Line("{m} gives {d}", "{he} has {eq} dollars", "q+d"),
        ),
    ),
    Story(
        "two-kinds",
        "{n} buys {a} {t} for {b} dollars each and {c} {u} for {d} dollars each. "
        "How many dollars does {he} pay?",
        (5, 5, 5, 5),
        (
            _BUY,
            Line("{c} {u} at {d} dollars each", "that makes {eq} dollars", "c*d"),
            Line("{n} pays for both", "{he} pays {eq} dollars", "p+q"),
        ),
    ),
)
# whole stories that no training sees: the same steps, put together otherwise
HELD = (
    Story(
        "buckets",
        "A tank holds {a} liters of water. {n} pours in {b} buckets of {c} liters each. "
        "How many liters are in the tank now?",
        (20, 6, 6),
        (
            Line("There are {b} buckets of {c} liters", "that makes {eq} liters", "b*c"),
            Line("The tank holds {a} liters", "now there are {eq} liters", "a+p"),
        ),
    ),
    Story(
        "times-fewer",
        "{m} has {a} {t}. {n} has {b} times as many. {n} loses {c} of them. "
        "How many {t} does {n} have now?",
        (9, 5, 9),
        (
            Line("{n} has {b} times as many as {m}", "{n} has {eq} {t}", "a*b"),
            Line("{n} loses {c}", "{he} is left with {eq} {t}", "p-c"),
        ),
    ),
    Story(
        "share",
        "{n} shares {a} {t} equally among {b} friends. {m} is one of them and had {c} {t} "
        "before. How many {t} does {m} have now?",
        (36, 6, 12),
        (
            Line("{n} shares {a} among {b} friends", "each gets {eq} {t}", "a/b"),
            Line("{m} had {c} before", "now {m} has {eq} {t}", "p+c"),
        ),
    ),
    Story(
        "sells",
        "{n} has {a} {t}. {He} keeps {b} and sells the rest for {c} dollars each. "
        "How many dollars does {n} get?",
        (15, 9, 6),
        (
            Line("{n} keeps {b}", "{he} sells {eq} {t}", "a-b"),
            Line("Each costs {c} dollars", "{he} gets {eq} dollars", "p*c"),
        ),
    ),
)


def tell(story: Story, rng: Random) -> Told | None:
    """The story with numbers and names; None where a result is no whole number of 1 or more."""
    numbers = tuple(rng.randint(2, largest) for largest in story.numbers)
    he = rng.random() < 0.5
    name = rng.choice(HE if he else SHE)
    other = rng.choice([each for each in (*HE, *SHE) if each != name])
    things, more = rng.sample(THINGS, 2)
    pronoun = "he" if he else "she"
    words = {"n": name, "m": other, "t": things, "u": more, "he": pronoun}
    words["He"] = pronoun.capitalize()
    return filled(story, numbers, words)


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
    for index, (line, name) in enumerate(zip(story.lines, RESULTS)):
        left, operation, right = re.split(r"([-+*/])", line.left)
        first = values[left]
        second = values[right] if right in values else int(right)
        value = _value(first, operation, second)
        if value is None:
            return None
        value = slips.get(index, value)
        values[name] = value
        reason, result = line.reason.format(**slots), line.result.format(**slots)
        steps.append((reason, result, f"{first}{operation}{second}", value))
    return Told(story, numbers, words, story.question.format(**slots), tuple(steps))


def _value(first: int, operation: str, second: int) -> int | None:
    if operation == "/":
        return None if first % second or first == second else first // second
    value = {"+": first + second, "-": first - second, "*": first * second}[operation]
    return value if value > 0 else None
