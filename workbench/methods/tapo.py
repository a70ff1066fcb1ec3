r"""TAPO: learning from micro-reflective trajectories that the policy composes itself.   arXiv 2606.18844 (eqs. 1 to 8, algorithm 1)

    eligible   |P| >= n_pos and |N| >= n_neg;  up to m_max of N are rewritten, each with its own y+
               ~ Uniform(P)                        Eq. 3
    y_ref      what the policy writes from (x, y-, y+): y- through its first mistake, "Wait, ...",
               the correction. Wrong ones stay as negatives.
    A_orig     (r - mean) / (std + eps) over the K rollouts only;    A_ref the same over this
               query's reconstructions only        Eqs. 1, 4, 5
               |G_ref| = 1: A_ref = r
    w_t        clamp(exp(log pi(y_t | x, y_<t) + H_t), 0.01, 10), no gradient, on reconstructions
               only                                Eqs. 7, 8
    L          L_GRPO(G_orig) + lam L_ref,      L_ref = - mean w_t min(rho_t A_ref, clip(rho_t, 1 -
               eps, 1 + eps) A_ref)                Eq. 6

Everything about y_ref is conditioned on the plain x, never on the synthesis prompt. Realised
credit, where the clip lets it pass: of a token of the K rollouts rho_t A_orig N / N_orig, of one of
y_ref w_t rho_t A_ref lam N / (T |G_ref| Q), with N_orig tokens in the K rollouts of all problems, N
in all completions, T in this y_ref. (N is the drawing's: it makes the mean of a picture the
gradient's.)

The mean in L_ref is over tokens, over the query's G_ref, over all Q queries of the step (0 where
there is none). So a token counts lam / (T |G_ref| Q), which ``credit`` computes from all groups of
the step and each rollout carries as its ``weight``: micro-batches add up to the batch, and without
reconstructions loss and gradient are GRPO's (tokens and sequences are those of the K rollouts
only).

Differs from the paper, or is not said there:
- the mean above; L_GRPO has GRPO's own options (DAPO's token mean by default);
- y_ref is tokenised from its text, so its copied beginning may differ in tokens (not in words) from
  y-; it is not masked (as in the paper);
- w_t is that of the current weights; at the first update those are pi_old's. No KL term: beta must
  be 0;
- ``prefix``: "masked" (no credit on the beginning shared with a wrong rollout), "spliced" (y-
  verbatim through the failure point), "none" (a whole
  new solution from y+); ``reference`` False withholds y+; ``dae`` False is one merged advantage
  group, all else unchanged; ``sft`` imitates the correct reconstructions instead (nll, same mean)
  beside GRPO, and workbench/training/cold_start.py without it; ``ots`` as named; ``m_max`` 1 is
  |G_ref| = 1 everywhere; ``negatives`` False drops wrong reconstructions before A_ref: the rewards
  left are equal, so only a single one teaches;
- ``buffer``: a file of corrections composed by hand (workbench/corrections/buffer.py). Its problems
  take the place of up to a quarter of the step's, and its
  corrections join their G_ref, eligible or not; they stay marked by their origin and as borrowed.
The control with about as many generated tokens is GRPO with a larger k: measure TAPO's
(``generated``), at most half as many again.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from workbench.core import Batch, Credit, Group, Loss, Scores, WorkbenchError
from workbench.methods.grpo import GRPO
from workbench.rollouts.reconstructions import (
    PREFIXES,
    construct,
    copied,
    eligible,
    extend,
    from_buffer,
    measure,
    pairs,
    split,
)

CURES = {  # what may be near zero, and what then helps
    "eligible": "few problems of a step are eligible: take problems that the policy solves about "
    "one time in three",
    "parse_rate": "few of its reconstructions can be read (dropped_* say why): teach the policy the "
    "format first, python -m workbench.training.cold_start",
    "ref_correct": "few of its reconstructions end right: the policy cannot use the correct response: "
    "python -m workbench.training.cold_start",
}


@dataclass(frozen=True)
class Weighed(Credit):
    """``weight``: what each token counts in the loss.

    ``share``: what it counts in the mean of w; 0 for the policy's own rollouts.
    """

    weight: float = 0.0
    share: float = 0.0


def suppression(logp: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
    """Eqs. 7 and 8: w = clamp(exp(log p + H), 0.01, 10), without gradient. With two
    outcomes: p = .9 -> 1.25, .5 -> 1, .3 -> .55, .1 -> .14, .01 -> .011."""
    return (logp + entropy).detach().exp().clamp(0.01, 10.0)


@dataclass(frozen=True)
class TAPO(GRPO):
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
    buffer: str = ""

    prompt_growth = 2  # the synthesis prompt holds y- and y+

    def __post_init__(self):
        super().__post_init__()
        if self.prefix not in PREFIXES:
            raise WorkbenchError(f"TAPO takes prefix={'|'.join(PREFIXES)}")
        if self.beta:
            raise WorkbenchError("TAPO has no KL term: beta must be 0")
        if min(self.n_pos, self.n_neg, self.m_max) < 1 or self.lam < 0:
            raise WorkbenchError(
                "TAPO takes n_pos, n_neg and m_max of 1 or more, and lam of 0 or more"
            )
        if self.n_pos + self.n_neg > self.k:
            raise WorkbenchError(
                f"no group of k={self.k} rollouts has n_pos={self.n_pos} right and "
                f"n_neg={self.n_neg} wrong ones"
            )

    @property
    def takes_wrong(self) -> bool:
        return self.negatives and not self.sft

    def sample(self, learner, task, problems, seed) -> list[Group]:
        composed = (
            from_buffer(self.buffer, learner.policy, len(problems) // 4 or 1, seed)
            if self.buffer
            else {}
        )
        problems = [
            *(g.problem for g in composed.values()),
            *(p for p in problems if p.id not in composed),
        ][: len(problems)]
        groups = super().sample(learner, task, problems, seed)
        chosen = [
            pair
            for g in groups
            if eligible(g, self.n_pos, self.n_neg)
            for pair in pairs(g, self.m_max, seed)
        ]
        made = construct(
            learner.policy, task, chosen, seed, prefix=self.prefix, reference=self.reference
        )
        return [
            extend(
                g,
                [m for m in made if m.pair.problem.id == g.problem.id],
                composed.get(g.problem.id),
                self.takes_wrong,
            )
            for g in groups
        ]

    def credit(self, groups, learner) -> list[Credit]:
        own, ref = ([len(r.completion_ids) for g in groups for r in split(g)[i]] for i in (0, 1))
        painted = []
        for group in groups:
            for credit in self._advantages(group, learner):
                rollout, length = credit.rollout, len(credit.pg)
                if rollout.origin == "policy":
                    weight = {
                        "token": 1 / sum(own),
                        "sequence": 1 / (length * len(own)),
                        "constant": 1 / (self.constant * len(own)),
                    }[self.aggregate]
                    painted.append(
                        Weighed(rollout, credit.pg, credit.nll, credit.kl, weight=weight)
                    )
                    continue
                kept = np.arange(length) >= (
                    copied(rollout, group) if self.prefix == "masked" else 0
                )
                pg, nll = (0.0, kept) if self.sft else (credit.pg * kept, 0.0)
                weight = self.lam / (max(1, kept.sum()) * len(split(group)[1]) * len(groups))
                painted.append(
                    replace(Weighed.of(rollout, pg=pg, nll=nll), weight=weight, share=1 / sum(ref))
                )
        return painted

    def _advantages(self, group: Group, learner) -> list[Credit]:
        own, ref = split(group)
        if not self.dae:
            return super().credit([group], learner)
        credits = super().credit([replace(group, rollouts=own)], learner) if own else []
        if len(ref) == 1:
            return [*credits, Credit.of(ref[0], pg=ref[0].verdict.reward)]
        return credits + (super().credit([replace(group, rollouts=ref)], learner) if ref else [])

    def weights(self, batch: Batch) -> torch.Tensor:
        """[B, T] what each token counts in the loss."""
        return batch.mask * self._column(batch, "weight")

    @staticmethod
    def _column(batch: Batch, name: str) -> torch.Tensor:
        return torch.tensor(
            [[getattr(credit, name)] for credit in batch.credits],
            dtype=torch.float32,
            device=batch.mask.device,
        )

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        share, w = self._column(batch, "share"), suppression(scores.logp, scores.entropy)
        pg, nll = batch.channels["pg"], batch.channels["nll"] * self.weights(batch)
        suppressed = torch.where(share > 0, pg * w, pg) if self.ots else pg
        loss = super().loss(scores, replace(batch, channels={**batch.channels, "pg": suppressed}))
        imitation = -scores.logp * nll
        metrics = {
            **loss.metrics,
            **({"ots_weight": float((w * share * batch.mask).sum())} if share.any() else {}),
        }
        return Loss(
            loss.value + imitation.sum(),
            loss.per_token + imitation.detach(),
            loss.credit + nll * batch.denominators["tokens"],
            metrics,
        )

    def diagnose(self, groups, credits) -> dict[str, float]:
        """``synthesis.measure``, and a warning where there is next to nothing to measure.

        The mean of w, ``ots_weight``, comes with the loss: well under 1, the reconstructions are
        far from what the policy would write.
        """
        found = measure(groups, self.n_pos, self.n_neg)
        tried = sum(group.notes.get("pairs", 0) for group in groups)
        enough = {
            "eligible": len(groups) >= 8,
            "parse_rate": tried >= 4,
            "ref_correct": found["corrections"] >= 8,
        }
        for name, cure in CURES.items():
            # the same words each time: Python shows them once
            if enough[name] and found[name] < 0.05:
                warnings.warn(f"TAPO does little more than GRPO here, {cure}", stacklevel=2)
        return found
