r"""OPD: on-policy distillation.

The baseline of SCOPE, arXiv 2604.10688; its own teacher as context: OPSD, arXiv 2601.18734

    Delta_t = log q(y_t | x, y_<t) - log pi_old(y_t | x, y_<t)      q: the teacher; y ~ pi_old

    token   : L = - mean_t Delta_t rho_t        one-sample estimate of the next line's gradient
    logit   : L = mean_t KL(pi || sg q)         over the policy's top_k tokens and one bucket for
                                                the others; 0: over all

Realised credit of a token: rho_t Delta_t, in logit form without rho_t, and a token of the bucket
has the bucket's; below 0 where the teacher would write the token more rarely than the policy did.
The logit form moves all tokens of the vocabulary, that is its sampled part. No reward enters, no
baseline and no clip. Any k: SCOPE's paper ran it with k = 1 against k = 8 of its own; matched in
rollouts it is k = 8.

The teacher is the learner's expert, any policy with the same tokenizer, or the policy as it was
loaded. OPSD, whose teacher is the policy itself under a
prompt that holds a solution, is SDPO(teacher="frozen", demonstration="reference"): see sdpo.py.

Differs from the paper: nothing known. From the released scripts: both are at temperature 1 (they
sample and score the student at 0.6, the teacher at 1); their top-k form takes the teacher's tokens
and forgets the mass outside them on both sides, ours takes the policy's, as SDPO does, and keeps
the mass in one bucket. As there, log pi_old is scored by the trainer, so that a teacher equal to
the policy gives exactly 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np

from workbench.core import (
    Batch,
    Credit,
    Distil,
    Loss,
    Method,
    Rollout,
    Scores,
    refuse_if,
    rollouts_of,
)
from workbench.losses import ratio
from workbench.model.batch import rescore
from workbench.model.policy import Policy
from workbench.options import check_choices
from workbench.rollouts.sampling import sample_groups


@dataclass(frozen=True)
class OPD(Method):
    k: int = 1  # rollouts per problem
    # the learner's expert, or the policy as it was loaded
    teacher: Literal["expert", "reference"] = "expert"
    form: Literal["token", "logit"] = "token"
    top_k: int = 100  # tokens compared one by one, in logit form; 0: all

    def __post_init__(self):
        check_choices(self)
        refuse_if(self.k < 1 or self.top_k < 0, "OPD takes k of 1 or more, and top_k of 0 or more")

    @property
    def needs_expert(self) -> bool:
        return self.teacher == "expert"

    @property
    def distil(self) -> Distil | None:
        return Distil(1.0, self.top_k, self.teacher) if self.form == "logit" else None

    def sample(self, learner, task, problems, seed):
        require_teacher(learner, self.teacher, "OPD")
        return sample_groups(learner.policy, task, problems, self.k, seed)

    def credit(self, groups, learner) -> list[Credit]:
        """The teacher is asked here in both forms.

        What it cannot score is left out before anything is divided by its tokens.
        """
        require_teacher(learner, self.teacher, "OPD")
        asked = rollouts_of(groups)
        answers = teacher_logprobs(learner, asked, self.teacher)
        rollouts = [r for r, logp in zip(asked, answers) if logp is not None]
        if self.form == "logit":
            return [Credit.of(r, kl=1.0, teacher_prompt_ids=r.prompt_ids) for r in rollouts]
        teacher = [logp for logp in answers if logp is not None]
        student = [logp for logp, _ in rescore(learner.policy, rollouts)]
        return [Credit.of(r, pg=q - p) for r, q, p in zip(rollouts, teacher, student)]

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Metrics, means over tokens:

        kl_teacher  KL(pi || q) in nats; in token form its one-sample estimate, which can be below
                    0. Falls toward 0.
        tail        the policy's probability outside top_k, in logit form. Below 0.01; more: take a
                    larger top_k.
        """
        tokens = batch.denominators["tokens"]
        if self.form == "logit":
            weight = batch.channels["kl"] / batch.denominators["kl"]
            per_token = weight * scores.divergence
            credit = weight * scores.divergence_credit * tokens
            metrics = {
                "kl_teacher": float(per_token.detach().sum()),
                "tail": float((weight * scores.tail_mass).sum()),
            }
            return Loss(per_token.sum(), per_token.detach(), credit, metrics)
        pg = batch.channels["pg"]
        objective = pg * ratio(scores.logp, batch.old_logp)
        per_token = -objective / tokens
        metrics = {"kl_teacher": -float(pg.sum()) / tokens}
        return Loss(per_token.sum(), per_token.detach(), objective.detach(), metrics)

    def diagnose(self, groups, credits) -> dict[str, float]:
        """teacher_failed: rollouts left out because the teacher could not score them.

        Anything but 0 wants a look.
        """
        return {"teacher_failed": float(len(rollouts_of(groups)) - len(credits))}


def require_teacher(learner, which: str, method: str) -> None:
    """Raises WorkbenchError when the teacher is the learner's expert and it has none."""
    refuse_if(
        which == "expert" and learner.expert is None,
        f"{method} learns from a stronger model with the same tokenizer: name one with "
        "--teacher (Learner's expert)",
    )


def teacher_logprobs(learner, rollouts: Sequence[Rollout], which: str) -> list[np.ndarray | None]:
    """[T] log-probs (nats, temperature 1) of each completion under the teacher, without gradient.

    None where it cannot score one: longer than its context, or a log-prob that is not finite. Such
    a rollout is left out, never counted as 0.
    """
    expert = nullcontext(learner.expert)
    with expert if which == "expert" else learner.weights("reference") as teacher:
        places = [i for i, rollout in enumerate(rollouts) if _fits(rollout, teacher)]
        scored = rescore(teacher, [rollouts[i] for i in places])
    answers: list[np.ndarray | None] = [None] * len(rollouts)
    for i, (logp, _) in zip(places, scored):
        answers[i] = logp if np.isfinite(logp).all() else None
    return answers


def _fits(rollout: Rollout, teacher: Policy) -> bool:
    ids = rollout.prompt_ids + rollout.completion_ids
    return len(ids) <= teacher.context and max(ids) < len(teacher.head)
