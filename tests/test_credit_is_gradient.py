"""The credit is the gradient: the number drawn on a token is the coefficient of grad log pi(y_t) in -grad L, times the number of tokens.

A new method is one line in ``METHODS`` (what multiplies the sampled token's log-prob is what is tested; the ``kl`` channel's gradient through the whole
distribution has its own tests).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import toys
from workbench.batch import collate, score
from workbench.core import Group, Scores
from workbench.methods.grpo import GRPO
from workbench.methods.sft import SFT
from workbench.policy import Learner
from workbench.readings import inspect_group
from workbench.train import update

METHODS = {
    "GRPO": GRPO(),
    "GRPO, sequence mean, KL to the reference": GRPO(aggregate="sequence", beta=0.3),
    "Dr.GRPO": GRPO(scale="none", aggregate="constant", constant=11),
    "GRPO, wide clip": GRPO(eps_lo=0.5, eps_hi=1.0),
    "SFT": SFT(),
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def some_groups() -> list[Group]:
    return [toys.group((4, 7, 2), (1, 0, 0)), toys.group((3, 5), (0, 1), seed=9), toys.group((2, 2), (1, 1), seed=20)]


@each_method
@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize("off_policy", [False, True])
def test_the_coefficient_of_every_token_by_autograd(method, rows, off_policy):
    credits = method.credit(some_groups(), None)
    tokens = sum(len(c.rollout.completion_ids) for c in credits)
    torch.manual_seed(0)
    for batch in collate(credits, 0, rows):
        shape = batch.mask.shape
        logp = (-3 * torch.rand(shape) * batch.mask).requires_grad_(True)
        old = logp.detach() + 0.4 * torch.randn(shape) if off_policy else None  # ratios far enough from 1 for the clip to hold some back
        scores = Scores(logp, torch.rand(shape), reference=logp.detach() + 0.5 * torch.randn(shape), teacher=logp.detach() - torch.rand(shape))
        loss = method.loss(scores, replace(batch, old=old))
        [gradient] = torch.autograd.grad(loss.value, logp)
        torch.testing.assert_close(loss.credit[batch.mask], -gradient[batch.mask] * tokens)
        torch.testing.assert_close(loss.per_token.sum(), loss.value.detach())


@each_method
def test_what_is_drawn_is_what_the_parameters_feel(method):
    """-grad L over the parameters = sum_t credit_t / N grad log pi(y_t), with the credit as the viewer gets it and log pi by Hugging Face alone."""
    learner = Learner(toys.tiny_policy(hidden=16))
    problem = toys.QUESTION
    prompt = learner.policy.prompt_ids(problem.messages)
    group = Group(problem, tuple(replace(r, prompt_ids=prompt) for r in toys.group((4, 7, 2), (1, 0, 0)).rollouts))
    with torch.no_grad():  # away from the reference, so that its term is not zero
        for p in learner.parameters:
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    drawn = inspect_group(learner, group, toys.FirstCharacter(), {"m": method}).layers["m credit"]

    [batch] = collate(method.credit([group], learner), learner.policy.pad_id)
    method.loss(score(learner, batch, method), batch).value.backward()
    felt = [p.grad.clone() for p in learner.parameters]
    learner.optimiser.zero_grad()

    tokens, by_hand = sum(map(len, drawn)), 0.0
    for rollout, credit in zip(group.rollouts, drawn):
        ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        logp = learner.policy.model(ids).logits[0, len(prompt) - 1: -1].log_softmax(-1).gather(-1, torch.tensor(rollout.completion_ids)[:, None])
        by_hand = by_hand + (torch.from_numpy(np.ascontiguousarray(credit)) * logp[:, 0]).sum() / tokens
    by_hand.backward()
    assert max(float(g.abs().max()) for g in felt) > 1e-4
    for p, gradient in zip(learner.parameters, felt):
        torch.testing.assert_close(p.grad, -gradient, atol=2e-6, rtol=2e-4)


@each_method
def test_what_a_step_records_is_what_the_viewer_draws(method):
    """The painting of ``update`` and the layer of ``inspect_group`` are one number, when the group is the whole batch."""
    task = toys.FirstCharacter(toys.HALF, max_new=3)
    problems = task.problems("train", 1, 3)
    record = update(method, Learner(toys.tiny_policy()), task, problems, (0,), rows=3)
    drawn = inspect_group(Learner(toys.tiny_policy()), record.groups[0], task, {"m": method}).layers["m credit"]
    for painted, row in zip(record.painting[0], drawn, strict=True):
        np.testing.assert_allclose(painted, row, atol=2e-5)
