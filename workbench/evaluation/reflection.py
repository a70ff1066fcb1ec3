"""What a policy does about its own mistakes.

It solves directly, reflects, mends, spoils; and it recovers from a mistake planted in its mouth, or
does not.

                                                                      share of
    right        ends right                                           all responses
    first_pass   right, and without a reflection                      all responses
    DSR          direct solution rate: solved without a reflection    the right responses
    reflects     at least one reflection                              all responses
    ERR          effective reflection rate: located, diagnosed,       the responses that reflect
                 and ends right
    needless     a reflection when nothing was wrong yet              the responses that reflect
    spoils       ... after which the response ends wrong              the needless ones
    recovery     ends right after a planted wrong beginning           all such responses

DSR and ERR are TAPO's (arXiv 2606.18844): of boundary problems only, those that every compared
model solves sometimes and not always.

A judge says of one response what it is. The arithmetic task's checker does so exactly; for real
text pass a judge of your own, such as a stronger model asked for the three fields. ``by_words`` is
a stand-in that only sees words and the final answer.

    workbench reflection --models data/organism/3m runs/mine/model
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from workbench.core import Group, Problem, Rollout, Task, coordinates, refuse_if
from workbench.evaluation.statistics import bootstrap_formula
from workbench.model.loading import load_policy
from workbench.model.policy import Policy
from workbench.options import add_flags
from workbench.rollouts.prefixes import Prefix, continue_from
from workbench.rollouts.sampling import sample_groups
from workbench.tasks import load_task

SPOKEN = re.compile(
    r"\b(wait|hold on|let me (double-?check|re-?check|reconsider|re-?examine|verify)|i made "
    r"an? (mistake|error)|that'?s not right)\b",
    re.IGNORECASE,
)
COUNTS = ("right", "direct", "reflecting", "effective", "needless", "spoiled")
# each rate: the count above, and the one below
RATES = {
    "right": ("right", "samples"),
    "first_pass": ("direct", "samples"),
    "dsr": ("direct", "right"),
    "reflects": ("reflecting", "samples"),
    "err": ("effective", "reflecting"),
    "needless": ("needless", "reflecting"),
    "spoils": ("spoiled", "needless"),
}


class Judgement(NamedTuple):
    """What a judge says of one response.

    ``effective``: the reflection finds a real mistake, says what is right, and the response ends
    right. ``needless``: nothing was wrong yet when it first reflected; False where the judge cannot
    know.
    """

    reflects: bool
    effective: bool
    needless: bool = False


Judge = Callable[[Problem, Rollout], Judgement]


def by_checker(task: Task) -> Judge:
    """The exact judge of a task that can check each step. Raises WorkbenchError for any other."""
    refuse_if(
        not hasattr(task, "check"),
        f"the task {task.name} does not check single steps: pass a judge "
        "(reflection.by_words, or one of your own)",
    )
    from workbench.tasks.arithmetic import WAIT, lines

    def judge(problem: Problem, rollout: Rollout) -> Judgement:
        starts = [line.startswith(WAIT) for line in lines(rollout.text)]
        if True not in starts:
            return Judgement(False, False)
        check = task.check(problem, rollout.text)
        has_error = check.first_error is not None
        erred_before = has_error and check.first_error < starts.index(True)
        return Judgement(True, check.correct and has_error, not erred_before)

    return judge


def by_words(problem: Problem, rollout: Rollout) -> Judgement:
    """Reflects where it says so.

    Effective where it then ends right, which is more than it is: the mistake may be none.
    """
    reflects = bool(SPOKEN.search(rollout.text))
    return Judgement(reflects, reflects and rollout.verdict.correct)


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval from resampling problems; NaN where there is nothing to count.

    ``n``: responses that it is a share of.
    """

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, hits: Sequence[float], counts: Sequence[float]) -> Rate:
        """From what each problem adds to the upper and to the lower number of the ratio."""
        upper, lower = np.asarray([hits, counts], float)
        if not lower.sum():
            return cls(float("nan"), float("nan"), float("nan"), 0)
        interval = bootstrap_formula(lambda counts: (counts @ upper) / (counts @ lower), len(lower))
        return cls(*interval, int(lower.sum()))

    def __str__(self) -> str:
        return (
            f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] of {self.n}" if self.n else "none"
        )


def boundary(*models: Sequence[Group]) -> set[str]:
    """The ids of the problems that every model solves sometimes and not always.

    ``models``: a list of groups for each.
    """
    return set.intersection(*map(_varying, models))


def _varying(groups: Sequence[Group]) -> set[str]:
    """The ids of the problems that are solved sometimes and not always."""
    problems = set()
    for group in groups:
        if 0 < len(group.places(correct=True)) < len(group.rollouts):
            problems.add(group.problem.id)
    return problems


def measure(
    groups: Sequence[Group], judge: Judge, problems: set[str] | None = None
) -> dict[str, Rate]:
    """The RATES over these groups; ``problems`` keeps the boundary ones."""
    table = []
    for group in groups:
        if problems is None or group.problem.id in problems:
            table.append((*counts(group, judge), len(group.rollouts)))
    return rates(table)


