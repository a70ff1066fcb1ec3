"""SFT against Hugging Face's own loss, and its credit against autograd."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import toys

from workbench.core import WorkbenchError
from workbench.methods.sft import SFT
from workbench.model.batch import collate, score
from workbench.model.learner import Learner, OptimConfig
from workbench.tasks.arithmetic import Arithmetic
from workbench.training.update import update


def sampled(policy, method=SFT(), n=5):
    task = Arithmetic(steps=2)
    # different lengths
    problems = [*task.problems("train", n, 0), *Arithmetic(steps=5).problems("train", 2, 0)]
    learner = Learner(policy)
    return learner, method.sample(learner, task, problems, (0,))


def test_loss_and_gradient_equal_hugging_face(tiny_policy):
    learner, groups = sampled(tiny_policy)
    method = SFT()
    [batch] = collate(method.credit(groups, learner), tiny_policy.pad_id)
    loss = method.loss(score(learner, batch), batch)
    loss.value.backward()
    ours = {name: p.grad.clone() for name, p in tiny_policy.model.named_parameters()}
    tiny_policy.model.zero_grad()

    labels = torch.full_like(batch.input_ids, -100)
    real = torch.zeros_like(batch.input_ids)
    for i, credit in enumerate(batch.credits):
        p, t = len(credit.rollout.prompt_ids), len(credit.rollout.completion_ids)
        real[i, : p + t] = 1
        labels[i, p : p + t] = batch.input_ids[i, p : p + t]
    theirs = tiny_policy.model(
        input_ids=batch.input_ids, attention_mask=real.long(), labels=labels
    ).loss
    theirs.backward()
    assert loss.value.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert loss.metrics["nll"] == pytest.approx(theirs.item(), abs=1e-5)
    for name, p in tiny_policy.model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, atol=1e-6, rtol=1e-4)


def test_credit_is_the_gradient_also_where_some_tokens_are_left_out(tiny_policy):
    learner, groups = sampled(tiny_policy)
    method = SFT()
    credits = method.credit(groups, learner)
    credits[0].nll[:3] = 0.0
    [batch] = collate(credits, tiny_policy.pad_id)
    scores = score(learner, batch)
    logp = scores.logp.detach().requires_grad_(True)
    loss = method.loss(replace(scores, logp=logp), batch)
    [grad] = torch.autograd.grad(loss.value, logp)
    torch.testing.assert_close(-grad * batch.denominators["tokens"], loss.credit)
    assert batch.denominators["nll"] == batch.denominators["tokens"] - 3
    nll = -(logp.detach() * (batch.channels["nll"] != 0)).sum() / batch.denominators["nll"]
    assert loss.value.item() == pytest.approx(nll.item(), abs=1e-6)


def test_rollouts_are_the_experts(tiny_policy):
    _, groups = sampled(tiny_policy)
    for group in groups:
        [rollout] = group.rollouts
        assert (
            rollout.text == group.problem.solutions[0] == tiny_policy.decode(rollout.completion_ids)
        )
        assert rollout.completion_ids[-1] in tiny_policy.stop_ids and rollout.verdict.correct
        assert (
            rollout.origin == "expert"
            and rollout.borrowed == len(rollout.completion_ids)
            and all(map(math.isnan, rollout.logprobs))
        )


def test_an_update_makes_the_solutions_likelier(tiny_policy):
    learner, task = Learner(tiny_policy, OptimConfig(lr=1e-2)), toys.FirstCharacter("7", max_new=2)
    losses = [
        update(SFT(), learner, task, task.problems("train", 8, 0), (0, step), rows=4).metrics["nll"]
        for step in range(25)
    ]
    assert losses[0] > 4 and losses[-1] < 0.5  # ln 128 = 4.85 untrained


def test_problems_without_a_solution_are_left_out(tiny_policy):
    task = Arithmetic(steps=1)
    one, two = task.problems("train", 2, 0)
    learner, method = Learner(tiny_policy), SFT()
    record = update(method, learner, task, [one, replace(two, solutions=())], (0,))
    assert [g.problem.id for g in record.groups] == [one.id]
    with pytest.raises(WorkbenchError, match="expert solutions"):
        method.sample(learner, task, [replace(two, solutions=())], (0,))
    assert (
        len(
            SFT(k=2)
            .sample(learner, task, [replace(one, solutions=("1", "2", "3"))], (0,))[0]
            .rollouts
        )
        == 2
    )


def test_a_solution_longer_than_the_context_is_refused():
    learner, task = Learner(toys.tiny_policy(context=16)), Arithmetic(steps=4)
    with pytest.raises(WorkbenchError, match="context of 16"):
        SFT().sample(learner, task, task.problems("train", 1, 0), (0,))
    with pytest.raises(WorkbenchError, match="k of 1"):
        SFT(k=0)
