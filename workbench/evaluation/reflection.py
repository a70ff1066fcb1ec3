"""What a policy does about its own mistakes: solves directly, reflects, mends, spoils; and whether
it recovers from a mistake planted in its mouth.

    right        ends right                                                      share of all
                 responses
    first_pass   right, and without a reflection                                 share of all
                 responses
    DSR          direct solution rate: solved without a reflection               share of the right
                 responses
    reflects     at least one reflection                                         share of all
                 responses
    ERR          effective reflection rate: located, diagnosed, and ends right   share of the
                 responses that reflect
    needless     a reflection when nothing was wrong yet                         share of the
                 responses that reflect
    spoils       ... after which the response ends wrong                         share of those
    recovery     ends right after a planted wrong beginning                      share of all such
                 responses

DSR and ERR are TAPO's (arXiv 2606.18844): of boundary problems only, those that every compared
model solves sometimes and not always.

A judge says of one response what it is. The arithmetic task's checker does so exactly; for real
text pass a judge of your own, such as a stronger model asked for the three fields. ``by_words`` is
a stand-in that only sees words and the final answer.

    python -m workbench.evaluation.reflection --models data/organism/3m runs/mine/model
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from workbench.core import Group, Problem, Rollout, Task, WorkbenchError, coordinates
from workbench.model.policy import Policy
from workbench.rollouts.prefixes import Prefix, continue_from
from workbench.rollouts.sampling import sample_groups

SPOKEN = re.compile(
    r"\b(wait|hold on|let me (double-?check|re-?check|reconsider|re-?examine|verify)|i made "
    r"an? (mistake|error)|that'?s not right)\b",
    re.IGNORECASE,
)
RATES = ("right", "first_pass", "dsr", "reflects", "err", "needless", "spoils")


class Judgement(NamedTuple):
    """``effective``: the reflection finds a real mistake, says what is right, and the response ends
    right. ``needless``: nothing was wrong yet when it first reflected; False where the judge cannot
    know.
    """

    reflects: bool
    effective: bool
    needless: bool = False


Judge = Callable[[Problem, Rollout], Judgement]


def by_checker(task: Task) -> Judge:
    """The exact judge of a task that can check each step. Raises WorkbenchError for any other."""
    if not hasattr(task, "check"):
        raise WorkbenchError(
            f"the task {task.name} does not check single steps: pass a judge "
            "(reflection.by_words, or one of your own)"
        )
    from workbench.tasks.arithmetic import WAIT, lines

    def judge(problem: Problem, rollout: Rollout) -> Judgement:
        found = task.check(problem, rollout.text)
        first = next(
            (i for i, line in enumerate(lines(rollout.text)) if line.startswith(WAIT)), None
        )
        if first is None:
            return Judgement(False, False)
        erred = found.first_error is not None and found.first_error < first
        return Judgement(True, found.correct and found.first_error is not None, not erred)

    return judge


def by_words(problem: Problem, rollout: Rollout) -> Judgement:
    """Reflects where it says so; effective where it then ends right, which is more than it is: the
    mistake may be none.
    """
    reflects = bool(SPOKEN.search(rollout.text))
    return Judgement(reflects, reflects and rollout.verdict.correct)


@dataclass(frozen=True)
class Rate:
    """A share, with its 95 % interval from resampling problems; NaN where there is nothing to
    count. ``n``: responses that it is a share of.
    """

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(
        cls, hits: Sequence[float], counts: Sequence[float], draws: int = 2000, seed: int = 0
    ) -> Rate:
        """From what each problem adds to the upper and to the lower number of the ratio."""
        hits, counts = np.asarray(hits, float), np.asarray(counts, float)
        if not counts.sum():
            return cls(float("nan"), float("nan"), float("nan"), 0)
        rows = np.random.default_rng(seed).integers(0, len(counts), (draws, len(counts)))
        below = counts[rows].sum(1)
        low, high = np.quantile((hits[rows].sum(1)[below > 0] / below[below > 0]), (0.025, 0.975))
        return cls(float(hits.sum() / counts.sum()), float(low), float(high), int(counts.sum()))

    def __str__(self) -> str:
        return (
            f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] of {self.n}" if self.n else "none"
        )


def boundary(*measured: Sequence[Group]) -> set[str]:
    """The problems that every model solves sometimes and not always: one list of groups for each
    model.
    """
    return set.intersection(
        *(
            {g.problem.id for g in groups if len({r.verdict.correct for r in g.rollouts}) == 2}
            for groups in measured
        )
    )


def measure(
    groups: Sequence[Group], judge: Judge, problems: set[str] | None = None
) -> dict[str, Rate]:
    """The RATES over these groups; ``problems`` keeps the boundary ones."""
    kept = [g for g in groups if problems is None or g.problem.id in problems]
    counts = {name: ([], []) for name in RATES}
    for group in kept:
        rows = [(r.verdict.correct, *judge(group.problem, r)) for r in group.rollouts]
        right, reflects = [row[0] for row in rows], [row[1] for row in rows]
        direct = sum(ok and not reflected for ok, reflected in zip(right, reflects))
        needless = [row for row in rows if row[1] and row[3]]
        parts = {
            "right": (sum(right), len(rows)),
            "first_pass": (direct, len(rows)),
            "dsr": (direct, sum(right)),
            "reflects": (sum(reflects), len(rows)),
            "err": (sum(row[1] and row[2] for row in rows), sum(reflects)),
            "needless": (len(needless), sum(reflects)),
            "spoils": (sum(not row[0] for row in needless), len(needless)),
        }
        for name, (hit, of) in parts.items():
            counts[name][0].append(hit)
            counts[name][1].append(of)
    return {name: Rate.of(*pair) for name, pair in counts.items()}


# ---- recovery


class Planted(NamedTuple):
    """A problem and the wrong beginning of somebody's attempt at it, mistake included: token ids."""

    problem: Problem
    ids: tuple[int, ...]


