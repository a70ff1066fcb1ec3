r"""RLRT: the self-teacher's signal read in reverse.

arXiv 2605.10781

    A_t = A [(1 - lam) + lam clip(exp(-Delta_t), 1, 1 + eps)]   in right rollouts; A in wrong ones

with A and Delta_t as in rlsd.py. Where a rollout that was right took a token that the hinted
teacher would not have, the policy's own way succeeded: more of it. Realised credit: A_t.

The abstract of the paper was read, not the whole text: that right rollouts alone are shaped, and
that tokens with -Delta > 0 get more, is the paper's; the exponential and its clip are RLSD's form,
our reading.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.methods.rlsd import RLSD


@dataclass(frozen=True)
class RLRT(RLSD):
    def shaped(self, advantage: float, delta: np.ndarray) -> np.ndarray:
        if advantage <= 0:
            return np.full_like(delta, advantage)
        factor = np.exp(-delta).clip(1, 1 + self.eps)
        return advantage * (1 - self.lam + self.lam * factor)
