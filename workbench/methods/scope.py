r"""SCOPE: signal-calibrated on-policy distillation with dual-path adaptive weighting.

arXiv 2604.10688

    right answers, Omega_c    w_i = PPL_S(y_i)^(+1/tau) / sum_{j in Omega_c} PPL_S(y_j)^(+1/tau)
                              surprising ones up
    wrong answers, Omega_w    w_i = PPL_T(y_i)^(-1/tau) / sum_{j in Omega_w} PPL_T(y_j)^(-1/tau)
                              those the teacher is sure about up

    L        = sum_{Omega_c} w_i sum_t -log pi(y_t)  -  sum_{Omega_w} w_i sum_t rho_t Delta_t
    Delta_t  = log q(y_t) - log pi_old(y_t)
    PPL(y)   = exp(-mean_t log p(y_t))           over the completion

Omega per problem, weights constant. Realised credit: w_i on a right answer, w_i rho_t Delta_t on a
wrong one. No reward term, no baseline, no clip; a group that is all right has the first term only,
one that is all wrong the second.

``normalise``: "code" (the released one): w_i times the size of its subset, so 1 on average; right
answers over their own tokens, wrong ones over all tokens of the batch. "paper": each w_i (1/|y_i|)
sum_t, then the mean over problems. The default weights are the paper's; the released scripts favour
right answers of *low* perplexity (correct=low). Ablations: ``correct`` and ``wrong`` each high |
low | uniform | off, the perplexity that counts more.

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

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import numpy as np
from scipy.special import softmax

from workbench.core import (
    Batch,
    Credit,
    Group,
    Loss,
    Method,
    Rollout,
    Scores,
    places_of,
    refuse_if,
    rollouts_of,
)
from workbench.losses import ratio
from workbench.methods.opd import require_teacher, teacher_logprobs
from workbench.model.batch import rescore
from workbench.options import check_choices
from workbench.rollouts.sampling import sample_groups

POWERS = {"high": 1.0, "low": -1.0, "uniform": 0.0}
Weighting = Literal["high", "low", "uniform", "off"]


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
        check_choices(self)
        refuse_if(self.k < 1 or not self.tau > 0, "SCOPE takes k of 1 or more, and tau above 0")
        refuse_if(
            self.correct == self.wrong == "off",
            "SCOPE takes correct and wrong of which one is not off",
        )

    @property
    def needs_expert(self) -> bool:
        return self.teacher == "expert"

    def sample(self, learner, task, problems, seed) -> list[Group]:
        require_teacher(learner, self.teacher, "SCOPE")
        return sample_groups(learner.policy, task, problems, self.k, seed)

    def credit(self, groups, learner) -> list[Credit]:
        require_teacher(learner, self.teacher, "SCOPE")
        credits: list[Credit] = []
        paths = zip(self.right_path(groups, learner), self.wrong_path(groups, learner))
        for right, wrong in paths:
            credits += right + wrong
        if self.normalise == "paper":
            # the loss is a mean over sequences; the paper's is over problems
            scale = len(credits) / len(groups)
            credits = [replace(c, pg=c.pg * scale, nll=c.nll * scale) for c in credits]
        return credits

    def right_path(self, groups: Sequence[Group], learner) -> list[list[Credit]]:
        """Each group's right answers, imitated: nll = w_i."""
        members = _graded(groups, correct=True)
        if self.correct == "off":
            return _without_credit(members)
        student = iter(rescore(learner.policy, list(chain.from_iterable(members))))
        credits = []
        for rollouts in members:  # zip takes as many of the student's as there are rollouts
            rows = [(rollout, p, 1.0) for rollout, (p, _) in zip(rollouts, student)]
            credits.append(self._weighted(rows, "nll", self.correct))
        return credits

    def wrong_path(self, groups: Sequence[Group], learner) -> list[list[Credit]]:
        """Each group's wrong answers that the teacher could score, distilled: pg = w_i Delta_t."""
        members = _graded(groups, correct=False)
        if self.wrong == "off":
            return _without_credit(members)
        wrong = list(chain.from_iterable(members))
        student = iter(rescore(learner.policy, wrong))
        teacher = iter(teacher_logprobs(learner, wrong, self.teacher))
        credits = []
        for rollouts in members:
            scored = zip(rollouts, student, teacher)
            rows = [(rollout, q, q - p) for rollout, (p, _), q in scored if q is not None]
            credits.append(self._weighted(rows, "pg", self.wrong))
        return credits

    def _weighted(self, rows: Sequence[tuple], channel: str, weighting: Weighting) -> list[Credit]:
        """The credits of one subset; of each rollout the log-probs whose perplexity weighs it, and
        what the weight multiplies.
        """
        perplexities = [perplexity(logp) for _, logp, _ in rows]
        shares = weights(perplexities, POWERS[weighting] / self.tau)
        credits = []
        for (rollout, _, signal), share, ppl in zip(rows, shares, perplexities):
            weighted = {channel: share * self.size(rows) * signal}
            credit = Credit.of(rollout, weight=share, notes={"perplexity": ppl}, **weighted)
            credits.append(credit)
        return credits

    def size(self, members: Sequence) -> float:
        """What ``normalise`` multiplies the weights of a subset with."""
        return float(len(members)) if self.normalise == "code" else 1.0

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        tokens = batch.denominators["tokens"]
        if self.normalise == "code":
            for_wrong, for_right = 1 / tokens, 1 / max(batch.denominators["nll"], 1.0)
        else:
            for_wrong = for_right = 1 / (batch.mask.sum(-1, keepdim=True) * batch.sequences)
        imitated = batch.channels["nll"] * for_right
        distilled = batch.channels["pg"] * ratio(scores.logp, batch.old_logp) * for_wrong
        right, wrong = -imitated * scores.logp, -distilled
        per_token = right + wrong
        credit = (imitated + distilled).detach() * tokens
        metrics = {
            "loss_right": float(right.detach().sum()),
            "loss_wrong": float(wrong.detach().sum()),
        }
        return Loss(per_token.sum(), per_token.detach(), credit, metrics)

    def diagnose(self, groups, credits) -> dict[str, float]:
        """teacher_failed: rollouts left out because the teacher could not score them.
        perplexity_right: the student's, of right answers; perplexity_wrong: the teacher's, of wrong
        ones (means). ess_right, ess_wrong: mean effective sample size 1/sum w^2 of a group's subset
        over its size, 1 where all weigh the same; near 1 the routing does the work and not the
        weights.
        """
        metrics = {"teacher_failed": float(len(rollouts_of(groups)) - len(credits))}
        places = places_of(credits, groups)
        for name, correct in (("right", True), ("wrong", False)):
            subsets: dict[int, list[Credit]] = defaultdict(list)
            for credit, (i, _) in zip(credits, places):
                if credit.weight and credit.rollout.verdict.correct == correct:
                    subsets[i].append(credit)
            perplexities, sizes = [], []
            for _, subset in sorted(subsets.items()):
                shares = [credit.weight for credit in subset]
                perplexities += [credit.notes["perplexity"] for credit in subset]
                sizes.append(effective_size(shares) / len(shares))
            if sizes:
                metrics[f"perplexity_{name}"] = float(np.mean(perplexities))
                metrics[f"ess_{name}"] = float(np.mean(sizes))
        return metrics


def _graded(groups: Sequence[Group], correct: bool) -> list[list[Rollout]]:
    """Each group's right rollouts, or its wrong ones."""
    return [[r for r in group.rollouts if r.verdict.correct == correct] for group in groups]


def _without_credit(members: Sequence[Sequence[Rollout]]) -> list[list[Credit]]:
    return [list(map(Credit.of, rollouts)) for rollouts in members]


def perplexity(logp: np.ndarray) -> float:
    """exp(-mean log p) of [T] token log-probs in nats; at most exp(700), the largest there is."""
    return float(np.exp(min(-np.mean(logp, dtype=float), 700.0)))


def weights(perplexities: Sequence[float], power: float) -> np.ndarray:
    """[n] perplexities to the ``power``, over their sum."""
    return softmax(power * np.log(perplexities)) if len(perplexities) else np.zeros(0)


def effective_size(weights: Sequence[float]) -> float:
    """1 / sum w^2 of weights that sum to 1: n where all are equal, 1 where one has all."""
    return float(1 / np.square(weights).sum())