def plant(policy: Policy, task: Task, groups: Sequence[Group]) -> list[Planted]:
    """One beginning for each problem with a wrong rollout: the first such rollout through the end
    of its first wrong step, by the task's own truth. To compare models plant the same ones in each.
    Raises WorkbenchError where the task knows no first error.
    """
    found = []
    for group in groups:
        for rollout in group.rollouts:
            error = (
                None if rollout.verdict.correct else task.first_error(group.problem, rollout.text)
            )
            if error is not None and error.start < error.end:  # not where a step is only missing
                text = rollout.text[: error.end]
                found.append(
                    Planted(
                        group.problem,
                        policy.completion_ids(text if text.endswith("\n") else text + "\n")[:-1],
                    )
                )
                break
    if not found:
        raise WorkbenchError(
            f"no wrong attempt of these groups has a first error that the task {task.name} can name"
        )
    return found


def recover(
    policy: Policy, task: Task, planted: Sequence[Planted], samples: int, seed: int
) -> list[Group]:
    """Let the policy go on from each beginning as if it had written it; groups of ``samples``
    graded rollouts with borrowed beginnings.
    """
    starts = [
        Prefix(
            p.problem,
            p.ids,
            [coordinates(seed, "recover", p.problem.id, j) for j in range(samples)],
        )
        for p in planted
    ]
    return [
        Group(p.problem, tuple(rollouts))
        for p, rollouts in zip(planted, continue_from(policy, task, starts))
    ]


def recovery(groups: Sequence[Group]) -> Rate:
    return Rate.of(
        [sum(r.verdict.correct for r in g.rollouts) for g in groups],
        [len(g.rollouts) for g in groups],
    )


def compare(
    policies: Mapping[str, Policy],
    task: Task,
    problems: Sequence[Problem],
    samples: int,
    seed: int,
    judge: Judge | None = None,
) -> dict[str, dict[str, Rate]]:
    """All rates of several models on the same problems; DSR and ERR on their common boundary
    problems, recovery from the first model's mistakes.
    """
    judge = judge or by_checker(task)
    groups = {
        name: sample_groups(policy, task, problems, samples, (seed, "reflection"))
        for name, policy in policies.items()
    }
    shared, first = boundary(*groups.values()), next(iter(policies))
    planted = plant(policies[first], task, groups[first])
    found = {}
    for name, policy in policies.items():
        near = measure(groups[name], judge, shared)
        found[name] = {
            **measure(groups[name], judge),
            "dsr": near["dsr"],
            "err": near["err"],
            "recovery": recovery(recover(policy, task, planted, samples, seed)),
        }
    return found


def main() -> None:
    from workbench.model.loading import load_policy
    from workbench.tasks import load_task

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        nargs="+",
        required=True,
        metavar="PATH_OR_HUB_ID",
        help="the first one's mistakes are planted in all",
    )
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        task = load_task(args.task)
        problems = task.problems("test", args.problems, args.seed)
        found = compare(
            {name: load_policy(name) for name in args.models},
            task,
            problems,
            args.samples,
            args.seed,
        )
    except WorkbenchError as error:
        parser.exit(2, f"workbench: {error}\n")
    if args.json:
        print(
            json.dumps(
                {
                    name: {key: asdict(rate) for key, rate in rates.items()}
                    for name, rates in found.items()
                },
                indent=1,
            )
        )
        return
    for name, rates in found.items():
        print(name, *(f"  {key:11}{rate}" for key, rate in rates.items()), sep="\n")


if __name__ == "__main__":
    main()
