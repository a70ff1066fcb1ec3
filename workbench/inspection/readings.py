"""What models say of every token, and whole groups made ready for the viewer.

The self-teacher is SDPO's (workbench/methods/sdpo.py): the policy itself, reading the same
completion under a longer prompt, with another correct solution of the group or the feedback on this
attempt. Where it disagrees, Delta_t = log q(y_t) - log pi(y_t) is negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from tqdm import tqdm

from workbench.core import (
    Group,
    Inspection,
    Method,
    Rollout,
    Task,
    TokenStats,
    refuse_if,
)
from workbench.inspection.credit import ROWS, realised_credit
from workbench.methods.sdpo import SDPO, teacher_prompt
from workbench.model.batch import deal, pack, states
from workbench.model.learner import FrozenLearner, Learner
from workbench.model.policy import Policy
from workbench.model.scores import ranks, token_scores, top_k


@torch.no_grad()
def token_stats(
    policy: Policy, prompts: Sequence[tuple[int, ...]], rollouts: Sequence[Rollout], k: int = 5
) -> list[TokenStats]:
    """What the policy says of each rollout's completion under ``prompts[i]``.

    That need not be the prompt that it was sampled with. Scored by chunk from hidden states. Raises
    WorkbenchError when a prompt and its completion do not fit the model's context.
    """
    rows = [
        (tuple(prompt), rollout.completion_ids)
        for prompt, rollout in zip(prompts, rollouts, strict=True)
    ]
    longest = max((len(prompt) + len(completion) for prompt, completion in rows), default=0)
    refuse_if(
        longest > policy.context,
        f"a prompt and its completion have {longest} tokens, more than the model's "
        f"context of {policy.context}",
    )
    stats: list = [None] * len(rows)
    for places in deal(rows, ROWS):
        packed = pack([rows[place] for place in places], policy.pad_id, policy.device)
        hidden, targets = states(policy, packed), packed.targets[packed.mask]
        cap = policy.cap
        logp, entropy = token_scores(hidden, policy.head, targets, cap)
        top_logp, top_ids = top_k(hidden, policy.head, k, cap)
        columns = (logp, entropy, ranks(hidden, policy.head, targets), top_ids, top_logp)
        lengths = packed.mask.sum(-1).tolist()
        by_row = zip(*(column.cpu().split(lengths) for column in columns))
        for place, numbers in zip(places, by_row):
            stats[place] = TokenStats(rows[place][0], *(part.numpy() for part in numbers))
    return stats


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
    Raises WorkbenchError where the model's context is too short, and where a method cannot credit
    this group: one that learns from a stronger model needs a learner with an expert.
    """
    learner = FrozenLearner(learner) if isinstance(learner, Policy) else learner
    rollouts = group.rollouts
    # the policy reads each rollout once for itself and all methods; a bar for those who wait
    with (
        learner.policy.remembering({}),
        tqdm(total=2 + len(methods), desc="reading", delay=2, leave=False, unit="pass") as bar,
    ):
        by_student = token_stats(learner.policy, [r.prompt_ids for r in rollouts], rollouts, k)
        bar.update()
        by_teacher = _teacher_stats(learner, group, _self_teacher(methods, show), teacher, k)
        bar.update()
        layers = {"delta": tuple(map(_delta, by_student, by_teacher))}
        for name, method in methods.items():
            realised = realised_credit(learner, group, method.for_task(task))
            layers[f"{name} credit"] = realised.credit
            for channel, numbers in realised.channels.items():
                layers[f"{name} {channel}"] = numbers
            bar.update()
    first_errors = tuple(task.first_error(group.problem, r.text) for r in rollouts)
    return Inspection(group, layers, tuple(by_student), by_teacher, first_errors)


def _delta(student: TokenStats, teacher: TokenStats | None) -> np.ndarray:
    """[T] teacher minus student log-prob; NaN without a teacher."""
    if teacher is None:
        return np.full_like(student.logprobs, np.nan)
    return teacher.logprobs - student.logprobs


def _teacher_stats(
    learner: Learner | FrozenLearner, group: Group, method: SDPO, which: str, k: int
) -> tuple[TokenStats | None, ...]:
    """What the self-teacher says of each rollout; None where it is shown nothing."""
    prompts = [
        teacher_prompt(learner.policy, group.problem, rollout, *method.shown(group, i))
        for i, rollout in enumerate(group.rollouts)
    ]
    taught = [i for i, prompt in enumerate(prompts) if prompt is not None]
    with learner.weights(which) as weights:
        stats = token_stats(
            weights, [prompts[i] for i in taught], [group.rollouts[i] for i in taught], k
        )
    by_place = dict(zip(taught, stats))
    return tuple(by_place.get(i) for i in range(len(prompts)))


def _self_teacher(methods: Mapping[str, Method], show: Sequence[str] | None) -> SDPO:
    """The SDPO whose self-teacher is read."""
    if show is None:
        return next((method for method in methods.values() if isinstance(method, SDPO)), SDPO())
    refuse_if(
        not set(show) <= {"solution", "feedback"},
        f"show takes some of ('solution', 'feedback'), not {show!r}",
    )
    return SDPO(
        demonstration="sibling" if "solution" in show else "none",
        feedback="fallback" if "feedback" in show else "never",
    )
