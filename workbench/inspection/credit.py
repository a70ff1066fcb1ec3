"""One question, seen by every method: the attempts that all of them share, what each adds of its
own, and what each says of every token.

Samples come from coordinates, so methods that let the policy write alone write the same attempts;
TAPO adds its reconstructions, LUFFY, TRAPO and SFT an expert's words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from workbench.core import CHANNELS, Group, Method, Problem, Rollout, Task
from workbench.model.batch import collate, score
from workbench.model.learner import FrozenLearner, Learner

ROWS = 32  # rollouts read together


class MethodCredit(NamedTuple):
    """A method's realised credit on a few rollouts: [T] each."""

    rollouts: tuple[Rollout, ...]
    credit: tuple[np.ndarray, ...]


def credit_by_method(
    learner: Learner | FrozenLearner,
    task: Task,
    problem: Problem,
    methods: Mapping[str, Method],
    seed: tuple[int, ...],
) -> dict[str, MethodCredit]:
    """Each method's own group for the problem, painted as if it were the whole batch."""
    found = {}
    for name, method in methods.items():
        [group] = method.sample(learner, task, [problem], seed)
        found[name] = MethodCredit(
            group.rollouts, realised_credit(learner, group, method)["credit"]
        )
    return found


def comparable_rollouts(found: Mapping[str, MethodCredit]) -> dict[str, MethodCredit]:
    """Few enough to draw: of each method one right and one wrong attempt, the same ones for all
    where they have them, and one of those that the policy did not write alone: a right one where
    there is one, with the most credit.
    """
    shared = _common([way.rollouts for way in found.values()])
    return {name: _take(way, shared) for name, way in found.items()}


def _common(groups: list[tuple[Rollout, ...]]) -> list[tuple[int, ...]]:
    """A right and a wrong attempt that most methods have, by their token ids."""
    counts: dict[tuple[bool, tuple[int, ...]], int] = {}
    for group in groups:
        for key in {(r.verdict.correct, r.completion_ids) for r in group if r.origin == "policy"}:
            counts[key] = counts.get(key, 0) + 1
    best = (
        max((key for key in counts if key[0] == right), key=counts.get, default=None)
        for right in (True, False)
    )
    return [key[1] for key in best if key is not None]


def _take(way: MethodCredit, shared: list[tuple[int, ...]]) -> MethodCredit:
    ids = [r.completion_ids for r in way.rollouts]
    own = [ids.index(wanted) for wanted in shared if wanted in ids]
    added = [i for i, r in enumerate(way.rollouts) if r.origin != "policy"]
    extra = (
        [
            max(
                added,
                key=lambda i: (
                    way.rollouts[i].verdict.correct,
                    float(np.abs(np.nan_to_num(way.credit[i])).sum()),
                ),
            )
        ]
        if added
        else []
    )
    kept = [*own, *extra]
    return MethodCredit(tuple(way.rollouts[i] for i in kept), tuple(way.credit[i] for i in kept))


def group_of(problem: Problem, way: MethodCredit) -> Group:
    return Group(problem, way.rollouts)


@torch.no_grad()
def realised_credit(
    learner: Learner | FrozenLearner, group: Group, method: Method
) -> dict[str, tuple[np.ndarray, ...]]:
    """``credit`` (realised) and the non-zero channels of ``method`` on a group taken as the whole
    batch; NaN on a rollout that it leaves out.
    """
    found = {id(r): {} for r in group.rollouts}
    for batch in collate(
        method.credit([group], learner), learner.policy.pad_id, ROWS, learner.policy.device
    ):
        loss = method.loss(score(learner, batch, method), batch)
        for credit, row in zip(batch.credits, loss.credit.cpu().numpy()):
            numbers = {
                "credit": row[: len(credit.rollout.completion_ids)],
                **{name: getattr(credit, name) for name in CHANNELS},
            }
            found.setdefault(id(credit.rollout), {}).update(numbers)
    used = [
        "credit",
        *(name for name in CHANNELS if any(np.any(row.get(name, 0)) for row in found.values())),
    ]
    return {
        name: tuple(
            np.asarray(found[id(r)].get(name, np.full(len(r.completion_ids), np.nan)))
            for r in group.rollouts
        )
        for name in used
    }
