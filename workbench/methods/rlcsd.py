r"""RLCSD: reinforcement learning with contrastive on-policy self-distillation.

arXiv 2606.11709

    Delta_t = log q(y_t | right hint) - log mean_k q(y_t | wrong hint k)     q: the self-teacher
    r_t     = lam tanh(Delta_t / tau), or 0 where that is no more than ``least``
    A_t     = A + r_t, never past 0: the verifier keeps the sign; 0 where A is    A: GRPO's

What any hint does to the style cancels. Hints are other rollouts of the group, right and wrong, in
the same place of SDPO's prompt; a rollout that lacks either has Delta = 0. Realised credit: A_t.

A summary of the paper has Delta_t of one wrong hint, "then as RLSD". The authors' description of
their method adds a bounded step instead; the numbers are those of a port of their loss to another
framework, and the paper's text was not read. RLSD's ``eps`` has no place here and is refused. Our
choice: ``wrong``, and one mean over all tokens in the loss, where theirs takes one over the tokens
that r changes and one over the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

import numpy as np

from workbench.core import Group, coordinates, refuse_if, rollouts_of
from workbench.methods.rlsd import RLSD
from workbench.methods.sdpo import teacher_prompt


@dataclass(frozen=True)
class RLCSD(RLSD):
    tau: float = 0.02  # nats of Delta that count as much
    least: float = 0.02  # smallest |r| that changes a token
    wrong: int = 3  # wrong hints at most

    unread: ClassVar[tuple[str, ...]] = ("eps",)

    def __post_init__(self):
        super().__post_init__()
        refuse_if(
            not (self.tau > 0 and self.least >= 0 and self.wrong >= 1),
            "RLCSD takes tau above 0, least of 0 or more, and one wrong hint or more",
        )

    def shaped(self, advantage: float, delta: np.ndarray) -> np.ndarray:
        residual = self.lam * np.tanh(delta / self.tau)
        residual[np.abs(residual) <= self.least] = 0
        sign = np.sign(advantage)
        return sign * np.maximum(sign * (advantage + residual), 0)

    def deltas(self, groups: Sequence[Group], learner) -> list[np.ndarray]:
        by_right = self.read(groups, learner, self.hints(groups, learner))
        prompts = [self._wrong_hints(groups, learner, draw) for draw in range(self.wrong)]
        by_wrong = zip(*(self.read(groups, learner, each) for each in prompts))
        deltas = []
        for rollout, right, wrong in zip(rollouts_of(groups), by_right, by_wrong):
            shown = [logp for logp in wrong if logp is not None]
            if right is None or not shown:
                deltas.append(np.zeros(len(rollout.completion_ids), np.float32))
            else:
                deltas.append(right - np.logaddexp.reduce(shown) + np.log(len(shown)))
        return deltas

    def _wrong_hints(
        self, groups: Sequence[Group], learner, draw: int
    ) -> list[tuple[int, ...] | None]:
        """The ``draw``-th of each rollout's wrong siblings in an order of chance, as a prompt."""
        prompts = []
        for group in groups:
            wrong = [(j, r.text) for j, r in enumerate(group.rollouts) if not r.verdict.correct]
            for i, rollout in enumerate(group.rollouts):
                texts = [text for j, text in wrong if j != i]
                Random(coordinates("wrong hint", group.problem.id, i, *texts)).shuffle(texts)
                text = texts[draw] if draw < len(texts) else ""
                prompt = teacher_prompt(learner.policy, group.problem, rollout, text, "")
                prompts.append(prompt if text else None)
        return prompts
