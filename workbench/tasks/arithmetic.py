"""The embedded default task: chains of + and - with every step written out, checked step by step.

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

import re
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, NamedTuple

from workbench.core import Problem, Step, Verdict, coordinates, refuse_if
from workbench.options import check_choices
from workbench.tasks import base, prompts
from workbench.tasks.base import line_span, lines
from workbench.thoughts import spoken

WAIT = "Wait, "
ANSWER = "Answer "

# the fixed words of the task: one token each for the organism
PHRASES = (*prompts.PHRASES, WAIT, ANSWER, "Step ", " should be ")

Style = Literal["plain", "turned"]
# running value and the operations still to do, such as (132, ("-29", "+6"))
Chain = tuple[int, tuple[str, ...]]


class Check(NamedTuple):
    """What the checker says of an attempt.

    ``first_error``: index of the first line that was wrong when written (their number if one is
    missing), mended or not; None if none. ``unmended``: the (1-based) step of the solution that is
    still wrong, and what it should be; None when the attempt is correct.
    """

    correct: bool
    first_error: int | None
    unmended: tuple[int, str] | None
    reflections: int
    right_steps: int


def parse(expression: str) -> Chain:
    refuse_if(
        not re.fullmatch(r"[0-9]+([+-][0-9]+)+", expression),
        f"not a chain of + and - over whole numbers: {expression!r}",
    )
    head, *rest = re.findall(r"[+-]?\d+", expression)
    return int(head), tuple(rest)


def due(chain: Chain, style: Style = "plain") -> str:
    """The one right next line of a style."""
    value, rest = chain
    if not rest:
        return f"{ANSWER}{value}"
    left = f"{value}{rest[0]}" if style == "plain" else f"{rest[0].removeprefix('+')}+{value}"
    return f"{left}={value + int(rest[0])}"


def after(chain: Chain) -> Chain | None:
    """What is left when the due line is written; None after the answer."""
    value, rest = chain
    return (value + int(rest[0]), rest[1:]) if rest else None


def solve(expression: str, style: Style = "plain") -> str:
    written = []
    chain: Chain | None = parse(expression)
    while chain is not None:
        written.append(due(chain, style))
        chain = after(chain)
    return "\n".join(written)


def check(expression: str, text: str) -> Check:
    """Follow the attempt line by line.

    ``states[i]`` is the chain after i right steps, so its top says which line is due; None: the
    answer has been given.
    """
    question = parse(expression)
    attempt = lines(spoken(text))
    total = len(question[1]) + 1
    states: list[Chain | None] = [question]
    wrong_since: int | None = None  # number of right steps when the unmended error was made
    first_error, reflections = None, 0
    for index, line in enumerate(attempt):
        body = line.removeprefix(WAIT)
        if body != line:
            reflections += 1
            back = _state_with(states, body)
            if back is not None:
                del states[back + 1 :]
                wrong_since = None
        if wrong_since is None:
            state = states[-1]
            if state is not None and body in (due(state), due(state, "turned")):
                states.append(after(state))
                continue
            wrong_since = len(states) - 1
        first_error = index if first_error is None else first_error
    if wrong_since is None and states[-1] is not None:  # stopped before the answer
        wrong_since = len(states) - 1
        first_error = len(attempt) if first_error is None else first_error
    if wrong_since is None:
        return Check(True, first_error, None, reflections, total)
    step = min(wrong_since, total - 1)  # something after the answer counts against the answer line
    return Check(False, first_error, (step + 1, due(states[step])), reflections, wrong_since)


def _state_with(states: list[Chain | None], line: str) -> int | None:
    """The last state in which a line is due; a plain one before a turned one."""
    for style in ("plain", "turned"):
        for index in reversed(range(len(states))):
            state = states[index]
            if state is not None and due(state, style) == line:
                return index
    return None


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
    return base.split_of(expression, share=13)


@dataclass(frozen=True)
class Arithmetic(base.Reprompts):
    """Chains of ``steps`` operations on numbers 1..``largest``.

    ``style``: how the expert solutions are written; nothing else. ``shown`` "solution": the prompt
    holds one, to be read and not worked out; what a policy could do before it was trained on the
    plain prompt.
    """

    steps: int = 4
    largest: int = 20
    style: Style = "plain"
    shown: Literal["nothing", "solution"] = "nothing"

    name = "arithmetic"
    synthesis = staticmethod(prompts.synthesis)

    def __post_init__(self):
        refuse_if(
            not 1 <= self.steps <= 12 or not 9 <= self.largest <= 999,
            f"arithmetic takes steps 1..12 and largest 9..999, not steps={self.steps}, "
            f"largest={self.largest}",
        )
        check_choices(self)

    @property
    def max_new(self) -> int:
        """Longest completion in the organism's tokens: with room for a few reflections."""
        return 20 * self.steps

    def problem(self, expression: str) -> Problem:
        solution = solve(expression)
        problem = Problem(
            expression,
            base.chat(expression),
            solution.rsplit(ANSWER, 1)[1],
            (solve(expression, self.style),),
            {"split": split_of(expression), "steps": self.steps, "largest": self.largest},
        )
        if self.shown == "solution":
            return replace(problem, messages=self.reprompt(problem, solution=solution))
        return problem

    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        """``n`` different problems of ``split`` (train, validation, test), the same for the same
        seed.
        """
        rng = Random(coordinates("arithmetic", self.steps, self.largest, split, seed))
        too_few = (
            f"arithmetic with steps={self.steps}, largest={self.largest} has too few "
            f"{split} problems"
        )
        candidates = (draw(rng, self.steps, self.largest) for _ in range(2000 * (n + 10)))
        expressions = base.draw_generated(self.name, split, n, candidates, too_few, split_of)
        return list(map(self.problem, expressions))

    def check(self, problem: Problem, text: str) -> Check:
        return check(problem.id, text)

    def first_error(self, problem: Problem, text: str) -> Step | None:
        """The true first wrong step of an attempt, mended later or not; an empty span at the end
        when a step is missing.
        """
        index = check(problem.id, text).first_error
        return None if index is None else line_span(text, index)

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
