"""Which problems are learned from: those of medium difficulty, and groups with contrast.

    Filtered    a task that keeps to training problems which the policy sometimes solves, measured
                once before training: TAPO's and PRIME's query filter (arXiv 2606.18844, 2502.01456)
    replaced    fresh problems for groups without contrast: DAPO's dynamic sampling (arXiv
                2503.14476, section 3.2)

Both cost tokens, which are charged to the run in ``generated``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.core import Group, Method, Problem, Task, coordinates, refuse_if, refuse_on
from workbench.model.learner import Learner
from workbench.records import dumps, write_atomic
from workbench.rollouts.sampling import sample_groups
from workbench.tasks.base import Among

FILE = "filter.json"  # in the run's folder


@dataclass(frozen=True)
class Filtered(Among):
    """A task that keeps to training problems of medium difficulty.

    ``accuracy``: what the policy had, by problem, of all that were measured; ``generated``: tokens
    that it wrote for that.
    """

    accuracy: Mapping[str, float]
    generated: float

    def save(self, out: Path) -> None:
        record = {"accuracy": dict(self.accuracy), "generated": self.generated}
        write_atomic(out / FILE, dumps(record) + "\n")


def pool(task: Task, n: int, seed: int) -> list[Problem]:
    """The problems that are measured, each once."""
    problems = task.problems("train", n, coordinates(seed, "filter"))
    return list({problem.id: problem for problem in problems}.values())


def measure_difficulty(
    learner: Learner, problems: Sequence[Problem], task: Task, samples: int, seed: int
) -> tuple[dict[str, float], float]:
    """The share of so many rollouts that is right, by problem, and all tokens written."""
    with learner.gathered():
        groups = sample_groups(learner.policy, task, problems, samples, (seed, "filter"))
    accuracy = {
        group.problem.id: sum(r.verdict.correct for r in group.rollouts) / samples
        for group in groups
    }
    return accuracy, sum(map(written, groups))


def recorded_difficulty(out: Path) -> tuple[dict[str, float], float]:
    """What a run measured before it began. Raises WorkbenchError where that cannot be read."""
    damaged = (
        f"{out / FILE}, which says which problems the run keeps to, is missing or damaged: put it "
        "back as it was, or name another folder"
    )
    with refuse_on((OSError, ValueError, TypeError, KeyError, AttributeError), damaged):
        record = json.loads((out / FILE).read_text(encoding="utf-8"))
        accuracy = {str(name): float(share) for name, share in record["accuracy"].items()}
        return accuracy, float(record["generated"])


def keep(
    task: Task,
    problems: Sequence[Problem],
    measured: tuple[dict[str, float], float],
    bounds: tuple[float, float],
    least: int,
) -> Filtered:
    """The task with the problems whose accuracy is within ``bounds``.

    Raises WorkbenchError where there are not ``least`` of them.
    """
    accuracy, generated = measured
    low, high = bounds
    rows = tuple(p for p in problems if low <= accuracy.get(p.id, -1.0) <= high)
    refuse_if(
        len(rows) < least,
        f"the policy solves {len(rows)} of {len(problems)} problems between {low:g} and "
        f"{high:g} of the time, and a step takes {least}: raise filter_problems, or take "
        "problems of another difficulty",
    )
    return Filtered(task, rows, accuracy, generated)


# ---- dynamic sampling


def replaced(
    groups: Sequence[Group],
    method: Method,
    learner: Learner,
    task: Task,
    seed: tuple[int, ...],
    tries: int,
) -> list[Group]:
    """The groups, those without contrast replaced by groups of fresh problems, at most ``tries``
    times; what is left without contrast then stays.

    (DAPO samples until all have contrast.) What was written for a group that is not trained on is
    charged to the one in its place (``generated``); ``resampled`` counts such groups.
    """
    groups = list(groups)
    for number in range(tries):
        places = [i for i, group in enumerate(groups) if not contrast(group)]
        if not places:
            break
        again = (*seed, "again", number)
        problems = task.problems("train", len(places), coordinates(*again))
        for i, group in zip(places, method.sample(learner, task, problems, again)):
            notes = dict(group.notes)
            notes["generated"] = notes.get("generated", 0.0) + written(groups[i])
            notes["resampled"] = groups[i].notes.get("resampled", 0.0) + 1
            groups[i] = replace(group, notes=notes)
    return groups


def contrast(group: Group) -> bool:
    """Whether the rewards of what the policy wrote alone differ."""
    return len({rollout.verdict.reward for rollout in group.own}) > 1


def written(group: Group) -> float:
    """Tokens that the policy wrote for a group, also those that are in no rollout."""
    tokens = sum(len(r.completion_ids) - r.borrowed for r in group.rollouts)
    return tokens + group.notes.get("generated", 0.0)
