"""What the study measures of one trained policy, on held-out problems at temperature 1.

    test, counts            avg@k and length; per problem: samples right, direct, reflecting,
                            effective, needless, spoiled, from which DSR and ERR come on any set of
                            problems
    reading, ..._counts     right with a right solution in the prompt: what it could do before
    pass32, ..._counts      pass@k of fewer problems with more samples

The problems are the same for every policy of one seed, so that differences between policies are
paired, and other ones for another seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from workbench.core import Group, Task
from workbench.evaluation import reflection
from workbench.evaluation.metrics import Evaluation
from workbench.model.policy import Policy
from workbench.rollouts.sampling import sample_groups
from workbench.studies.arms import READING
from workbench.tasks import load_task
from workbench.tasks.arithmetic import Arithmetic


@dataclass(frozen=True)
class Amounts:
    """Held-out problems, and samples of each; 0 problems: not measured."""

    problems: int = 800
    samples: int = 4
    reading: int = 200  # one sample each
    many: int = 100
    many_samples: int = 32


def evaluate_checkpoint(
    policy: Policy, task: Task, seed: int, amounts: Amounts, many: bool = False
) -> dict:
    """The numbers above, for a record. ``many``: with pass32."""
    held_out = task.problems("test", amounts.problems, seed)
    groups = sample_groups(policy, task, held_out, amounts.samples, (seed, "assess"))
    judge = reflection.by_checker(task) if isinstance(task, Arithmetic) else reflection.by_words
    record = {
        "seed": seed,
        "test": _short(Evaluation.of(groups)),
        "counts": {group.problem.id: reflection.counts(group, judge) for group in groups},
        "reading": None,
        "pass32": None,
    }
    if amounts.reading and isinstance(task, Arithmetic):
        reading = load_task(READING)
        solved = reading.problems("test", amounts.reading, seed)
        read = sample_groups(policy, reading, solved, 1, (seed, "read"))
        record |= _with_counts("reading", read)
    if amounts.many and many:
        few = held_out[: amounts.many]
        often = sample_groups(policy, task, few, amounts.many_samples, (seed, "many"))
        record |= _with_counts("pass32", often)
    return record


def _with_counts(name: str, groups: Sequence[Group]) -> dict:
    right = {}
    for group in groups:
        right[group.problem.id] = sum(rollout.verdict.correct for rollout in group.rollouts)
    return {name: _short(Evaluation.of(groups)), f"{name}_counts": right}


def _short(evaluation: Evaluation) -> dict:
    numbers = asdict(evaluation)
    del numbers["per_problem"]
    return numbers
