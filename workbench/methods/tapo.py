r"""TAPO: learning from micro-reflective trajectories that the policy composes itself.

arXiv 2606.18844 (eqs. 1 to 8, algorithm 1)

    eligible  |P| >= n_pos and |N| >= n_neg; up to m_max of N are rewritten, each        Eq. 3
              with its own y+ ~ Uniform(P)
    y_ref     what the policy writes from (x, y-, y+): y- through its first mistake,
              "Wait, ...", the correction. Wrong ones stay as negatives.
    A_orig    (r - mean) / (std + eps) over the K rollouts only; A_ref the same over     Eqs. 1, 4,
              this query's reconstructions only. |G_ref| = 1: A_ref = r                  5
    w_t       clamp(exp(log pi(y_t | x, y_<t) + H_t), 0.01, 10), no gradient, on         Eqs. 7, 8
              reconstructions only
    L         L_GRPO(G_orig) + lam L_ref                                                 Eq. 6
    L_ref     - mean_t w_t min(rho_t A_ref, clip(rho_t, 1 - eps, 1 + eps) A_ref)

Everything about y_ref is conditioned on the plain x, never on the synthesis prompt. Realised
credit, where the clip lets it pass, with N_orig tokens in the K rollouts of all problems, N in all
completions, T in this y_ref (N is the drawing's: it makes the mean of a picture the gradient's):

    of a token of the K rollouts    rho_t A_orig N / N_orig
    of a token of y_ref             w_t rho_t A_ref lam N / (T |G_ref| Q)

The mean in L_ref is over tokens, over the query's G_ref, over all Q queries of the step (0 where
there is none). So a token counts lam / (T |G_ref| Q), which ``credit`` computes from all groups of
the step and each credit carries as its ``weight``: micro-batches add up to the batch, and without
reconstructions loss and gradient are GRPO's (tokens and sequences are those of the K rollouts
only).

Differs from the paper, or is not said there:
- the mean above; L_GRPO has GRPO's own options (DAPO's token mean by default);
- y_ref is tokenised from its text, so its copied beginning may differ in tokens (not in words) from
  y-; it is not masked (as in the paper);
- w_t is that of the current weights; at the first update those are pi_old's. No KL term: beta must
  be 0;
- ``prefix``: "masked" (no credit on the beginning shared with its y-), "spliced" (y-
  verbatim through the failure point), "none" (a whole new solution from y+);
- ``reference`` False withholds y+; ``dae`` False is one merged advantage group, all else unchanged;
  ``ots`` as named; ``m_max`` 1 is |G_ref| = 1 everywhere;
- ``sft`` imitates the correct reconstructions instead (nll, same mean) beside GRPO, and
  workbench/training/cold_start.py without it;
- ``negatives`` False drops wrong reconstructions before A_ref: the rewards left are equal, so only
  a single one teaches.
The control with about as many generated tokens is GRPO with a larger k: measure TAPO's
(``generated``), at most half as many again. Corrections composed by hand join a G_ref through
workbench/corrections/replay.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Literal

import numpy as np
import torch

from workbench.core import (
    FROM_TASK,
    Batch,
    Credit,
    Group,
    Loss,
    Method,
    Rollout,
    Scores,
    length_constant,
    refuse_if,
)
from workbench.methods.grpo import GRPO
from workbench.options import check_choices
from workbench.rollouts.reconstructions import (
    Pair,
    construct,
    copied,
    eligible,
    extend,
    measure,
    pairs,
    split,
)
from workbench.rollouts.sampling import sample_groups

CURES = {  # what may be near zero, and what then helps
    "eligible": "few problems of a step are eligible: take problems that the policy solves about "
    "one time in three",
    "parse_rate": "few of its reconstructions can be read (dropped_* say why): teach the policy "
    "the format first, workbench cold-start",
    "ref_correct": "few of its reconstructions end right: the policy cannot use the correct "
    "response: workbench cold-start",
}


def suppression(logp: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
    """Eqs. 7 and 8: w = clamp(exp(log p + H), 0.01, 10), without gradient.

    With two outcomes: p = .9 -> 1.25, .5 -> 1, .3 -> .55, .1 -> .14, .01 -> .011.
    """
    return (logp + entropy).detach().exp().clamp(0.01, 10.0)


@dataclass(frozen=True)
class TAPO(Method):
    k: int = 8  # rollouts per problem
    scale: Literal["std", "none"] = "std"
    aggregate: Literal["token", "sequence", "constant"] = "token"
    eps_lo: float = 0.2
    eps_hi: float = 0.2
    beta: float = 0.0
    constant: int = FROM_TASK
    n_pos: int = 2
    n_neg: int = 4
    m_max: int = 4  # most reconstructions of a query
    lam: float = 1.0
    prefix: Literal["free", "masked", "spliced", "none"] = "free"
    reference: bool = True
    dae: bool = True  # decoupled advantage estimation
    ots: bool = True  # out-of-distribution token suppression
    negatives: bool = True
    sft: bool = False

    prompt_growth = 2  # the synthesis prompt holds y- and y+

    def __post_init__(self):
        _ = self.grpo  # its own checks
        check_choices(self)
        refuse_if(self.beta, "TAPO has no KL term: beta must be 0")
        refuse_if(
            min(self.n_pos, self.n_neg, self.m_max) < 1 or self.lam < 0,
            "TAPO takes n_pos, n_neg and m_max of 1 or more, and lam of 0 or more",
        )
        refuse_if(
            self.n_pos + self.n_neg > self.k,
            f"no group of k={self.k} rollouts has n_pos={self.n_pos} right and "
            f"n_neg={self.n_neg} wrong ones",
        )

    @property
    def grpo(self) -> GRPO:
        """Its part for the K rollouts."""
        return GRPO(
            self.k,
            self.scale,
            self.aggregate,
            self.eps_lo,
            self.eps_hi,
            self.beta,
            self.constant,
        )

    def sample(self, learner, task, problems, seed) -> list[Group]:
        groups = sample_groups(learner.policy, task, problems, self.k, seed)
        chosen: list[list[Pair]] = []
        for group in groups:
            usable = eligible(group, self.n_pos, self.n_neg)
            chosen.append(pairs(group, self.m_max, seed) if usable else [])
        how = {"prefix": self.prefix, "reference": self.reference}
        written = iter(
            construct(learner.policy, task, list(chain.from_iterable(chosen)), seed, **how)
        )
        return [
            extend(group, list(islice(written, len(of_group))), self.takes_wrong)
            for group, of_group in zip(groups, chosen)
        ]

    @property
    def takes_wrong(self) -> bool:
        return self.negatives and not self.sft

    def credit(self, groups, learner) -> list[Credit]:
        rollouts = [rollout for group in groups for rollout in split(group)[0]]
        tokens = sum(len(rollout.completion_ids) for rollout in rollouts)
        credits = []
        for group in groups:
            for rollout, advantage in zip(group.rollouts, self.advantages(group)):
                length = len(rollout.completion_ids)
                if rollout.origin == "policy":
                    weight = {
                        "token": 1 / tokens,
                        "sequence": 1 / (length * len(rollouts)),
                        "constant": 1 / (length_constant(self.constant) * len(rollouts)),
                    }[self.aggregate]
                    credits.append(Credit.of(rollout, pg=advantage, weight=weight))
                    continue
                start = copied(rollout, group) if self.prefix == "masked" else 0
                learned = np.arange(length) >= start
                terms = len(split(group)[1]) * len(groups)  # |G_ref| Q
                weight = self.lam / (max(1, learned.sum()) * terms)
                channel = {"nll": learned} if self.sft else {"pg": advantage * learned}
                credits.append(Credit.of(rollout, weight=weight, **channel))
        return credits

    def advantages(self, group: Group) -> list[float]:
        """A_orig of the K rollouts and A_ref of the reconstructions, in rollout order."""
        if not self.dae:
            return self.grpo.advantages(group)
        by_rollouts, reconstructions = split(group)
        alone = self._among(group, by_rollouts)
        if len(reconstructions) == 1:
            among = [reconstructions[0].verdict.reward]
        else:
            among = self._among(group, reconstructions)
        alone, among = iter(alone), iter(among)
        return [next(alone if r.origin == "policy" else among) for r in group.rollouts]

    def _among(self, group: Group, rollouts: Sequence[Rollout]) -> list[float]:
        return self.grpo.advantages(replace(group, rollouts=rollouts)) if rollouts else []

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        device, weight = batch.mask.device, self.token_weights(batch)
        others = torch.tensor(
            [[c.rollout.origin != "policy"] for c in batch.credits], device=device
        )
        suppressed, metrics = batch.channels["pg"], {}
        if others.any():
            w = suppression(scores.logp, scores.entropy)
            share = 1 / batch.denominators["others"]
            metrics["ots_weight"] = float((w * others.float() * share * batch.mask).sum())
            if self.ots:
                suppressed = torch.where(others, suppressed * w, suppressed)
        channels = batch.channels | {"pg": suppressed}
        loss = self.grpo.weighted_loss(scores, replace(batch, channels=channels), weight)
        nll = batch.channels["nll"] * weight
        imitation = -scores.logp * nll
        return Loss(
            loss.value + imitation.sum(),
            loss.per_token + imitation.detach(),
            loss.credit + nll * batch.denominators["tokens"],
            {**loss.metrics, **metrics},
        )

    def token_weights(self, batch: Batch) -> torch.Tensor:
        """[B, T] what each token counts in the loss."""
        weights = [[credit.weight] for credit in batch.credits]
        return batch.mask * torch.tensor(weights, dtype=torch.float32, device=batch.mask.device)

    def diagnose(self, groups, credits) -> dict[str, float]:
        """``reconstructions.measure``, and a warning where there is next to nothing to measure.

        The mean of w, ``ots_weight``, comes with the loss: well under 1, the reconstructions are
        far from what the policy would write.
        """
        metrics = measure(groups, self.n_pos, self.n_neg)
        tried = sum(group.notes.get("pairs", 0) for group in groups)
        enough = {
            "eligible": len(groups) >= 8,
            "parse_rate": tried >= 4,
            "ref_correct": metrics["corrections"] >= 8,
        }
        for name, cure in CURES.items():
            # the same words each time: Python shows them once
            if enough[name] and metrics[name] < 0.05:
                warnings.warn(f"TAPO does little more than GRPO here, {cure}", stacklevel=2)
        return metrics
