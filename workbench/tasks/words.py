"""Word problems in English, whose solutions are written out and checked equation by equation.

    question    Tom has 3 boxes with 4 pencils in each. He takes out 5 pencils. How many ...
    solution    There are 3 boxes with 4 pencils in each, so that makes 3*4=12 pencils.
                Tom takes out 5, so there are 12-5=7 pencils left.
                Answer: 7

The ``turned`` style writes the same steps as somebody from elsewhere would (Step 1: 3 × 4 = 12.
There are 3 boxes ...; #### 7). Attempts may be in any words.

A step is a line; where there is one line, a sentence. An equation is wrong where its sides differ,
or where it uses a number that is neither in the question nor a result so far. When all hold and the
answer is wrong, the first one that the solution does not have is the error, and else the answer. A
line that begins with "Wait" takes back what was wrong before it.

Splits go by the story's numbers, whoever it is told of. ``stories=held`` are four whole stories
that no training need ever see.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from operator import attrgetter
from random import Random
from typing import Literal, NamedTuple

from workbench.core import Problem, Step, Verdict, coordinates, refuse_if
from workbench.spans import thought_steps
from workbench.tasks import base, prompts
from workbench.tasks.stories import Told, stories, tell
from workbench.tasks.verify.equations import Equation, equations, numbers

ASK = "Solve it step by step."
ANSWER = "Answer: "
WAIT = "Wait"
_ANSWERS = re.compile(
    r"(?:answer(?:\*\*)?(?: is)?(?:\s*:)?(?:\*\*)?|####|\\boxed\{)\s*(?:\*\*)?"
    r"(-?[$€£]?\d[\d,]*(?:\.\d+)?)",
    re.IGNORECASE | re.ASCII,
)

Style = Literal["plain", "turned"]
SIGNS = {"*": "×", "/": "÷"}


def solve(told: Told, style: Style = "plain") -> str:
    """The written-out solution."""
    lines = [line(told, index, style) for index in range(len(told.steps))]
    end = ANSWER if style == "plain" else "#### "
    return "\n".join([*lines, f"{end}{told.answer}"])


def line(told: Told, index: int, style: Style = "plain") -> str:
    """One step."""
    reason, result, left, right = told.steps[index]
    if style == "plain":
        return f"{reason}, so {result.format(eq=f'{left}={right}')}."
    spaced = re.sub(r"([-+*/])", lambda sign: f" {SIGNS.get(sign[0], sign[0])} ", left)
    return f"Step {index + 1}: {spaced} = {right}. {reason}."


class Check(NamedTuple):
    """What the checker says of an attempt.

    ``first_error``: the first line that was wrong when written, mended or not (their number, where
    one is missing). ``unmended``: what is still wrong, in words; "" when the attempt is correct.
    ``answered``: is the final answer right, whatever the steps?
    """

    correct: bool
    first_error: int | None
    unmended: str
    answered: bool
    right_steps: int
    reflections: int


@dataclass(frozen=True)
class Words(base.Reprompts):
    """``style``: how the expert solutions are written; nothing else.

    ``stories``: the twelve that are "taught", or the four that are "held" out.
    """

    style: Style = "plain"
    stories: Literal["taught", "held"] = "taught"
    max_new: int = 96  # longest completion, in tokens

    name = "words"
    synthesis = staticmethod(prompts.synthesis)

    def __post_init__(self):
        base.check_dials(self.name, "", self.max_new)
        refuse_if(
            self.style not in ("plain", "turned") or self.stories not in ("taught", "held"),
            "the task words takes style=plain or style=turned and stories=taught or "
            f"stories=held, not style={self.style}, stories={self.stories}",
        )

    def problem(self, told: Told) -> Problem:
        words = told.words
        meta = {
            "split": base.split_of(told.key),
            "story": told.story.name,
            "steps": tuple(f"{left}={value}" for _, _, left, value in told.steps),
            "constants": told.story.constants,
        }
        return Problem(
            f"{told.key} {words['n']} {words['m']} {words['t']} {words['u']}",
            base.chat(told.question, ASK),
            str(told.answer),
            (solve(told, self.style),),
            meta,
        )

    def told(self, split: str, n: int, seed: int) -> list[Told]:
        """``n`` stories of ``split`` with different numbers, the same for the same seed."""
        rng = Random(coordinates("words", self.stories, split, seed))
        too_few = f"words with stories={self.stories} has too few {split} problems"
        return base.draw_generated(
            self.name, split, n, self._candidates(rng, n), too_few, question_of=attrgetter("key")
        )

    def _candidates(self, rng: Random, n: int) -> Iterator[Told]:
        choices = stories(self.stories)
        for _ in range(2000 * (n + 10)):
            told = tell(rng.choice(choices), rng)
            if told is not None:
                yield told

    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        return list(map(self.problem, self.told(split, n, seed)))

    def check(self, problem: Problem, text: str) -> Check:
        return check(problem, text)

    def first_error(self, problem: Problem, text: str) -> Step | None:
        """The true first wrong step of an attempt, mended later or not; an empty span at the end
        when one is missing.
        """
        index = check(problem, text).first_error
        if index is None:
            return None
        steps = thought_steps(text)
        return steps[index] if index < len(steps) else Step(index, len(text), len(text))

    def grade(self, problem: Problem, text: str) -> Verdict:
        """Reward 1 only if the answer is right and every equation that still stands holds."""
        result = check(problem, text)
        parts = {
            "answer": float(result.answered),
            "right_steps": result.right_steps,
            "reflections": result.reflections,
        }
        return Verdict(float(result.correct), result.correct, result.unmended, parts)


# ---- the checker


def check(problem: Problem, text: str) -> Check:
    """Follow an attempt line by line."""
    walk, steps = _Walk(problem), thought_steps(text)
    for step in steps:
        walk.read(step.index, text[step.start : step.end])
    return walk.end(len(steps), final_answer(text))


def final_answer(text: str) -> Fraction | None:
    """The last number that is said to be the answer; None where none is, or one of too many digits
    to be read.
    """
    said = (_ANSWERS.findall(text) or [""])[-1]
    sizes = numbers(said.replace("-", ""))
    return sizes[0] * (-1) ** ("-" in said) if sizes else None


class _Walk:
    """An attempt as it is read: what is known so far, and what is wrong."""

    def __init__(self, problem: Problem):
        self.answer = Fraction(problem.answer)
        self.due = [equations(step)[0] for step in problem.meta["steps"]]
        self.question = problem.messages[-1]["content"]
        self.known = {*numbers(self.question), *map(Fraction, problem.meta["constants"])}
        self.first_error: int | None = None
        self.unmended = ""
        self.reflections = self.right_steps = 0
        self.results = {step.result for step in self.due}
        self.standing: list[tuple[int, Equation]] = []  # since the last "Wait"
        self.answer_line: int | None = None

    def read(self, index: int, line: str) -> None:
        if line.startswith(WAIT):
            self.reflections += 1
            self.unmended = ""
            self.standing = []
        if _ANSWERS.search(line):
            self.answer_line = index
        for equation in equations(line):
            fault = self._fault(index, equation)
            if fault:
                self._blame(index, fault)
            elif not self.unmended:
                self.right_steps += 1
            self.standing.append((index, equation))
            self.known.add(equation.result)

    def _fault(self, index: int, equation: Equation) -> str:
        wrong = equation.wrong
        if wrong:
            side, value = wrong
            return f"Line {index + 1} is wrong: {side} is {'nothing' if value is None else value}."
        foreign = [number for number in equation.operands if number not in self.known]
        return self._should_be(index) if foreign else ""

    def _should_be(self, index: int) -> str:
        """The first step of the solution whose result is not there yet."""
        there = {equation.result for i, equation in self.standing if i < index}
        due = [step for step in self.due if step.result not in there] or self.due[-1:]
        return f"Line {index + 1} should say {'='.join(due[0].sides)}."

    def _blame(self, index: int, fault: str) -> None:
        self.unmended = self.unmended or fault
        self.first_error = index if self.first_error is None else self.first_error

    def end(self, size: int, stated: Fraction | None) -> Check:
        answered = stated == self.answer
        if not answered and not self.unmended:
            self._blame(*self._unneeded(size, stated))
        correct = answered and not self.unmended
        return Check(
            correct, self.first_error, self.unmended, answered, self.right_steps, self.reflections
        )

    def _unneeded(self, size: int, stated: Fraction | None) -> tuple[int, str]:
        """Where an attempt went wrong in which every equation holds."""
        needed = list(map(_sum, self.due))  # each once: again it leads nowhere
        there = {equation.result for _, equation in self.standing}
        for index, equation in self.standing:
            if _sum(equation) in needed:
                needed.remove(_sum(equation))
            elif len(equation.operands) == 2 or equation.result not in self.results:
                return index, self._should_be(index)
        # an answer said over two lines is on neither
        place = size if self.answer_line is None else self.answer_line
        if stated is None or self.answer not in there:
            return place, self._should_be(place)
        return place, f"Line {place + 1} should say {ANSWER}{self.answer}."


def _sum(equation: Equation) -> tuple:
    """What an equation works out: its numbers in any order, and what they come to."""
    return (*sorted(equation.operands), equation.result)
