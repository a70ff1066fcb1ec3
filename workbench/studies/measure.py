"""Everything that the comparison measures of one trained policy, on held-out problems, as numbers
for a record.

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
forgotten is better told by the task that a run watches: study.READING.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from workbench.core import Group, Problem, Task, coordinates
from workbench.evaluation import reflection
from workbench.evaluation.metrics import Evaluation, bootstrap, evaluate
from workbench.model.policy import Policy
from workbench.rollouts.sampling import generate, sample_groups
from workbench.tasks import arithmetic
from workbench.tasks.arithmetic import Arithmetic
from workbench.tasks.prompts import parse_synthesis

NOTHING = float("nan")  # to be measured
COUNTS = ("right", "direct", "reflecting", "effective", "needless", "spoiled")


def evaluate_checkpoint(
    policy: Policy, base: Policy, task: Task, seed: int, problems: int = 200, samples: int = 32
) -> dict:
    """Temperature 1.

    ``base`` is the model that training started from: its wrong attempts are the beginnings to
    recover from.
    """
    held_out = task.problems("test", problems, seed)
    groups = sample_groups(policy, task, held_out, samples, (seed, "assess"))
    judge = reflection.by_checker(task) if isinstance(task, Arithmetic) else reflection.by_words
    more = _arithmetic(policy, base, task, groups, seed) if isinstance(task, Arithmetic) else {}
    return {
        "seed": seed,
        "test": _short(Evaluation.of(groups)),
        "distinct": distinct(groups),
        **more,
        "counts": {p.id: row for p, row in zip(held_out, counts(groups, judge))},
    }


def _arithmetic(
    policy: Policy, base: Policy, task: Arithmetic, groups: Sequence[Group], seed: int
) -> dict:
    few = [g.problem for g in groups[: max(1, len(groups) // 2)]]
    planted = reflection.plant(base, task, sample_groups(base, task, few, 4, (seed, "plant")))
    recovered = reflection.recovery(reflection.recover(policy, task, planted, 4, seed))
    longer = replace(task, steps=min(12, task.steps + 2))
    harder = evaluate(policy, longer, longer.problems("test", len(few), seed), 8, seed)
    shown = skills(policy, task, [Group(g.problem, g.rollouts[:8]) for g in groups], seed)
    return {
        "harder": _short(harder),
        "recovery": asdict(recovered),
        "skills": {name: (float(np.mean(v)), *bootstrap(v)) for name, v in shown.items()},
    }


def _short(found: Evaluation) -> dict:
    return {name: value for name, value in asdict(found).items() if name != "per_problem"}


def distinct(groups: Sequence[Group]) -> float:
    """Mean number of different texts among the right answers to a problem, over the problems that
    have one.
    """
    texts = [{r.text for r in group.rollouts if r.verdict.correct} for group in groups]
    return float(np.mean([len(found) for found in texts if found] or [0.0]))


def counts(groups: Sequence[Group], judge: reflection.Judge) -> list[tuple[int, ...]]:
    """For each problem how many of its samples are COUNTS."""
    return [
        tuple(map(sum, zip(*(_row(group.problem, rollout, judge) for rollout in group.rollouts))))
        for group in groups
    ]


def _row(problem: Problem, rollout, judge: reflection.Judge) -> tuple[int, ...]:
    right, (reflects, effective, needless) = rollout.verdict.correct, judge(problem, rollout)
    return tuple(
        map(
            int,
            (right, right and not reflects, reflects, effective, needless, needless and not right),
        )
    )


def skills(policy, task: Arithmetic, groups: list, seed: int) -> dict[str, list[float]]:
    """What a policy makes of more than the plain prompt, at temperature 1: for each of ROWS after
    the first two one number for each problem of ``groups``, its own rollouts of them. A policy that
    is always right has no wrong attempt to read: those lists are then [NaN].
    """

    def ask(name: str, prompts: list, max_new: int) -> list[str]:
        seeds = [[coordinates("measure", name, seed, i)] for i in range(len(prompts))]
        samples = generate(
            policy, [policy.prompt_ids(prompt) for prompt in prompts], seeds, max_new=max_new
        )
        return [policy.decode(row[0].ids) for row in samples]

    def correct(cases: list, texts: list[str]) -> list[float]:
        return [
            float(task.grade(problem, text).correct) for (problem, *_), text in zip(cases, texts)
        ] or [NOTHING]

    # a correct sibling where there is one, else the expert's solution; the first wrong attempt
    # where there is one
    shown = [
        (g.problem, next((r.text for r in g.rollouts if r.verdict.correct), g.problem.solutions[0]))
        for g in groups
    ]
    wrong = [
        (problem, next((r for r in g.rollouts if not r.verdict.correct), None), right)
        for g, (problem, right) in zip(groups, shown)
    ]
    wrong = [(problem, rollout, right) for problem, rollout, right in wrong if rollout is not None]
    found = {
        "reference": correct(
            shown,
            ask(
                "reference", [task.reprompt(p, solution=right) for p, right in shown], task.max_new
            ),
        )
    }
    found["feedback"] = correct(
        wrong,
        ask(
            "feedback",
            [task.reprompt(p, attempt=r.text, feedback=r.verdict.feedback) for p, r, _ in wrong],
            task.max_new,
        ),
    )
    found["feedback_alone"] = correct(
        wrong,
        ask(
            "alone",
            [task.reprompt(p, feedback=r.verdict.feedback) for p, r, _ in wrong],
            task.max_new,
        ),
    )
    outputs = [
        parse_synthesis(text)
        for text in ask(
            "synthesis",
            [task.synthesis(p, r.text, right) for p, r, right in wrong],
            2 * task.max_new,
        )
    ]
    found["parses"] = [float(output is not None) for output in outputs] or [NOTHING]
    copied = [
        _copied(problem, rollout.text, output[1] if output else "")
        for (problem, rollout, _), output in zip(wrong, outputs)
    ]
    found["copies"] = [float(through) for through, _ in copied] or [NOTHING]
    found["departs"] = [float(there) for _, there in copied] or [NOTHING]
    found["mends"] = correct(wrong, [output[1] if output else "" for output in outputs])
    return found


def _copied(problem: Problem, wrong: str, mended: str) -> tuple[bool, bool]:
    """Does the reconstruction begin with the wrong attempt up to and including its first error and
    depart from it after that, there or lines later? And does it depart right there?
    """
    error = arithmetic.check(problem.id, wrong).first_error + 1
    before, after = wrong.split("\n"), mended.split("\n")
    through = after[:error] == before[:error] and after[error:] != before[error:]
    return through, through and after[error : error + 1] != before[error : error + 1]
