r"""RLCSD: reinforcement learning with contrastive on-policy self-distillation.

arXiv 2606.11709

    Delta_t = log q(y_t | reprompt(x, right), y_<t) - log q(y_t | reprompt(x, wrong), y_<t)

in the place of RLSD's Delta_t (rlsd.py), ``wrong`` another rollout of the group that was wrong:
what any hint does to the style cancels. Realised credit: RLSD's A_t with this Delta.

The abstract of the paper was read, and an account of its contrast; not the whole text. Our reading:
both hints stand in the same place of SDPO's prompt; a rollout that lacks either has Delta = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from workbench.core import Group, coordinates
from workbench.methods.rlsd import RLSD
from workbench.methods.sdpo import teacher_prompt


@dataclass(frozen=True)
class RLCSD(RLSD):
    def deltas(self, groups: Sequence[Group], learner) -> list[np.ndarray]:
        right, wrong = self.hints(groups, learner), self._wrong_hints(groups, learner)
        pairs = zip(self.hinted(groups, learner, right), self.hinted(groups, learner, wrong))
        both = [r is not None and w is not None for r, w in zip(right, wrong)]
        return [float(contrast) * (good - bad) for contrast, (good, bad) in zip(both, pairs)]

    def _wrong_hints(self, groups: Sequence[Group], learner) -> list[tuple[int, ...] | None]:
        prompts = []
        for group in groups:
            wrong = [(j, r.text) for j, r in enumerate(group.rollouts) if not r.verdict.correct]
            for i, rollout in enumerate(group.rollouts):
                texts = [text for j, text in wrong if j != i]
                draw = Random(coordinates("wrong hint", group.problem.id, i, *texts))
                text = draw.choice(texts) if texts else ""
                prompts.append(teacher_prompt(learner.policy, group.problem, rollout, text, ""))
        return prompts
