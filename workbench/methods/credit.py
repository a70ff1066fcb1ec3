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
from workbench.methods.rlsd import RLSD
from workbench.methods.sdpo import SDPO, teacher_prompt


@dataclass(frozen=True)
class CREDIT(RLSD):
    lam: float = 1.0  # weight of the baseline
    others: int = 2  # other problems in it

    unread: ClassVar[tuple[str, ...]] = ("eps",)

    def shaped(self, advantage: float, delta: np.ndarray) -> np.ndarray:
        return delta

    def deltas(self, groups: Sequence[Group], learner) -> list[np.ndarray]:
        hints = self.hints(groups, learner)
        deltas = self.hinted(groups, learner, hints)
        others = min(self.others, len(groups) - 1)
        for ahead in range(1, others + 1):
            baseline = self.read(groups, learner, self._elsewhere(groups, learner, ahead))
            for i, logp in enumerate(baseline):
                if logp is not None and hints[i] is not None:
                    deltas[i] = deltas[i] - self.lam * logp / others
        return deltas

    def _elsewhere(
        self, groups: Sequence[Group], learner, ahead: int
    ) -> list[tuple[int, ...] | None]:
        """Each rollout's hint under the question so many groups on."""
        shower, prompts = SDPO(demonstration=self.demonstration), []
        for group, other in zip(groups, [*groups[ahead:], *groups[:ahead]]):
            for i, rollout in enumerate(group.rollouts):
                hint = shower.shown(group, i)
                prompts.append(teacher_prompt(learner.policy, other.problem, rollout, *hint))
        return prompts
