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
    texts = [{r.text for r in group.rollouts if r.verdict.correct} for group in groups]
    return float(np.mean([len(right) for right in texts if right] or [0.0]))


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
    problems = [group.problem for group in groups]
    solutions = [_right_text(group) for group in groups]
    cases = [
        Wrong(group.problem, next(r for r in group.rollouts if not r.verdict.correct), solution)
        for group, solution in zip(groups, solutions)
        if not all(r.verdict.correct for r in group.rollouts)
    ]
    tried = [case.problem for case in cases]

    def ask(name: str, prompts: list, max_new: int = task.max_new) -> list[str]:
        return answers(policy, prompts, max_new, ("measure", name, seed))

    solved = [task.reprompt(p, solution=text) for p, text in zip(problems, solutions)]
    marked = [
        task.reprompt(problem, attempt=wrong.text, feedback=wrong.verdict.feedback)
        for problem, wrong, _ in cases
    ]
    hinted = [task.reprompt(p, feedback=wrong.verdict.feedback) for p, wrong, _ in cases]
    to_rewrite = [task.synthesis(p, wrong.text, solution) for p, wrong, solution in cases]
    results = {
        "reference": correct(task, problems, ask("reference", solved)),
        "feedback": correct(task, tried, ask("feedback", marked)),
        "feedback_alone": correct(task, tried, ask("alone", hinted)),
    }
    outputs = [parse_synthesis(text) for text in ask("synthesis", to_rewrite, 2 * task.max_new)]
    mended = [output[1] if output else "" for output in outputs]
    copied = [_copied(p, wrong.text, text) for (p, wrong, _), text in zip(cases, mended)]
    results["parses"] = [float(output is not None) for output in outputs]
    results["copies"] = [float(through) for through, _ in copied]
    results["departs"] = [float(there) for _, there in copied]
    results["mends"] = correct(task, tried, mended)
    return {name: values or [NOTHING] for name, values in results.items()}


def _right_text(group: Group) -> str:
    """A right rollout where there is one, else the expert's solution."""
    texts = (rollout.text for rollout in group.rollouts if rollout.verdict.correct)
    return next(texts, group.problem.solutions[0])


def answers(policy: Policy, prompts: list, max_new: int, where: tuple) -> list[str]:
    """One sample for each prompt, at temperature 1."""
    ids = [policy.prompt_ids(prompt) for prompt in prompts]
    seeds = [[coordinates(*where, i)] for i in range(len(prompts))]
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