def counts(group: Group, judge: Judge) -> tuple[int, ...]:
    """How many of a problem's samples are COUNTS."""
    rows = []
    for rollout in group.rollouts:
        right = rollout.verdict.correct
        reflects, effective, needless = judge(group.problem, rollout)
        direct = right and not reflects
        rows.append((right, direct, reflects, effective, needless, needless and not right))
    return tuple(map(int, np.sum(rows, 0)))


def rates(table: Sequence[Sequence[int]]) -> dict[str, Rate]:
    """The RATES; each row of ``table`` is one problem's COUNTS and its number of samples."""
    columns = np.reshape(np.array(table, float), (-1, len(COUNTS) + 1)).T
    by_name = dict(zip((*COUNTS, "samples"), columns))
    return {name: Rate.of(by_name[upper], by_name[lower]) for name, (upper, lower) in RATES.items()}


# ---- recovery


class Planted(NamedTuple):
    """A problem and the wrong beginning of somebody's attempt at it: ids, mistake included."""

    problem: Problem
    ids: tuple[int, ...]


def plant(policy: Policy, task: Task, groups: Sequence[Group]) -> list[Planted]:
    """One beginning for each problem with a wrong rollout.

    It is the first such rollout through the end of its first wrong step, by the task's own truth.
    To compare models plant the same ones in each. Raises WorkbenchError where the task knows no
    first error.
    """
    planted = []
    for group in groups:
        beginning = _wrong_beginning(policy, task, group)
        if beginning is not None:
            planted.append(beginning)
    refuse_if(
        not planted,
        f"no wrong attempt of these groups has a first error that the task {task.name} can name",
    )
    return planted


def _wrong_beginning(policy: Policy, task: Task, group: Group) -> Planted | None:
    for place in group.places(correct=False):
        rollout = group.rollouts[place]
        error = task.first_error(group.problem, rollout.text)
        if error is not None and error.start < error.end:  # not where a step is only missing
            text = rollout.text[: error.end]
            whole_lines = text if text.endswith("\n") else text + "\n"
            return Planted(group.problem, policy.text_ids(whole_lines))
    return None


def recover(
    policy: Policy, task: Task, planted: Sequence[Planted], samples: int, seed: int
) -> list[Group]:
    """Let the policy go on from each beginning as if it had written it.

    Returns groups of ``samples`` graded rollouts with borrowed beginnings.
    """
    prefixes = []
    for problem, ids in planted:
        seeds = [coordinates(seed, "recover", problem.id, j) for j in range(samples)]
        prefixes.append(Prefix(problem, ids, seeds))
    continued = continue_from(policy, task, prefixes)
    return [Group(p.problem, tuple(rollouts)) for p, rollouts in zip(planted, continued)]


def recovery(groups: Sequence[Group]) -> Rate:
    right, samples = [], []
    for group in groups:
        right.append(len(group.places(correct=True)))
        samples.append(len(group.rollouts))
    return Rate.of(right, samples)


def compare(
    policies: Mapping[str, Policy],
    task: Task,
    problems: Sequence[Problem],
    samples: int,
    seed: int,
    judge: Judge | None = None,
) -> dict[str, dict[str, Rate]]:
    """All rates of several models on the same problems.

    DSR and ERR on their common boundary problems, recovery from the first model's mistakes.
    """
    judge = judge or by_checker(task)
    groups = {
        name: sample_groups(policy, task, problems, samples, (seed, "reflection"))
        for name, policy in policies.items()
    }
    shared = boundary(*groups.values())
    first = next(iter(policies))
    planted = plant(policies[first], task, groups[first])
    by_model = {}
    for name, policy in policies.items():
        near = measure(groups[name], judge, shared)
        by_model[name] = {
            **measure(groups[name], judge),
            "dsr": near["dsr"],
            "err": near["err"],
            "recovery": recovery(recover(policy, task, planted, samples, seed)),
        }
    return by_model


# ---- workbench reflection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models",
        nargs="+",
        required=True,
        metavar="PATH_OR_HUB_ID",
        help="the first one's mistakes are planted in all",
    )
    parser.add_argument(
        "--adapter",
        nargs="+",
        default=[],
        metavar="DIR",
        help="peft adapters on the first model: each is one more to measure",
    )
    parser.add_argument("--json", action="store_true")
    add_flags(parser, task="arithmetic", problems=400, samples=8, seed=0)


def main(args: argparse.Namespace) -> None:
    task = load_task(args.task)
    problems = task.problems("test", args.problems, args.seed)
    policies = {name: load_policy(name) for name in args.models}
    for adapter in args.adapter:
        policy = load_policy(args.models[0], adapter=adapter)
        policies[f"{args.models[0]} + {adapter}"] = policy
    by_model = compare(policies, task, problems, args.samples, args.seed)
    if args.json:
        print(json.dumps(by_model, default=asdict, indent=1))
        return
    for name, row in by_model.items():
        print(name)
        for key, rate in row.items():
            print(f"  {key:11}{rate}")
