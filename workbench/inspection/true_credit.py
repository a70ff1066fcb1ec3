"""True credit: what would have been right to tell each token.

    V(c)         = E[reward when the policy goes on from the prefix c at temperature 1]
                   (rewards of 0 and 1: its chance of ending right); after the last token the reward
    A(s_t, y_t)  = V(s_t y_t) - V(s_t)
                   sum_t A = reward - V(prompt);  its expectation over y_t ~ pi is 0

The gradient of the expected reward is E sum_t A(s_t, y_t) grad log pi(y_t | s_t): a method whose
credit is A on every token is the policy gradient with the least noise that a baseline allows.

V is estimated by continuations from every distinct prefix, in two independent halves: of A_1 and
A_2 made from them <A_1, A_2> is unbiased, where <A, A> also counts the noise (credit_scores.py).

A token that the policy writes almost surely changes almost nothing: |A| <= 1 - pi, for rewards
from 0 to 1. So a prefix whose next token has 1 - pi < ``certain`` takes the V after that token and
is not continued itself: on the organism 2 of 3 prefixes, and A = 0 there without noise. (Continued
all the same, the values of such a stretch agree: chi2 181 on 204 degrees of freedom, 7 groups.)
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product

import numpy as np

from workbench.core import Group, Problem, Rollout, Task, coordinates, refuse_if
from workbench.model.policy import Policy
from workbench.rollouts.prefixes import Prefix, continue_from

CERTAIN = 1e-3
AT_ONCE = 512  # prefixes continued in one call
HALVES = (0, 1)
PILOT = 2  # decides how many continuations there will be, and enters no value
Key = tuple[str, tuple[int, ...]]  # id of a problem, first tokens of a completion


@dataclass(frozen=True)
class TrueCredit:
    """V and A along the rollouts of a group of T tokens each.

    ``values``: [2, T + 1] the halves' V before each token and after the last; ``errors``: [T]
    standard error of ``advantage``; ``cost``: tokens generated for it.
    """

    group: Group
    values: tuple[np.ndarray, ...]
    errors: tuple[np.ndarray, ...]
    cost: int

    @property
    def halves(self) -> tuple[np.ndarray, ...]:
        """[2, T] two independent estimates of A."""
        return tuple(map(np.diff, self.values))

    @property
    def advantage(self) -> tuple[np.ndarray, ...]:
        """[T] the estimate of A from all continuations."""
        return tuple(halves.mean(0) for halves in self.halves)


def true_credit(
    policy: Policy,
    task: Task,
    groups: Sequence[Group],
    samples: int,
    seed: int,
    *,
    error: float | None = None,
    certain: float = CERTAIN,
) -> list[TrueCredit]:
    """V along the rollouts of the groups by ``samples`` continuations a prefix, a half each half.

    A prefix that several rollouts or groups share is continued once. ``error``: where neighbouring
    values differ beyond their noise, both are continued until the standard error of A is about
    this. Which ones those are a third half says that enters no value: a half that decides on its
    own number, or on the other's, is biased, and with it <A_1, A_2>.
    Rewards are taken to be from 0 to 1. Seeds come from coordinates: the numbers depend neither on
    the order of the groups nor on what else was continued.

    Raises WorkbenchError for less than 2 or an odd number of samples.
    """
    refuse_if(
        samples < 2 or samples % 2, f"true credit takes an even number of samples, not {samples}"
    )
    memory = _Memory(task)
    tree = _Tree(groups, certain)
    wanted = dict.fromkeys(tree.open, samples // 2)
    if error is not None:
        _continue(policy, memory, tree.open, wanted, seed, (PILOT,))
        wanted = _more(groups, tree, wanted, error)
    _continue(policy, memory, tree.open, wanted, seed, HALVES)
    counted: set[Key] = set()
    results = []
    for group in groups:
        paths = [tree.path(group, rollout) for rollout in group.rollouts]
        values = tuple(np.stack([node.means for node in path], axis=1) for path in paths)
        errors = tuple(np.array([_error(*pair) for pair in pairwise(path)]) for path in paths)
        cost = 0
        for key in _prefixes([group]).keys() - counted:
            counted.add(key)
            cost += tree.open[key].cost if key in tree.open else 0
        results.append(TrueCredit(group, values, errors, cost))
    return results


def expected_cost(groups: Sequence[Group], samples: int, certain: float = CERTAIN) -> int:
    """How many tokens ``true_credit`` will generate, before any for a stated error.

    From each prefix that it continues as many as the rollouts through it went on for, in the mean.
    """
    rest: dict[Key, list[int]] = defaultdict(list)
    for group in groups:
        for rollout in group.rollouts:
            ids = rollout.completion_ids
            for t in range(len(ids)):
                rest[group.problem.id, ids[:t]].append(len(ids) - t)
    return round(samples * sum(np.mean(rest[key]) for key in _Tree(groups, certain).open))


# ---- prefixes and their continuations


class _Memory:
    """The task, which grades a text once: continuations of neighbouring prefixes often agree."""

    def __init__(self, task: Task):
        self.task, self.max_new = task, task.max_new
        self.verdicts: dict[tuple[str, str], object] = {}

    def grade(self, problem: Problem, text: str):
        key = problem.id, text
        if key not in self.verdicts:
            self.verdicts[key] = self.task.grade(problem, text)
        return self.verdicts[key]


@dataclass
class _Node:
    """One prefix: the rewards of its continuations, by half and the pilot's, and their tokens.

    Of a whole rollout its reward, in all three.
    """

    problem: Problem
    key: Key
    rewards: tuple[list[float], ...] = field(default_factory=lambda: ([], [], []))
    ended: bool = False
    cost: int = 0

    @property
    def means(self) -> np.ndarray:
        """[2] V by half."""
        return np.array([np.mean(self.rewards[half]) for half in HALVES])

    def noise(self, *parts: int) -> float:
        """Squared standard error of V from these parts together."""
        rewards = [reward for part in parts for reward in self.rewards[part]]
        return 0.0 if self.ended else spread(rewards) / len(rewards)


class _Tree:
    """The prefixes of some groups; ``open`` are those to continue.

    A prefix with an almost certain next token stands for nothing itself: the one after that does.
    """

    def __init__(self, groups: Sequence[Group], certain: float):
        self.ahead: dict[Key, Key] = {}
        self.open = {key: _Node(problem, key) for key, problem in _prefixes(groups).items()}
        self.ends: dict[Key, _Node] = {}
        for group in groups:
            for rollout in group.rollouts:
                ids, reward = rollout.completion_ids, rollout.verdict.reward
                end = group.problem.id, ids
                self.ends[end] = _Node(group.problem, end, ([reward],) * 3, ended=True)
                for t, logp in enumerate(rollout.logprobs):
                    if -math.expm1(logp) < certain:  # never where it is NaN: borrowed
                        key = group.problem.id, ids[:t]
                        self.ahead[key] = group.problem.id, ids[: t + 1]
                        self.open.pop(key, None)

    def node(self, key: Key) -> _Node:
        while key in self.ahead:
            key = self.ahead[key]
        return self.open[key] if key in self.open else self.ends[key]

    def path(self, group: Group, rollout: Rollout) -> list[_Node]:
        """[T + 1] before each token, and the end."""
        ids = rollout.completion_ids
        before = [self.node((group.problem.id, ids[:t])) for t in range(len(ids))]
        return [*before, self.ends[group.problem.id, ids]]


def _error(before: _Node, after: _Node) -> float:
    """Standard error of A, the mean of two halves."""
    return 0.0 if before is after else math.sqrt(before.noise(*HALVES) + after.noise(*HALVES))


def spread(rewards: Sequence[float]) -> float:
    """Variance of rewards from 0 to 1, one of each added.

    So that continuations that all ended alike do not claim to be certain (Agresti and Coull, 1998).
    """
    return float(np.var([*rewards, 0.0, 1.0]))


def _prefixes(groups: Sequence[Group]) -> dict[Key, Problem]:
    prefixes = {}
    for group in groups:
        for rollout in group.rollouts:
            for t in range(len(rollout.completion_ids)):
                prefixes[group.problem.id, rollout.completion_ids[:t]] = group.problem
    return prefixes


def _continue(
    policy: Policy,
    task: _Memory,
    nodes: Mapping[Key, _Node],
    wanted: Mapping[Key, int],
    seed: int,
    parts: Sequence[int],
) -> None:
    """Go on from prefixes, so often for each of these parts."""
    keys = sorted(wanted, key=lambda key: len(key[1]))
    for begin in range(0, len(keys), AT_ONCE):
        chunk = keys[begin : begin + AT_ONCE]
        starts = []
        for key in chunk:
            where = coordinates(seed, "true credit", *key)
            seeds = [coordinates(where, *which) for which in product(parts, range(wanted[key]))]
            starts.append(Prefix(nodes[key].problem, key[1], seeds))
        for key, rollouts in zip(chunk, continue_from(policy, task, starts)):
            rewards = [rollout.verdict.reward for rollout in rollouts]
            for place, part in enumerate(parts):
                nodes[key].rewards[part].extend(rewards[place * wanted[key] :][: wanted[key]])
            nodes[key].cost += sum(len(r.completion_ids) - len(key[1]) for r in rollouts)


def _more(
    groups: Sequence[Group], tree: _Tree, fewest: Mapping[Key, int], error: float
) -> dict[Key, int]:
    """Continuations for each half, more on either side of a token that matters to the pilot.

    With V's variance v and m continuations a half, A has variance (v + v') / 2m.
    """
    wanted = dict(fewest)
    for group in groups:
        for rollout in group.rollouts:
            for pair in pairwise(tree.path(group, rollout)):
                before, after = (np.mean(node.rewards[PILOT]) for node in pair)
                noise = math.sqrt(sum(node.noise(PILOT) for node in pair))
                for node in pair if abs(after - before) > 2 * noise else ():
                    if not node.ended:
                        enough = math.ceil(spread(node.rewards[PILOT]) / error**2)
                        wanted[node.key] = max(wanted[node.key], enough)
    return wanted
