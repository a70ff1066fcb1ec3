r"""CAST: clipped asymmetric self-teaching with advantage flipping.

arXiv 2606.00172

    g_t   = clip(lam Delta_t, -c, c)
    A_t   = A + min(g_t, 0)              in a right rollout: may fall below 0
          = A + clip(g_t, 0, |A| + bound)    in a wrong one: above 0 by at most ``bound``
    A     = GRPO's, or of a group without contrast +base (all right) or -base (all wrong)

with Delta_t as in rlsd.py. Realised credit: A_t.

The abstract of the paper was read, not the whole text: both flips, that the positive one is
bounded, and the base of groups without contrast are the paper's; the sum and the numbers are our
reading. The paper's teacher has no hint (demonstration=none: the teacher's weights under the plain
prompt, so Delta = 0 until they differ from the policy's). The default shows SDPO's hint, to compare
one reading with several uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from workbench.core import Group, rollouts_of
from workbench.methods.rlsd import RLSD


@dataclass(frozen=True)
class CAST(RLSD):
    clip: float = 2.0  # largest |lam Delta|
    bound: float = 0.5  # largest A_t above 0 in a wrong rollout
    base: float = 0.1  # |A| of a group without contrast

    unread: ClassVar[tuple[str, ...]] = ("eps",)

    def advantages(self, group: Group) -> list[float]:
        if group.has_contrast:
            return super().advantages(group)
        return [self.base if r.verdict.correct else -self.base for r in group.rollouts]

    def shaped(self, advantage: float, delta: np.ndarray) -> np.ndarray:
        gap = (self.lam * delta).clip(-self.clip, self.clip)
        if advantage > 0:
            return advantage + np.minimum(gap, 0)
        return advantage + gap.clip(0, -advantage + self.bound)

    def hints(self, groups: Sequence[Group], learner) -> list[tuple[int, ...] | None]:
        if self.demonstration == "none":
            return [rollout.prompt_ids for rollout in rollouts_of(groups)]
        return super().hints(groups, learner)
