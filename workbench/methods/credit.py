r"""CREDIT: contrastive reward from distillation.

arXiv 2605.11613

    A_t = Delta_t - lam mean over other problems x' of log q(y_t | reprompt(x', hint), y_<t)

with Delta_t and the hint as in rlsd.py: what the hint makes likely whatever the question is gets
less. Realised credit: A_t; no reward enters but through the hint. A rollout without a hint has 0.

The abstract of the paper was read, not the whole text. Our reading: the sum above; of the batch the
``others`` problems that come next are taken, in a circle, so a batch of one problem has no
baseline. lam is ours too, and the whole baseline (1) is much: under another problem each digit is
unlikely, so on the organism the baseline is over three times the size of Delta_t and the credit
above 0 on 95 of 100 tokens, right or wrong. With lam = 0 it is SDPO's in token form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from workbench.core import Group
from workbench.methods.rlsd import RLSD, rescored
from workbench.methods.sdpo import SDPO, WEIGHTS, teacher_prompt


@dataclass(frozen=True)
class CREDIT(RLSD):
    lam: float = 1.0  # weight of the baseline
    others: int = 2  # other problems in it

    unread: ClassVar[tuple[str, ...]] = ("eps",)

    def shaped(self, advantage: float, delta: np.ndarray) -> np.ndarray:
        return delta

    def deltas(self, groups: Sequence[Group], learner) -> list[np.ndarray]:
        deltas = super().deltas(groups, learner)
        others = min(self.others, len(groups) - 1)
        if not others:
            return deltas
        baseline = [np.zeros_like(delta) for delta in deltas]
        for ahead in range(1, others + 1):
            for i, logp in self._under_another(groups, learner, ahead):
                baseline[i] += logp / others
        return [delta - self.lam * base for delta, base in zip(deltas, baseline)]

    def _under_another(self, groups: Sequence[Group], learner, ahead: int):
        """(place, [T] log q) of rollouts with a hint, under the problem so many groups on."""
        shower = SDPO(demonstration=self.demonstration)
        rollouts, prompts, places = [], [], []
        place = -1
        for g, group in enumerate(groups):
            other = groups[(g + ahead) % len(groups)].problem
            for i, rollout in enumerate(group.rollouts):
                place += 1
                hint = shower.shown(group, i)
                prompt = teacher_prompt(learner.policy, other, rollout, *hint)
                if prompt is not None:
                    rollouts.append(rollout)
                    prompts.append(prompt)
                    places.append(place)
        return zip(places, rescored(learner, WEIGHTS[self.teacher], rollouts, prompts))
