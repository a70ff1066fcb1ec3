"""Realised credit: what a method's update tells each token, in one unit for all methods.

It is the number of the project: the coefficient of grad log pi(y_t) in -grad L, times the number of
completion tokens, so that a token mean shows the method's own number. What is drawn is what the
optimiser uses (tests/test_credit_is_gradient.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from workbench.core import CHANNELS, Group, Method, Problem, Rollout, Task, places_of
from workbench.model.batch import collate, score
from workbench.model.learner import FrozenLearner, Learner

ROWS = 32  # rollouts read together


@dataclass(frozen=True)
class RealisedCredit:
    """A method's credit on the rollouts of a group, [T] each; NaN on a rollout that it leaves out.

    ``channels`` are those of pg, nll and kl that are not zero everywhere.
    """

    group: Group
    credit: tuple[np.ndarray, ...]
    channels: Mapping[str, tuple[np.ndarray, ...]]

    def only(self, places: Sequence[int]) -> RealisedCredit:
        """Of some rollouts alone."""
        rollouts = tuple(self.group.rollouts[i] for i in places)
        channels = {name: tuple(of[i] for i in places) for name, of in self.channels.items()}
        credit = tuple(self.credit[i] for i in places)
        return RealisedCredit(replace(self.group, rollouts=rollouts), credit, channels)


def realised_credit(
    learner: Learner | FrozenLearner, group: Group, method: Method
) -> RealisedCredit:
    """What ``method`` tells each token of a group that is taken as the whole batch."""
    return realised_credits(learner, [group], method)[0]


@torch.no_grad()
def realised_credits(
    learner: Learner | FrozenLearner, groups: Sequence[Group], method: Method
) -> list[RealisedCredit]:
    """What ``method`` tells each token of groups that are taken as the whole batch."""
    policy = learner.policy
    credits = method.credit(list(groups), learner)
    places = places_of(credits, groups)
    realised = _blank(groups)
    for batch in collate(credits, policy.pad_id, ROWS, policy.device):
        loss = method.loss(score(learner, batch, method), batch)
        for i, row in zip(batch.places, loss.credit.cpu().numpy()):
            group, rollout = places[i]
            realised[group][rollout] = row[: len(credits[i].pg)]
    channels: list[dict[str, tuple[np.ndarray, ...]]] = [{} for _ in groups]
    for name in CHANNELS:
        numbers = _blank(groups)
        for (group, rollout), credit in zip(places, credits):
            numbers[group][rollout] = getattr(credit, name)
        for by_name, rows in zip(channels, numbers):
            if any(np.nan_to_num(row).any() for row in rows):
                by_name[name] = tuple(rows)
    return [RealisedCredit(*row) for row in zip(groups, map(tuple, realised), channels)]


def _blank(groups: Sequence[Group]) -> list[list[np.ndarray]]:
    """NaN for each token of each rollout."""
    lengths = [[len(rollout.completion_ids) for rollout in group.rollouts] for group in groups]
    return [[np.full(n, np.nan, np.float32) for n in row] for row in lengths]


# ---- one question, seen by several methods


def credit_by_method(
    learner: Learner | FrozenLearner,
    task: Task,
    problem: Problem,
    methods: Mapping[str, Method],
    seed: tuple[int, ...],
) -> dict[str, RealisedCredit]:
    """Each method's credit on its own group for the problem.

    Samples come from coordinates, so methods that let the policy write alone write the same
    attempts; TAPO adds its reconstructions, LUFFY, TRAPO and SFT an expert's words.
    """
    credits = {}
    for name, method in methods.items():
        method = method.for_task(task)
        [group] = method.sample(learner, task, [problem], seed)
        credits[name] = realised_credit(learner, group, method)
    return credits


def comparable_rollouts(credits: Mapping[str, RealisedCredit]) -> dict[str, RealisedCredit]:
    """Few enough to draw: of each method one right and one wrong attempt, and one borrowed.

    The attempts are the same for all methods where they have them. Of the rollouts that the policy
    did not write alone: a right one where there is one, with the most credit.
    """
    shared = _shared_attempts([credit.group for credit in credits.values()])
    return {name: credit.only(_drawn(credit, shared)) for name, credit in credits.items()}


def _shared_attempts(groups: Sequence[Group]) -> list[tuple[int, ...]]:
    """A right and a wrong attempt that most methods have, by their token ids."""
    counts: dict[bool, Counter] = {True: Counter(), False: Counter()}
    for group in groups:
        attempts = [r for r in group.rollouts if r.origin == "policy"]
        for correct, ids in dict.fromkeys((r.verdict.correct, r.completion_ids) for r in attempts):
            counts[correct][ids] += 1
    return [max(count, key=count.get) for count in counts.values() if count]


def _drawn(credit: RealisedCredit, shared: Sequence[tuple[int, ...]]) -> list[int]:
    rollouts = credit.group.rollouts
    ids = [rollout.completion_ids for rollout in rollouts]
    places = [ids.index(attempt) for attempt in shared if attempt in ids]
    borrowed = [i for i, rollout in enumerate(rollouts) if rollout.origin != "policy"]
    if borrowed:
        places.append(max(borrowed, key=lambda i: _interest(rollouts[i], credit.credit[i])))
    return places


def _interest(rollout: Rollout, numbers: np.ndarray) -> tuple[bool, float]:
    return rollout.verdict.correct, float(np.abs(np.nan_to_num(numbers)).sum())
