"""Tiny programs: a chain of operations on a number, in words, to be written as a Python function.

    add 3, at most 20, halve        ->        def f(x):
                                                  x=x+3
                                                  x=min(x,20)
                                                  x=x//2
                                                  return x

Graded by running it in the sandbox. Three inputs are public: what goes wrong on them is told to the
policy, as the code task tells it. Four more decide with them whether it is right.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from random import Random
from typing import NamedTuple

from workbench.core import Problem, Step, Verdict, coordinates, refuse_if
from workbench.tasks import base
from workbench.tasks.arithmetic import split_of
from workbench.tasks.base import line_span, lines
from workbench.tasks.code import Test, feedback
from workbench.tasks.sandbox.outside import Call, check_execution, run
from workbench.thoughts import spoken

HEAD, LINE, LAST = "def f(x):\n", "    x=", "    return x"
SECONDS = 4.0  # of wall clock for one input


class Operation(NamedTuple):
    words: str  # {n}: the number
    code: str
    run: Callable[[int, int], int]
    numbers: tuple[int, int] = (2, 20)  # smallest and largest n

    @property
    def name(self) -> str:
        """The words without the number."""
        return self.words.replace("{n}", "")


OPERATIONS = (
    Operation("add {n}", "x+{n}", operator.add),
    Operation("subtract {n}", "x-{n}", operator.sub),
    Operation("times {n}", "x*{n}", operator.mul, (2, 9)),
    Operation("halve", "x//2", operator.floordiv),
    Operation("remainder by {n}", "x%{n}", operator.mod),
    Operation("at least {n}", "max(x,{n})", max),
    Operation("at most {n}", "min(x,{n})", min),
)
BY_NAME = {operation.name: operation for operation in OPERATIONS}

# what the feedback says
FEEDBACK_PHRASES = (
    "Runtime Error\n",
    "Test Case ",
    ": Wrong Answer\n\nInput\n",
    "\n\nOutput\n",
    "\n\nExpected\n",
    "\nLine ",
    " in f",
    "\n\nLast Executed Input\n",
    "NameError: name 'y' is not defined",
    "TypeError: 'int' object is not iterable",
    "SyntaxError: '(' was never closed",
)
# the fixed words of the task: one token each for the organism
PHRASES = (*BY_NAME, HEAD, LINE, LAST, "max(", "min(", "//", *FEEDBACK_PHRASES)

Chain = tuple[tuple[Operation, int], ...]


def parse(text: str) -> Chain:
    """The operations of a question. Raises WorkbenchError when it is none."""
    chain = []
    for part in text.split(", "):
        number = re.search(r"[0-9]+$", part)
        operation = BY_NAME.get(part[: number.start()] if number else part)
        refuse_if(
            operation is None or ("{n}" in operation.words) != bool(number),
            f"not an operation of the programs task: {part!r}",
        )
        chain.append((operation, int(number[0]) if number else 2))  # 2: halve
    return tuple(chain)


def right_lines(text: str) -> list[str]:
    """The program, line by line."""
    body = [LINE + operation.code.format(n=n) for operation, n in parse(text)]
    return [HEAD.rstrip("\n"), *body, LAST]


def value(text: str, x: int) -> int:
    """What the right program returns."""
    for operation, n in parse(text):
        x = operation.run(x, n)
    return x


def draw(rng: Random, n_steps: int) -> str:
    parts = []
    for operation in rng.choices(OPERATIONS, k=n_steps):
        parts.append(operation.words.format(n=rng.randint(*operation.numbers)))
    return ", ".join(parts)


def inputs(question: str) -> tuple[list[int], list[int]]:
    """(public, hidden) inputs of a question, always the same."""
    drawn = Random(coordinates("inputs", question)).sample(range(-20, 60), 7)
    return drawn[:3], drawn[3:]


@lru_cache(maxsize=20_000)  # the attempts of a group are often the same
def _graded(question: str, text: str) -> Verdict:
    public, hidden = inputs(question)
    tests = [Test(Call("f", (x,)), value(question, x), str(x)) for x in (*public, *hidden)]
    results = run(text, [test.call for test in tests], seconds=SECONDS, memory_mb=256)
    passed = [test.passed(result) for test, result in zip(tests, results)]
    return Verdict(
        float(all(passed)),
        all(passed),
        feedback(tests[: len(public)], results[: len(public)]),
        {"passed": sum(passed) / len(passed)},
    )


@dataclass(frozen=True)
class Programs(base.Reprompts):
    """``steps`` operations in a row."""

    steps: int = 4

    name = "programs"

    def __post_init__(self):
        check_execution(self.name)
        refuse_if(not 1 <= self.steps <= 8, f"programs takes steps 1..8, not steps={self.steps}")

    @property
    def max_new(self) -> int:
        """Longest completion, in the organism's tokens."""
        return 12 * self.steps + 12

    def problem(self, question: str) -> Problem:
        solution = "\n".join(right_lines(question))
        split = split_of(question)
        return Problem(question, base.chat(question), "", (solution,), {"split": split})

    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        """``n`` different problems of ``split`` (train, validation, test), the same for the same
        seed.
        """
        rng = Random(coordinates("programs", self.steps, split, seed))
        candidates = (draw(rng, self.steps) for _ in range(2000 * (n + 10)))
        too_few = f"programs with steps={self.steps} has too few {split} problems"
        questions = base.draw_generated(self.name, split, n, candidates, too_few, split_of)
        return list(map(self.problem, questions))

    def first_error(self, problem: Problem, text: str) -> Step | None:
        """The first line that is not the one due, in a wrong program; an empty span at the end
        where lines are missing.

        A line that is written in another way than the task's may be right: of a model that writes
        freely this is no truth.
        """
        if self.grade(problem, text).correct:
            return None
        due = right_lines(problem.id)
        for index, (line, right) in enumerate(zip_longest(lines(spoken(text)), due)):
            if line != right:
                return line_span(text, index)
        return line_span(text, len(due))

    def grade(self, problem: Problem, text: str) -> Verdict:
        """Reward 1 only if every input gives the right value. ``parts``: the share that does."""
        return _graded(problem.id, spoken(text))
