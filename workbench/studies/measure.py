"""Everything that the comparison measures of one trained policy, on held-out problems.

As numbers for a record:

    test        avg@k, pass@k and length on the plain task
    distinct    different right answers among the right ones of a problem
    counts      per problem: samples right, direct, reflecting, effective, needless, spoiled; from
                them DSR and ERR on any set of problems

and of the arithmetic task, which knows more:

    harder      avg@k with two more steps than the problems of the runs (the longest that the
                organism was made with)
    recovery    ends right after a wrong beginning of the base model
    skills      what it could do before: read a solution, read feedback, diagnose and mend in TAPO's
                format

The problems and the beginnings are the same for every policy of one seed, so that differences
between policies are paired. What ``skills`` puts into the prompt is not: it is the policy's own
attempts, and an expert's solution, perhaps in another style, where none of them is right. (What was
forgotten is better told by the task that a run watches: arms.READING.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np

from workbench.core import Group, Problem, Rollout, Task, coordinates
from workbench.evaluation import reflection
from workbench.evaluation.metrics import Evaluation, evaluate
from workbench.evaluation.statistics import bootstrap
from workbench.model.policy import Policy
from workbench.rollouts.sampling import generate, sample_groups
from workbench.tasks import arithmetic
from workbench.tasks.arithmetic import Arithmetic
from workbench.tasks.prompts import parse_synthesis

NOTHING = float("nan")  # to be measured


def evaluate_checkpoint(
    policy: Policy, base: Policy, task: Task, seed: int, problems: int = 200, samples: int = 32
) -> dict:
    """The numbers above, at temperature 1.

    ``base`` is the model that training started from: its wrong attempts are the beginnings to
    recover from.
    """
    held_out = task.problems("test", problems, seed)
    groups = sample_groups(policy, task, held_out, samples, (seed, "assess"))
    arithmetic_task = isinstance(task, Arithmetic)
    judge = reflection.by_checker(task) if arithmetic_task else reflection.by_words
    more = _arithmetic(policy, base, task, groups, seed) if arithmetic_task else {}
    return {
        "seed": seed,
        "test": _short(Evaluation.of(groups)),
        "distinct": distinct(groups),
        **more,
        "counts": {group.problem.id: reflection.counts(group, judge) for group in groups},
    }


def _arithmetic(
    policy: Policy, base: Policy, task: Arithmetic, groups: Sequence[Group], seed: int
) -> dict:
    few = [group.problem for group in groups[: max(1, len(groups) // 2)]]
    planted = reflection.plant(base, task, sample_groups(base, task, few, 4, (seed, "plant")))
    recovered = reflection.recovery(reflection.recover(policy, task, planted, 4, seed))
    longer = replace(task, steps=min(12, task.steps + 2))
    harder = evaluate(policy, longer, longer.problems("test", len(few), seed), 8, seed)
    first_eight = [Group(group.problem, group.rollouts[:8]) for group in groups]
    shown = skills(policy, task, first_eight, seed)
    return {
        "harder": _short(harder),
        "recovery": asdict(recovered),
        "skills": {name: (float(np.mean(v)), *bootstrap(v)) for name, v in shown.items()},
    }


def _short(evaluation: Evaluation) -> dict:
    numbers = asdict(evaluation)
    del numbers["per_problem"]
    return numbers


def distinct(groups: Sequence[Group]) -> float:
    """Mean number of different texts among the right answers to a problem, over the problems that
    have one.
    """
    numbers = []
    for group in groups:
        texts = {r.text for r in group.rollouts if r.verdict.correct}
        if texts:
            numbers.append(len(texts))
    return float(np.mean(numbers or [0.0]))


# ---- skills


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
