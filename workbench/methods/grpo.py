r"""GRPO: group-relative policy optimisation.

arXiv 2402.03300 (DeepSeekMath, eqs. 3 and 21), 2503.20783 (Dr.GRPO), 2503.14476 (DAPO)

    A_i    = (r_i - mean_G r) / (std_G r + eps)      population std; Dr.GRPO: no division
    L      = - mean_t min(rho_t A_i, clip(rho_t, 1 - eps_lo, 1 + eps_hi) A_i) + beta k3(pi, pi_ref)
    rho_t  = pi(y_t) / pi_old(y_t)
    k3     = pi_ref/pi - 1 - log(pi_ref/pi)

Realised credit of a token: rho_t A_i where the clip lets the gradient pass, 0 where it does not;
plus beta (pi_ref/pi - 1) from k3. A group whose rewards are all equal has A = 0: no gradient, loss
0. Its tokens still count in the mean (as in DAPO's released code and TRL).

Differs from the papers:
- the first update on a batch has rho = 1 exactly (pi_old is the policy itself), so the sampler's
  rounding never enters the ratio;
- the default mean is DAPO's, over all tokens of the batch; DeepSeekMath's is
  ``aggregate="sequence"``, Dr.GRPO's ``"constant"``;
- beta is 0 by default, as in DAPO and Dr.GRPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from workbench.core import (
    FROM_TASK,
    Batch,
    Credit,
    Group,
    Loss,
    Method,
    Scores,
    length_constant,
    refuse_if,
)
from workbench.losses import clipped, excess, k3, ratio, standardize
from workbench.options import check_choices
from workbench.rollouts.sampling import sample_groups


@dataclass(frozen=True)
class GRPO(Method):
    k: int = 8  # rollouts per problem, the paper's G
    scale: Literal["std", "none"] = "std"
    aggregate: Literal["token", "sequence", "constant"] = "token"
    eps_lo: float = 0.2
    eps_hi: float = 0.2
    beta: float = 0.0  # weight of the KL to the frozen reference
    # Dr.GRPO's length to divide by, with aggregate="constant"; -1: the longest that the task allows
    constant: int = FROM_TASK

    def __post_init__(self):
        refuse_if(
            self.k < 2, f"GRPO compares the rollouts of a group: k must be 2 or more, not {self.k}"
        )
        check_choices(self)
        refuse_if(
            not (
                0 <= self.eps_lo <= 1
                and self.eps_hi >= 0
                and self.beta >= 0
                and length_constant(self.constant) >= 1
            ),
            "GRPO takes eps_lo from 0 to 1, eps_hi and beta of 0 or more, and constant "
            "of 1 or more (-1: the task's max_new)",
        )

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0

    def sample(self, learner, task, problems, seed) -> list[Group]:
        return sample_groups(learner.policy, task, problems, self.k, seed)

    def credit(self, groups, learner) -> list[Credit]:
        credits = []
        for group in groups:
            for rollout, advantage in zip(group.rollouts, self.advantages(group)):
                credits.append(Credit.of(rollout, pg=advantage))
        return credits

    def advantages(self, group: Group) -> list[float]:
        """[K] A_i. Without contrast exactly 0, not the rounding of r - mean(r) over eps."""
        if not group.has_contrast:
            return [0.0] * len(group.rollouts)
        return standardize(torch.tensor(group.rewards), self.scale).tolist()

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        return self.weighted_loss(scores, batch, self.token_weights(batch))

    def weighted_loss(self, scores: Scores, batch: Batch, weight: torch.Tensor) -> Loss:
        """The objective with ``weight`` [B, T], what each token counts.

        Metrics, means over the tokens of the batch, whatever the objective's mean is:

        ratio         rho. 1 on the first update of a batch; later ones move away from it, and far
                      from 1 the clip decides.
        clipped       share of tokens whose gradient the clip holds back: 0 on the first update. Of
                      the last of several (``last_clipped``) a few per cent are healthy; much more
                      means too many or too large updates on one batch.
        kl_reference  nats a token, with beta > 0. Grows from 0 as the policy leaves its reference;
                      a jump is a policy running away.
        """
        old_logp = scores.logp.detach() if batch.old_logp is None else batch.old_logp
        advantage, tokens = batch.channels["pg"], batch.denominators["tokens"]
        objective, credit = clipped(scores.logp, old_logp, advantage, self.eps_lo, self.eps_hi)
        rho = ratio(scores.logp.detach(), old_logp)[batch.mask]
        held_back = (credit == 0) & (advantage != 0) & batch.mask
        metrics = {
            "ratio": float(rho.sum()) / tokens,
            "clipped": float(held_back.sum()) / tokens,
        }
        per_token = -objective
        if self.beta:
            penalty = k3(scores.logp, scores.reference)
            per_token = per_token + self.beta * penalty
            credit = credit + self.beta * excess(scores.logp, scores.reference)
            metrics["kl_reference"] = float(penalty.detach()[batch.mask].sum()) / tokens
        per_token = per_token * weight
        return Loss(per_token.sum(), per_token.detach(), credit * weight * tokens, metrics)

    def token_weights(self, batch: Batch) -> torch.Tensor:
        """[B, T] what each token counts in the mean.

        Over the whole batch they sum to 1 (``constant``: to the mean length over the constant).
        """
        mask = batch.mask.float()
        if self.aggregate == "token":
            return mask / batch.denominators["tokens"]
        if self.aggregate == "sequence":
            return mask / mask.sum(-1, keepdim=True) / batch.sequences
        return mask / (length_constant(self.constant) * batch.sequences)
