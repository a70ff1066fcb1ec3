"""KD: the teacher's samples under the policy's prompt, SFT's loss on them, and a policy that
becomes its teacher.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import toys

from workbench.core import WorkbenchError
from workbench.methods import find
from workbench.methods.kd import KD
from workbench.methods.sft import SFT
from workbench.model.batch import collate, rescore, score
from workbench.model.learner import Learner, OptimConfig
from workbench.rollouts.sampling import sample_groups
from workbench.training.update import update

HALVES = toys.FirstCharacter(toys.HALF, max_new=3)


def pair(**options) -> Learner:
    return Learner(tiny.policy(**options), OptimConfig(lr=3e-3), expert=tiny.policy(seed=3))


def test_rollouts_are_the_teachers_under_the_policys_prompt():
    learner = pair()
    # the teacher keeps its own
    learner.policy.tokenizer.chat_template = "{{ messages[0]['content'] }}="
    problems = HALVES.problems("train", 3, 0)
    groups = KD(k=2).sample(learner, HALVES, problems, (4, 7))
    for group, theirs in zip(
        groups, sample_groups(learner.expert, HALVES, problems, 2, (4, 7)), strict=True
    ):
        for ours, written in zip(group.rollouts, theirs.rollouts, strict=True):
            assert all(math.isnan(x) for x in ours.logprobs) and len(
                ours.logprobs
            ) == ours.borrowed == len(written.completion_ids)
            assert (
                ours.origin == "expert"
                and ours.prompt_ids
                == learner.policy.prompt_ids(group.problem.messages)
                != written.prompt_ids
            )
            for name in ("completion_ids", "text", "verdict", "finished"):
                assert getattr(ours, name) == getattr(written, name)
        assert len({r.completion_ids for r in group.rollouts}) == 2


def test_loss_is_the_mean_log_prob_of_the_teachers_tokens():
    learner = pair()
    groups = KD(k=3).sample(learner, HALVES, HALVES.problems("train", 2, 0), (0,))
    rollouts = [r for g in groups for r in g.rollouts]
    credits = KD().credit(groups, learner)
    assert all(
        c.nll.tolist() == [1.0] * len(c.rollout.completion_ids)
        and not c.pg.any()
        and not c.kl.any()
        for c in credits
    )
    [batch] = collate(credits, learner.policy.pad_id)
    loss = KD().loss(scores := score(learner, batch), batch)
    assert loss.value.item() == pytest.approx(
        -np.concatenate([logp for logp, _ in rescore(learner.policy, rollouts)]).mean(), abs=1e-5
    )
    torch.testing.assert_close(loss.credit, batch.mask.float())
    torch.testing.assert_close(loss.per_token, SFT().loss(scores, batch).per_token)


def test_the_wrong_ones_can_be_left_out():
    learner, group = pair(), toys.group([3, 2, 4], [1, 0, 1])
    assert [c.rollout for c in KD(correct=True).credit([group], learner)] == [
        group.rollouts[0],
        group.rollouts[2],
    ]
    # the teacher is never right: nothing to learn from, nothing learned
    never = replace(HALVES, wanted="")
    record = update(KD(k=2, correct=True), learner, never, HALVES.problems("train", 2, 0), (0,))
    assert (
        record.metrics["grad_norm"] == 0
        and record.metrics["correct"] == 0
        and record.metrics["expert_tokens"] > 0
    )


def test_the_teachers_tokens_are_not_counted_as_the_policys():
    learner = pair()
    record = update(KD(k=4), learner, HALVES, HALVES.problems("train", 3, 0), (0,), rows=5)
    written = sum(len(r.completion_ids) for g in record.groups for r in g.rollouts)
    assert record.metrics["generated"] == 0 and record.metrics["expert_tokens"] == written > 12
    assert record.metrics["gap_max"] == 0 and all(all(row) for g in record.credit for row in g)


def test_the_policy_becomes_its_teacher():
    """Cross-entropy on the teacher's samples falls to nearly the teacher's own on them."""
    task, learner = (
        toys.FirstCharacter("7", max_new=2),
        Learner(tiny.policy(), OptimConfig(lr=1e-2), expert=tiny.policy(seed=3)),
    )
    problems = task.problems("train", 4, 0)
    losses = [
        update(KD(k=16), learner, task, problems, (0, step)).metrics["nll"] for step in range(60)
    ]
    fresh = [r for g in KD(k=64).sample(learner, task, problems, (1,)) for r in g.rollouts]
    ours, theirs = (
        -np.concatenate([logp for logp, _ in rescore(model, fresh)]).mean()
        for model in (learner.policy, learner.expert)
    )
    # their difference is the estimate of KL(q || pi)
    assert losses[0] - theirs > 2 and ours - theirs < 0.5


def test_refusals():
    with pytest.raises(WorkbenchError, match="KD learns from a stronger model .* --teacher"):
        KD().sample(Learner(tiny.policy()), HALVES, HALVES.problems("train", 1, 0), (0,))
    with pytest.raises(WorkbenchError, match="k of 1"):
        KD(k=0)
    with pytest.raises(WorkbenchError, match="more than the model's context of 8"):
        KD().sample(
            pair(max_position_embeddings=8),
            replace(HALVES, max_new=6),
            HALVES.problems("train", 1, 0),
            (0,),
        )
    assert find("kd") is KD
