r"""SCOPE: signal-calibrated on-policy distillation with dual-path adaptive weighting.   arXiv 2604.10688

    right answers, Omega_c    w_i = PPL_S(y_i)^(+1/tau) / sum_{j in Omega_c} PPL_S(y_j)^(+1/tau)
                              surprising ones up
    wrong answers, Omega_w    w_i = PPL_T(y_i)^(-1/tau) / sum_{j in Omega_w} PPL_T(y_j)^(-1/tau)
                              those the teacher is sure about up
    L = sum_{Omega_c} w_i sum_t -log pi(y_t)  -  sum_{Omega_w} w_i sum_t rho_t Delta_t,      Delta_t
                                              = log q(y_t) - log pi_old(y_t)

PPL(y) = exp(-mean_t log p(y_t)) over the completion, Omega per problem, weights constant. Realised
credit: w_i on a right answer, w_i rho_t Delta_t on a wrong one. No reward term, no baseline, no
clip; a group that is all right has the first term only, one that is all wrong the second.

``normalise`` code (the released one): w_i times the size of its subset, so 1 on average; right
answers over their own tokens, wrong ones over all tokens of the batch. paper: each w_i (1/|y_i|)
sum_t, then the mean over problems. The default weights are the paper's; the released scripts favour
right answers of *low* perplexity (correct=low). Ablations: correct and wrong each high | low |
uniform | off, the perplexity that counts more.

Differs from the paper:
- right answers have -log pi(y_t) in place of -rho_t (as released): the same gradient in the first
  update on a batch;
- the released code has PPO's clip on the wrong path, which does nothing in the first update, the
  only one that its scripts make;
- all log-probs are at temperature 1; the released scripts sample and score the student at 0.6 and
  the teacher at 1;
- the teacher scores only wrong answers, which alone need it; one that it cannot score is left out
  (see opd.py, also for who can be a teacher);
- with "off" a rollout has no credit, but its tokens still count in the token mean of
  ``normalise=code``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from workbench.core import Batch, Credit, Group, Loss, Method, Rollout, Scores, WorkbenchError
from workbench.methods.opd import require_teacher, teacher_logprobs
from workbench.model.batch import rescore
from workbench.rollouts.sampling import sample_groups

POWERS = {"high": 1.0, "low": -1.0, "uniform": 0.0}
Weighting = Literal["high", "low", "uniform", "off"]


@dataclass(frozen=True)
class Weighted(Credit):
    """A credit that remembers its rollout's weight in its subset (they sum to 1) and the perplexity
    that the weight comes from.
    """

    weight: float = 0.0
    perplexity: float = float("nan")


@dataclass(frozen=True)
class SCOPE(Method):
    k: int = 8  # rollouts per problem
    tau: float = 1.0
    normalise: Literal["code", "paper"] = "code"
    correct: Weighting = "high"  # right answers: which student perplexity counts more
    wrong: Weighting = "low"  # wrong answers: which teacher perplexity counts more
    # the learner's expert, or the policy as it was loaded
    teacher: Literal["expert", "reference"] = "expert"

    def __post_init__(self):
        if (
            self.k < 1
            or not self.tau > 0
            or self.normalise not in ("code", "paper")
            or self.teacher not in ("expert", "reference")
        ):
            raise WorkbenchError(
                "SCOPE takes k of 1 or more, tau above 0, normalise=code|paper and "
                "teacher=expert|reference"
            )
        if {self.correct, self.wrong} - {*POWERS, "off"} or self.correct == self.wrong == "off":
            raise WorkbenchError(
                "SCOPE takes correct and wrong of high|low|uniform|off, and not both off"
            )

    @property
    def needs_expert(self) -> bool:
        return self.teacher == "expert"

    def sample(self, learner, task, problems, seed) -> list[Group]:
        require_teacher(learner, self.teacher, "SCOPE")
        return sample_groups(learner.policy, task, problems, self.k, seed)

    def credit(self, groups, learner) -> list[Credit]:
        require_teacher(learner, self.teacher, "SCOPE")
        rollouts = [r for group in groups for r in group.rollouts]
        right = [r for r in rollouts if r.verdict.correct and self.correct != "off"]
        asked = [r for r in rollouts if not r.verdict.correct and self.wrong != "off"]
        student = {
            id(r): logp
            for path in (right, asked)
            for r, (logp, _) in zip(path, rescore(learner.policy, path))
        }
        teacher = {
            id(r): logp for r, logp in zip(asked, teacher_logprobs(learner, asked, self.teacher))
        }
        credits: list[Weighted] = []
        for group in groups:
            right = [r for r in group.rollouts if r.verdict.correct]
            wrong = [
                r
                for r in group.rollouts
                if not r.verdict.correct and teacher.get(id(r), 0) is not None
            ]
            for r, weight, perplexity, scale in self.weigh(right, student, self.correct):
                credits.append(
                    replace(
                        Weighted.of(r, nll=weight * scale), weight=weight, perplexity=perplexity
                    )
                )
            for r, weight, perplexity, scale in self.weigh(wrong, teacher, self.wrong):
                delta = teacher[id(r)] - student[id(r)] if weight else 0.0
                credits.append(
                    replace(
                        Weighted.of(r, pg=weight * scale * delta),
                        weight=weight,
                        perplexity=perplexity,
                    )
                )
        # the loss is a mean over sequences; the paper's is over problems
        if self.normalise == "paper":
            per_problem = len(credits) / len(groups)
            credits = [replace(c, pg=c.pg * per_problem, nll=c.nll * per_problem) for c in credits]
        return credits

    def weigh(
        self, members: Sequence[Rollout], logp: dict[int, np.ndarray], how: Weighting
    ) -> list[tuple[Rollout, float, float, float]]:
        """(rollout, weight, perplexity, what ``normalise`` multiplies the weight with) of each
        member of one subset of one group.
        """
        if how == "off" or not members:
            return [(r, 0.0, float("nan"), 1.0) for r in members]
        perplexities = np.array([perplexity(logp[id(r)]) for r in members])
        scale = float(len(members)) if self.normalise == "code" else 1.0
        return [
            (r, float(w), float(p), scale)
            for r, w, p in zip(members, weights(perplexities, POWERS[how] / self.tau), perplexities)
        ]

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        old = scores.logp.detach() if batch.old_logp is None else batch.old_logp
        pg, nll, tokens = batch.channels["pg"], batch.channels["nll"], batch.denominators["tokens"]
        if self.normalise == "code":
            for_pg, for_nll = 1 / tokens, 1 / max(batch.denominators["nll"], 1.0)
        else:
            for_pg = for_nll = 1 / (batch.mask.sum(-1, keepdim=True) * batch.sequences)
        distilled = pg * (scores.logp - old).exp()
        per_token = -nll * scores.logp * for_nll - distilled * for_pg
        credit = (nll * for_nll + distilled * for_pg).detach() * tokens
        parts = {"loss_right": -nll * scores.logp * for_nll, "loss_wrong": -distilled * for_pg}
        return Loss(
            per_token.sum(),
            per_token.detach(),
            credit,
            {name: float(part.detach().sum()) for name, part in parts.items()},
        )

    def diagnose(self, groups, credits) -> dict[str, float]:
        """teacher_failed: rollouts left out because the teacher could not score them.
        perplexity_right: the student's, of right answers; perplexity_wrong: the teacher's, of wrong
        ones (means). ess_right, ess_wrong: mean effective sample size 1/sum w^2 of a group's subset
        over its size, 1 where all weigh the same; near 1 the routing does the work and not the
        weights.
        """
        found = {
            "teacher_failed": float(sum(len(group.rollouts) for group in groups) - len(credits))
        }
        by_rollout = {id(c.rollout): c for c in credits if c.weight}
        for name, correct in (("right", True), ("wrong", False)):
            subsets = [
                [
                    by_rollout[id(r)]
                    for r in g.rollouts
                    if id(r) in by_rollout and r.verdict.correct == correct
                ]
                for g in groups
            ]
            subsets = [subset for subset in subsets if subset]
            if subsets:
                found[f"perplexity_{name}"] = float(
                    np.mean([c.perplexity for subset in subsets for c in subset])
                )
                found[f"ess_{name}"] = float(
                    np.mean(
                        [
                            effective_size([c.weight for c in subset]) / len(subset)
                            for subset in subsets
                        ]
                    )
                )
        return found


def perplexity(logp: np.ndarray) -> float:
    """exp(-mean log p) of [T] token log-probs in nats."""
    return float(np.exp(-np.mean(logp, dtype=float)))


def weights(perplexities: Sequence[float], power: float) -> np.ndarray:
    """[n] perplexities to the ``power``, over their sum."""
    logs = power * np.log(perplexities)
    raised = np.exp(logs - logs.max())
    return raised / raised.sum()


def effective_size(weights: Sequence[float]) -> float:
    """1 / sum w^2 of weights that sum to 1: n where all are equal, 1 where one has all."""
    return float(1 / np.square(weights).sum())
