r"""RLSD: reinforcement learning from verifiable rewards with self-distillation.

arXiv 2604.03128; and what three others read in the same number (rlcsd.py, rlrt.py, cast.py)

    Delta_t = log q(y_t | reprompt(x, hint), y_<t) - log pi(y_t | x, y_<t)      q: the self-teacher
    A_t     = A [(1 - lam) + lam clip(exp(sign(A) Delta_t), 1 - eps, 1 + eps)]  A: GRPO's
    L       = GRPO's loss with A_t in the place of A

The verifier says in which direction a token goes, the teacher only how far. Realised credit: A_t
(on the first update of a batch). A rollout without a hint has Delta = 0: GRPO.

The formula is taken from a summary of the paper; its full text was not read here. Our reading: the
hint is SDPO's, another right rollout or else the feedback on this one (the paper's is the reference
answer: demonstration=reference); lam stays where it is (paper: from .5 to 0 over the first 50
steps, so GRPO after that); Delta is read once a batch, when it is credited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from workbench.core import (
    Batch,
    Credit,
    Distil,
    Group,
    Loss,
    Method,
    Rollout,
    Scores,
    refuse_if,
    rollouts_of,
)
from workbench.methods.grpo import GRPO
from workbench.methods.sdpo import SDPO, WEIGHTS, Demonstration, Teacher
from workbench.model.batch import rescore
from workbench.options import check_choices
from workbench.rollouts.sampling import sample_groups


@dataclass(frozen=True)
class RLSD(Method):
    k: int = 8  # rollouts per problem
    lam: float = 0.5  # the teacher's share
    eps: float = 0.2  # how far it may change a token's size
    teacher: Teacher = "ema"
    demonstration: Demonstration = "sibling"

    teacher_prompt_growth = 1  # the demonstration
    unread: ClassVar[tuple[str, ...]] = ()  # options that its formula has no place for

    def __post_init__(self):
        check_choices(self)
        for name in self.unread:  # kept for recorded options, which hold the default
            refuse_if(
                getattr(self, name) != getattr(type(self), name),
                f"{type(self).__name__} does not read {name}: leave it out",
            )
        refuse_if(
            self.k < 2 or not (0 <= self.lam <= 1 and self.eps >= 0) or self.teacher == "mixed",
            f"{type(self).__name__} takes k of 2 or more, lam from 0 to 1, eps of 0 or more, "
            "and teacher ema, frozen or live",
        )

    @property
    def distil(self) -> Distil:
        # its credits have no teacher's prompt, so nothing is compared: for the teacher's weights
        return Distil(teacher=WEIGHTS[self.teacher])

    def sample(self, learner, task, problems, seed) -> list[Group]:
        return sample_groups(learner.policy, task, problems, self.k, seed)

    def credit(self, groups, learner) -> list[Credit]:
        rollouts = rollouts_of(groups)
        advantages = [a for group in groups for a in self.advantages(group)]
        deltas = self.deltas(groups, learner)
        shaped = map(self.shaped, advantages, deltas)
        return [Credit.of(rollout, pg=pg) for rollout, pg in zip(rollouts, shaped)]

    def advantages(self, group: Group) -> list[float]:
        return GRPO().advantages(group)

    def shaped(self, advantage: float, delta: np.ndarray) -> np.ndarray:
        """[T] A_t of one rollout."""
        factor = np.exp(np.sign(advantage) * delta).clip(1 - self.eps, 1 + self.eps)
        return advantage * (1 - self.lam + self.lam * factor)

    def deltas(self, groups: Sequence[Group], learner) -> list[np.ndarray]:
        """[T] Delta of each rollout, 0 without a hint."""
        return self.hinted(groups, learner, self.hints(groups, learner))

    def hints(self, groups: Sequence[Group], learner) -> list[tuple[int, ...] | None]:
        """The teacher's prompt for each rollout."""
        credits = SDPO(demonstration=self.demonstration).credit(groups, learner)
        return [credit.teacher_prompt_ids for credit in credits]

    def hinted(
        self, groups: Sequence[Group], learner, prompts: Sequence[tuple[int, ...] | None]
    ) -> list[np.ndarray]:
        """[T] log q - log pi of each rollout with q under its prompt; 0 where there is none."""
        rollouts = rollouts_of(groups)
        student = rescored(learner, "policy", rollouts, [r.prompt_ids for r in rollouts])
        taught = self.read(groups, learner, prompts)
        return [np.zeros_like(p) if q is None else q - p for p, q in zip(student, taught)]

    def read(
        self, groups: Sequence[Group], learner, prompts: Sequence[tuple[int, ...] | None]
    ) -> list[np.ndarray | None]:
        """[T] log q of each rollout under its prompt; None where there is none."""
        asked = [(r, prompt) for r, prompt in zip(rollouts_of(groups), prompts) if prompt]
        rows = [r for r, _ in asked], [prompt for _, prompt in asked]
        scored = iter(rescored(learner, WEIGHTS[self.teacher], *rows))
        return [next(scored) if prompt else None for prompt in prompts]

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        return GRPO().loss(scores, batch)


@torch.no_grad()
def rescored(
    learner, weights: str, rollouts: Sequence[Rollout], prompts: Sequence[tuple[int, ...]]
) -> list[np.ndarray]:
    """[T] log-probs (nats) of each completion under another prompt, by one set of weights."""
    pairs = zip(rollouts, prompts, strict=True)
    moved = [replace(rollout, prompt_ids=prompt) for rollout, prompt in pairs]
    with learner.weights(weights) as policy:
        return [logp for logp, _ in rescore(policy, moved)]
