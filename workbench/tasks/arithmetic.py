"""The embedded default task: chains of + and - with every step written out, checked exactly, step
by step.

    question    47+85-29+6
    solution    47+85=132
                132-29=103
                103+6=109
                Answer 109

The ``turned`` style writes the same steps with the operation first (85+47=132, -29+132=103,
6+103=109): what an expert from elsewhere would write, unlikely under a policy that learned the
plain one, though it can go on from there. Each line may be in either style.

A line ``Wait, <step>`` takes back what was written since that step was due, and puts the step in
its place. So for any attempt the task knows which line was wrong first, whether it was mended, and
what should have stood there.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, NamedTuple

from workbench.core import Message, Problem, Step, Verdict, WorkbenchError, coordinates
from workbench.tasks import prompts

WAIT = "Wait, "
ANSWER = "Answer "
SPLITS = ("train", "validation", "test")

# the fixed words of the task: one token each for the organism
PHRASES = (*prompts.PHRASES, WAIT, ANSWER, "Step ", " should be ")

Style = Literal["plain", "turned"]
# running value and the operations still to do, such as (132, ("-29", "+6"))
Chain = tuple[int, tuple[str, ...]]


class Check(NamedTuple):
    """``first_error``: index of the first line that was wrong when written (their number if one is
    missing), mended or not; None if none. ``unmended``: the (1-based) step of the solution that is
    still wrong, and what it should be; None when the attempt is correct.
    """

    correct: bool
    first_error: int | None
    unmended: tuple[int, str] | None
    reflections: int
    right_steps: int


def parse(expression: str) -> Chain:
    if not re.fullmatch(r"[0-9]+([+-][0-9]+)+", expression):
        raise WorkbenchError(f"not a chain of + and - over whole numbers: {expression!r}")
    head, *rest = re.findall(r"[+-]?\d+", expression)
    return int(head), tuple(rest)


def due(chain: Chain, style: Style = "plain") -> str:
    """The one right next line of a style."""
    value, rest = chain
    if not rest:
        return f"{ANSWER}{value}"
    left = f"{value}{rest[0]}" if style == "plain" else f"{rest[0].removeprefix('+')}+{value}"
    return f"{left}={value + int(rest[0])}"


def is_due(chain: Chain, line: str) -> bool:
    """Is this the right next line, in either style?"""
    return line == due(chain) or line == due(chain, "turned")


def solve(expression: str, style: Style = "plain") -> str:
    chain, written = parse(expression), []
    while chain[1]:
        written.append(due(chain, style))
        chain = (chain[0] + int(chain[1][0]), chain[1][1:])
    return "\n".join([*written, due(chain)])


def steps(text: str) -> list[Step]:
    """The written steps of a completion: its lines, each with its line break."""
    spans, start = [], 0
    for index, line in enumerate(lines(text)):
        end = min(start + len(line) + 1, len(text))
        spans.append(Step(index, start, end))
        start = end
    return spans


def lines(text: str) -> list[str]:
    """Only \\n ends a line: other line breaks that Python knows are characters like any other, and
    never right.
    """
    return text.rstrip("\n").split("\n")


def check(expression: str, text: str) -> Check:
    """Follow the attempt line by line.

    ``states[i]`` is the chain after i right steps, so its top says which line is due.
    """
    total = len(parse(expression)[1]) + 1
    states: list[Chain | None] = [parse(expression)]  # None: the answer has been given
    wrong_since: int | None = None  # number of right steps when the unmended error was made
    first_error, reflections = None, 0
    for index, line in enumerate(lines(text)):
        body = line.removeprefix(WAIT)
        if body != line:
            reflections += 1
            open_states = [i for i in reversed(range(len(states))) if states[i] is not None]
            back = next(
                (
                    i
                    for style in ("plain", "turned")
                    for i in open_states
                    if due(states[i], style) == body
                ),
                None,
            )
            if back is not None:
                states, wrong_since = states[: back + 1], None
        if wrong_since is None:
            if states[-1] is not None and is_due(states[-1], body):
                value, rest = states[-1]
                states.append((value + int(rest[0]), rest[1:]) if rest else None)
                continue
            wrong_since = len(states) - 1
        first_error = index if first_error is None else first_error
    if wrong_since is None and states[-1] is not None:  # stopped before the answer
        wrong_since = len(states) - 1
        first_error = len(lines(text)) if first_error is None else first_error
    if wrong_since is None:
        return Check(True, first_error, None, reflections, total)
    step = min(wrong_since, total - 1)  # something after the answer counts against the answer line
    chain = states[step]
    return Check(False, first_error, (step + 1, due(chain)), reflections, wrong_since)


def draw(rng: Random, n_steps: int, largest: int) -> str:
    """A chain with ``n_steps`` operations on numbers 1..largest whose running value never goes
    below zero.
    """
    value = rng.randint(1, largest)
    parts = [str(value)]
    for _ in range(n_steps):
        number = rng.randint(1, largest)
        sign = "-" if rng.random() < 0.5 and number <= value else "+"
        value += number if sign == "+" else -number
        parts.append(f"{sign}{number}")
    return "".join(parts)


def split_of(expression: str) -> str:
    """By the expression's own hash, so that no held-out problem can occur in training, whoever
    draws it: 5 % test, 5 % validation.
    """
    bucket = hashlib.blake2b(expression.encode(), digest_size=2).digest()[0]
    return "test" if bucket < 13 else "validation" if bucket < 26 else "train"


@dataclass(frozen=True)
class Arithmetic:
    """Difficulty dials:

    ``steps`` operations on numbers 1..``largest``. ``style``: how the expert solutions are written;
    nothing else. ``shown`` "solution": the prompt holds one, to be read and not worked out; what a
    policy could do before it was trained on the plain prompt.
    """

    steps: int = 4
    largest: int = 20
    style: Style = "plain"
    shown: Literal["nothing", "solution"] = "nothing"

    name = "arithmetic"

    def __post_init__(self):
        if not 1 <= self.steps <= 12 or not 9 <= self.largest <= 999:
            raise WorkbenchError(
                f"arithmetic takes steps 1..12 and largest 9..999, not steps={self.steps}, "
                f"largest={self.largest}"
            )
        if self.style not in ("plain", "turned"):
            raise WorkbenchError(
                f"arithmetic takes style=plain or style=turned, not style={self.style}"
            )
        if self.shown not in ("nothing", "solution"):
            raise WorkbenchError(
                f"arithmetic takes shown=nothing or shown=solution, not shown={self.shown}"
            )

    @property
    def max_new(self) -> int:
        """Longest completion, in the organism's tokens: the steps with room for a few reflections."""
        return 20 * self.steps

    def problem(self, expression: str) -> Problem:
        answer = solve(expression).rsplit(ANSWER, 1)[1]
        made = Problem(
            expression,
            ({"role": "user", "content": expression},),
            answer,
            (solve(expression, self.style),),
            {"split": split_of(expression), "steps": self.steps, "largest": self.largest},
        )
        return (
            replace(made, messages=self.reprompt(made, solution=solve(expression)))
            if self.shown == "solution"
            else made
        )

    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        """``n`` different problems of ``split`` (train, validation, test), the same for the same
        seed.
        """
        if split not in SPLITS:
            raise WorkbenchError(f"the splits of arithmetic are {', '.join(SPLITS)}, not {split!r}")
        rng, found = Random(coordinates("arithmetic", self.steps, self.largest, split, seed)), {}
        for _ in range(2000 * (n + 10)):
            if len(found) == n:
                break
            expression = draw(rng, self.steps, self.largest)
            if split_of(expression) == split:
                found[expression] = None
        if len(found) < n:
            raise WorkbenchError(
                f"arithmetic with steps={self.steps}, largest={self.largest} has too few "
                f"{split} problems: "
                f"{len(found)} found, {n} wanted"
            )
        return [self.problem(expression) for expression in found]

    def check(self, problem: Problem, text: str) -> Check:
        return check(problem.id, text)

    def first_error(self, problem: Problem, text: str) -> Step | None:
        """The true first wrong step of an attempt, mended later or not; an empty span at the end
        when a step is missing.
        """
        index = check(problem.id, text).first_error
        spans = steps(text)
        if index is None:
            return None
        return spans[index] if index < len(spans) else Step(index, len(text), len(text))

    def grade(self, problem: Problem, text: str) -> Verdict:
        """Reward 1 only if every step that still stands is right and the answer is right: a right
        answer under wrong steps is wrong.
        """
        result = check(problem.id, text)
        feedback = "" if result.correct else "Step {} should be {}".format(*result.unmended)
        return Verdict(
            float(result.correct),
            result.correct,
            feedback,
            {"right_steps": result.right_steps, "reflections": result.reflections},
        )

    def reprompt(
        self, problem: Problem, *, solution: str = "", attempt: str = "", feedback: str = ""
    ) -> tuple[Message, ...]:
        return prompts.reprompt(problem, solution=solution, attempt=attempt, feedback=feedback)

    def synthesis(self, problem: Problem, wrong: str, right: str) -> tuple[Message, ...]:
        return prompts.synthesis(problem, wrong, right)
