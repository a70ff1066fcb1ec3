"""What the organism makes of more than the plain prompt: a solution, feedback, TAPO's format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from workbench.core import Group, Problem, Rollout, Task, coordinates
from workbench.model.policy import Policy
from workbench.rollouts.sampling import generate
from workbench.tasks import arithmetic
from workbench.tasks.arithmetic import Arithmetic
from workbench.tasks.prompts import parse_synthesis

NOTHING = float("nan")  # to be measured


class Wrong(NamedTuple):
    """A policy's own wrong attempt, and a right solution to the same problem."""

    problem: Problem
    rollout: Rollout
    solution: str


def skills(
    policy: Policy, task: Arithmetic, groups: Sequence[Group], seed: int
) -> dict[str, list[float]]:
    """What a policy makes of more than the plain prompt, at temperature 1.

    One number for each problem of ``groups``, which are its own rollouts of them:

        reference         right with a right solution in the prompt

    and for each with a wrong attempt, the first one:

        feedback          right with that attempt and the feedback on it
        feedback_alone    right with the feedback
        parses            its output to TAPO's synthesis prompt can be read
        copies            its reconstruction begins with the attempt through the first error, and
                          departs from it there or later
        departs           the same, and departs right there
        mends             its reconstruction ends right

    A policy that is always right has no wrong attempt to read: those lists are then [NaN].
    """
    problems, solved, cases = [], [], []
    for group in groups:
        solution = _right_text(group)
        problems.append(group.problem)
        solved.append(task.reprompt(group.problem, solution=solution))
        wrong = _first(group, correct=False)
        if wrong is not None:
            cases.append(Wrong(group.problem, wrong, solution))
    marked, hinted, to_rewrite = [], [], []
    for problem, wrong, solution in cases:
        feedback = wrong.verdict.feedback
        marked.append(task.reprompt(problem, attempt=wrong.text, feedback=feedback))
        hinted.append(task.reprompt(problem, feedback=feedback))
        to_rewrite.append(task.synthesis(problem, wrong.text, solution))
    tried = [case.problem for case in cases]

    def ask(name: str, prompts: list, max_new: int = task.max_new) -> list[str]:
        return answers(policy, prompts, max_new, ("measure", name, seed))

    results = {
        "reference": correct(task, problems, ask("reference", solved)),
        "feedback": correct(task, tried, ask("feedback", marked)),
        "feedback_alone": correct(task, tried, ask("alone", hinted)),
    }
    results |= _rewritten(task, cases, ask("synthesis", to_rewrite, 2 * task.max_new))
    return {name: values or [NOTHING] for name, values in results.items()}


def _rewritten(
    task: Arithmetic, cases: Sequence[Wrong], texts: Sequence[str]
) -> dict[str, list[float]]:
    """parses, copies, departs and mends of the outputs to the synthesis prompt."""
    parses, copies, departs, mends = [], [], [], []
    for (problem, wrong, _), text in zip(cases, texts):
        output = parse_synthesis(text)
        mended = output[1] if output else ""
        through, there = _copied(problem, wrong.text, mended)
        parses.append(float(output is not None))
        copies.append(float(through))
        departs.append(float(there))
        mends.append(float(task.grade(problem, mended).correct))
    return {"parses": parses, "copies": copies, "departs": departs, "mends": mends}


def _first(group: Group, correct: bool) -> Rollout | None:
    """The first rollout that is right, or the first that is wrong."""
    for rollout in group.rollouts:
        if rollout.verdict.correct == correct:
            return rollout
    return None


def _right_text(group: Group) -> str:
    """A right rollout where there is one, else the expert's solution."""
    right = _first(group, correct=True)
    return group.problem.solutions[0] if right is None else right.text


def answers(policy: Policy, prompts: list, max_new: int, where: tuple) -> list[str]:
    """One sample for each prompt, at temperature 1."""
    ids, seeds = [], []
    for i, prompt in enumerate(prompts):
        ids.append(policy.prompt_ids(prompt))
        seeds.append([coordinates(*where, i)])
    return [policy.decode(row[0].ids) for row in generate(policy, ids, seeds, max_new=max_new)]


def correct(task: Task, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
    return [float(task.grade(p, text).correct) for p, text in zip(problems, texts)]


def _copied(problem: Problem, wrong: str, mended: str) -> tuple[bool, bool]:
    """Does the reconstruction begin with the wrong attempt up to and including its first error and
    depart from it after that, there or lines later? And does it depart right there?
    """
    error = arithmetic.check(problem.id, wrong).first_error + 1
    before = wrong.split("\n")
    after = mended.split("\n")
    through = after[:error] == before[:error] and after[error:] != before[error:]
    return through, through and after[error : error + 1] != before[error : error + 1]
