r"""OPD: on-policy distillation, sampled-token form.   The baseline of SCOPE, arXiv 2604.10688; its own teacher as context: OPSD, arXiv 2601.18734

    Delta_t = log q(y_t | x, y_<t) - log pi_old(y_t | x, y_<t)          q: the teacher; y ~ pi_old
    L       = - mean_t Delta_t rho_t                                    one-sample estimate of the gradient of KL(pi || q)

Realised credit of a token: rho_t Delta_t; below 0 where the teacher would write the token more rarely than the policy did. No reward enters, no
baseline and no clip. Any k: SCOPE's paper ran it with k = 1 against k = 8 of its own; matched in rollouts it is k = 8.

Differs from the paper: nothing known. log pi_old is scored by the trainer, as released, so that a teacher equal to the policy gives exactly 0.
Not here: the full-vocabulary and top-K forms, which need the expert on the kl channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np

from workbench.batch import rescore
from workbench.core import Batch, Credit, Loss, Method, Rollout, Scores, WorkbenchError
from workbench.rollout import sample_groups


@dataclass(frozen=True)
class OPD(Method):
    k: int = 1  # rollouts per problem
    teacher: Literal["expert", "reference"] = "expert"  # the learner's expert, or the policy as it was loaded

    def __post_init__(self):
        if self.k < 1 or self.teacher not in ("expert", "reference"):
            raise WorkbenchError("OPD takes k of 1 or more and teacher=expert|reference")

    def sample(self, learner, task, problems, seed):
        require_teacher(learner, self.teacher, "OPD")
        return sample_groups(learner.policy, task, problems, self.k, seed)

    def credit(self, groups, learner) -> list[Credit]:
        require_teacher(learner, self.teacher, "OPD")
        rollouts = [r for group in groups for r in group.rollouts]
        pairs = zip(rollouts, rescore(learner.policy, rollouts), teacher_logprobs(learner, rollouts, self.teacher))
        return [Credit.of(rollout, pg=teacher - student) for rollout, (student, _), teacher in pairs if teacher is not None]

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """kl_teacher: mean -Delta over tokens, the estimate of KL(pi || q) in nats. Falls toward 0; single steps may be below it."""
        old = scores.logp.detach() if batch.old is None else batch.old
        pg, tokens = batch.channels["pg"], batch.denominators["tokens"]
        objective = pg * (scores.logp - old).exp()
        per_token = -objective / tokens
        return Loss(per_token.sum(), per_token.detach(), objective.detach(), {"kl_teacher": -float(pg.sum()) / tokens})

    def diagnose(self, groups, credits) -> dict[str, float]:
        """teacher_failed: rollouts left out because the teacher could not score them. Anything but 0 wants a look."""
        return {"teacher_failed": float(sum(len(group.rollouts) for group in groups) - len(credits))}


def require_teacher(learner, which: str, method: str) -> None:
    """Raises WorkbenchError when the teacher is the learner's expert and it has none."""
    if which == "expert" and learner.expert is None:
        raise WorkbenchError(f"{method} learns from a stronger model with the same tokenizer: name one with --teacher (Learner's expert)")


def teacher_logprobs(learner, rollouts: Sequence[Rollout], which: str) -> list[np.ndarray | None]:
    """[T] log-probs (nats, temperature 1) of each completion under the teacher, without gradient. None where it cannot score one: longer than
    its context, or a log-prob that is not finite. Such a rollout is left out, never counted as 0."""
    with nullcontext(learner.expert) if which == "expert" else learner.weights("reference") as teacher:
        fits = [len(r.prompt_ids) + len(r.completion_ids) <= teacher.context for r in rollouts]
        scored = iter(rescore(teacher, [r for r, fit in zip(rollouts, fits) if fit]))
        found = [next(scored)[0] if fit else None for fit in fits]
    return [logp if logp is not None and np.isfinite(logp).all() else None for logp in found]
