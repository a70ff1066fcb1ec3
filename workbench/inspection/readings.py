"""What a model says of every token: readings under the plain prompt and under the self-teacher's,
and whole groups made ready for the viewer.

The self-teacher is SDPO's (workbench/methods/sdpo.py): the policy itself, reading the same
completion under a longer prompt, with another correct solution of the group or the feedback on this
attempt. Where it disagrees, Delta_t = log q(y_t) - log pi(y_t) is negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from workbench.core import (
    Credit,
    Group,
    Inspection,
    Method,
    Rollout,
    Task,
    TokenStats,
    WorkbenchError,
)
from workbench.inspection.credit import ROWS, realised_credit
from workbench.methods.sdpo import SDPO, teacher_prompt
from workbench.model.batch import collate, states
from workbench.model.learner import FrozenLearner, Learner
from workbench.model.policy import Policy
from workbench.model.scores import ranks, token_scores, top_k


@torch.no_grad()
def token_stats(
    policy: Policy, prompts: Sequence[tuple[int, ...]], rollouts: Sequence[Rollout], k: int = 5
) -> list[TokenStats]:
    """One reading for each rollout: its completion under ``prompts[i]``, which need not be the
    prompt that it was sampled with.

    Scored by chunk from hidden states. Raises WorkbenchError when a prompt and its completion do
    not fit the model's context.
    """
    moved = [
        Credit.of(replace(rollout, prompt_ids=tuple(prompt)))
        for prompt, rollout in zip(prompts, rollouts, strict=True)
    ]
    longest = max(
        (len(c.rollout.prompt_ids) + len(c.rollout.completion_ids) for c in moved), default=0
    )
    if longest > policy.context:
        raise WorkbenchError(
            f"a prompt and its completion have {longest} tokens, more than the model's "
            f"context of {policy.context}"
        )
    found: dict[int, TokenStats] = {}
    for batch in collate(moved, policy.pad_id, ROWS, policy.device):
        hidden, targets = states(policy, batch), batch.targets[batch.mask]
        columns = (
            *token_scores(hidden, policy.head, targets),
            ranks(hidden, policy.head, targets),
            *top_k(hidden, policy.head, k),
        )
        lengths = batch.mask.sum(-1).tolist()
        for credit, logp, entropy, rank, values, ids in zip(
            batch.credits, *(column.cpu().split(lengths) for column in columns)
        ):
            found[id(credit)] = TokenStats(
                credit.rollout.prompt_ids,
                logp.numpy(),
                entropy.numpy(),
                rank.numpy(),
                ids.numpy(),
                values.numpy(),
            )
    return [found[id(credit)] for credit in moved]


def inspect_group(
    learner: Learner | Policy,
    group: Group,
    task: Task,
    methods: Mapping[str, Method] = {},
    *,
    k: int = 5,
    show: Sequence[str] | None = None,
    teacher: str = "policy",
) -> Inspection:
    """Everything known of a group's tokens.

    Nothing of the learner changes: no gradient is computed.

    Layers: ``delta`` (teacher minus student log-prob, NaN without a teacher); for each method
    ``NAME credit``, the realised credit if this group were the whole batch, and ``NAME pg``,
    ``nll``, ``kl`` where they are not all zero.

    ``show``: what the self-teacher may be shown, of "solution" (another correct rollout) and
    "feedback" (where there is no solution); None: what the first SDPO among ``methods`` shows, or
    SDPO() does. ``teacher``: whose weights read as the self-teacher ("policy", "reference", or
    "teacher": the learner's EMA). A ``Policy`` stands for a learner that has not learned yet.
    Raises WorkbenchError where the model's context is too short, and where a method cannot paint
    this group: one that learns from a stronger model needs a learner with an expert.
    """
    learner = FrozenLearner(learner) if isinstance(learner, Policy) else learner
    policy, rollouts = learner.policy, group.rollouts
    student = token_stats(policy, [r.prompt_ids for r in rollouts], rollouts, k)
    shows = _shows(methods, show)
    prompts = [
        teacher_prompt(policy, group.problem, rollout, *shows.shown(group, i))
        for i, rollout in enumerate(rollouts)
    ]
    taught = [i for i, prompt in enumerate(prompts) if prompt is not None]
    with learner.weights(teacher) as weights:
        read_by_teacher = dict(
            zip(
                taught,
                token_stats(
                    weights, [prompts[i] for i in taught], [rollouts[i] for i in taught], k
                ),
            )
        )
    delta = tuple(
        read_by_teacher[i].logprobs - student[i].logprobs
        if i in read_by_teacher
        else np.full_like(student[i].logprobs, np.nan)
        for i in range(len(rollouts))
    )
    layers = {"delta": delta}
    for name, method in methods.items():
        layers |= {
            f"{name} {layer}": values
            for layer, values in realised_credit(learner, group, method).items()
        }
    first_errors = tuple(task.first_error(group.problem, r.text) for r in rollouts)
    return Inspection(
        group,
        layers,
        tuple(student),
        tuple(read_by_teacher.get(i) for i in range(len(rollouts))),
        first_errors,
    )


def _shows(methods: Mapping[str, Method], show: Sequence[str] | None) -> SDPO:
    """The SDPO whose self-teacher is read."""
    if show is None:
        return next((method for method in methods.values() if isinstance(method, SDPO)), SDPO())
    if not set(show) <= {"solution", "feedback"}:
        raise WorkbenchError(f"show takes some of ('solution', 'feedback'), not {show!r}")
    return SDPO(
        demonstration="sibling" if "solution" in show else "none",
        feedback="fallback" if "feedback" in show else "never",
    )
