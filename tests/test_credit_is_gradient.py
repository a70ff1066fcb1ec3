"""The credit is the gradient: the number drawn on a token is the coefficient of grad log pi(y_t) in
-grad L, times the number of tokens.

A new method is one line in ``METHODS`` (or ``DISTILLED``). What is tested where:

- here, on given scores, for every method: the coefficient of each token's log-prob in -L by
  autograd, also off policy and in micro-batches. A term
  in D(pi || q) must have its own sampled-token coefficient ``scores.divergence_credit`` times what
  D counts in the loss (importance weight and mean);
- here, on a model, for ``METHODS``: the gradient of the parameters is the drawn numbers times grad
  log pi(y_t), nothing else;
- the logit forms of SDPO and OPD move the whole vocabulary, so for ``DISTILLED`` that last identity
  holds in expectation over y_t ~ pi: here on a
  model with every token of the vocabulary in the place of y_t, and in tests/test_sdpo.py on one
  token out of four with clip and importance weights;
- the entropy bonus of TRAPO and LUFFY has no coefficient of the sampled token and is not drawn
  (tests/test_trapo.py).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import toys

from workbench.core import Group, Scores
from workbench.corrections.replay import Replay
from workbench.inspection.readings import inspect_group
from workbench.methods.cast import CAST
from workbench.methods.credit import CREDIT
from workbench.methods.grpo import GRPO
from workbench.methods.kd import KD
from workbench.methods.luffy import LUFFY
from workbench.methods.opd import OPD
from workbench.methods.rlcsd import RLCSD
from workbench.methods.rlrt import RLRT
from workbench.methods.rlsd import RLSD
from workbench.methods.scope import SCOPE
from workbench.methods.sdpo import SDPO
from workbench.methods.sft import SFT
from workbench.methods.tapo import TAPO
from workbench.methods.trapo import TRAPO
from workbench.model.batch import collate, score
from workbench.model.learner import Learner
from workbench.training.update import update

METHODS = {
    "GRPO": GRPO(),
    "GRPO, sequence mean, KL to the reference": GRPO(aggregate="sequence", beta=0.3),
    "Dr.GRPO": GRPO(scale="none", aggregate="constant", constant=11),
    "GRPO, wide clip": GRPO(eps_lo=0.5, eps_hi=1.0),
    "SFT": SFT(),
    "KD": KD(),
    "SDPO, token form": SDPO(form="token"),
    "SDPO, sequence form, mixed with GRPO": SDPO(form="sequence", mix=0.9, aggregate="sequence"),
    "SRPO, token form": SDPO(form="token", srpo=True),
    "TAPO": TAPO(n_pos=1, n_neg=1, prefix="none"),
    "TAPO, prefix masked": TAPO(n_pos=1, n_neg=1, prefix="masked", lam=0.5),
    "TAPO, merged advantages, no suppression": TAPO(
        n_pos=1, n_neg=1, prefix="none", dae=False, ots=False
    ),
    "TAPO, imitation": TAPO(n_pos=1, n_neg=1, prefix="none", sft=True, aggregate="sequence"),
    "TRAPO": TRAPO(entropy=0.0),
    "TRAPO, every copy": TRAPO(preset="released-code", shared="every", alpha=0.5, entropy=0.0),
    "TRAPO, plain SFT": TRAPO(prefix="sft", entropy=0.0),
    "TRAPO, micro-groups only": TRAPO(prefix="none", entropy=0.0),
    "LUFFY": LUFFY(entropy=0.0),
    "SCOPE": SCOPE(),
    "SCOPE, as in the paper": SCOPE(normalise="paper", tau=0.5),
    "OPD": OPD(k=4),
    "AntiSD, token form": SDPO(form="token", ascend=True),
    "SC-SDPO, token form": SDPO(form="token", by_pass_rate=True),
    "RLSD": RLSD(),
    "RLCSD": RLCSD(),
    "RLRT": RLRT(),
    "CAST": CAST(),
    "CREDIT": CREDIT(),
    "OPD from the reference": OPD(k=4, teacher="reference"),
}
DISTILLED = {
    "SDPO, reverse KL": SDPO(a=1.0, top_k=20),
    "SDPO, Jensen-Shannon": SDPO(top_k=0),
    "SDPO, forward KL": SDPO(a=0.0, top_k=5),
    "SDPO, mixed with GRPO": SDPO(mix=0.9, aggregate="sequence"),
    "SRPO": SDPO(srpo=True),
    "AntiSD": SDPO(ascend=True, mix=0.5),
    "ROSD": SDPO(onset=True, mix=0.2),
    "SC-SDPO": SDPO(by_pass_rate=True),
    "OPD, all tokens": OPD(k=4, form="logit", top_k=0),
    "OPD, top 5": OPD(k=4, form="logit", top_k=5),
    "OPD from the reference, all tokens": OPD(k=4, teacher="reference", form="logit"),
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
each_distilled = pytest.mark.parametrize("method", DISTILLED.values(), ids=DISTILLED)
all_methods = pytest.mark.parametrize(
    "method", [*METHODS.values(), *DISTILLED.values()], ids=[*METHODS, *DISTILLED]
)


def given(rollout, borrowed: int, origin: str):
    """The rollout with its first tokens written by somebody else."""
    return replace(
        rollout,
        borrowed=borrowed,
        origin=origin,
        logprobs=(math.nan,) * borrowed + rollout.logprobs[borrowed:],
    )


def some_groups() -> list[Group]:
    """Own rollouts; two that go on from one expert prefix; an expert's trace; corrections, one of
    which begins as a wrong rollout does.
    """
    *own, a, b, c = toys.group((4, 7, 2, 5, 6, 3), (1, 0, 0, 1, 0, 1)).rollouts
    b = replace(b, completion_ids=a.completion_ids[:3] + b.completion_ids[3:])
    guided = Group(
        toys.QUESTION, (*own, given(a, 3, "guided"), given(b, 3, "guided"), given(c, 3, "expert"))
    )
    right, wrong, x, y = toys.group((3, 5, 6, 4), (0, 1, 1, 0), seed=9).rollouts
    x = replace(x, completion_ids=right.completion_ids[:2] + x.completion_ids[2:])
    corrected = Group(
        toys.QUESTION, (right, wrong, given(x, 6, "correction"), given(y, 4, "correction"))
    )
    return [guided, corrected, toys.group((2, 2), (1, 1), seed=20)]


def learner_of(hidden: int = 32) -> Learner:
    return Learner(toys.tiny_policy(hidden=hidden), expert=toys.tiny_policy(seed=1))


def disturbed(hidden: int = 16) -> tuple[Learner, Group]:
    """A learner away from its reference and its teacher, so that no term is zero, and a group under
    its own prompt.
    """
    learner = learner_of(hidden)
    with torch.no_grad():
        for p in learner.parameters:
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    prompt = learner.policy.prompt_ids(toys.QUESTION.messages)
    rollouts = [r for group in some_groups()[:2] for r in group.rollouts]
    return learner, Group(toys.QUESTION, tuple(replace(r, prompt_ids=prompt) for r in rollouts))


@all_methods
@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize("off_policy", [False, True])
def test_the_coefficient_of_every_token_by_autograd(method, rows, off_policy):
    credits = method.credit(some_groups(), disturbed()[0])
    tokens = sum(len(c.rollout.completion_ids) for c in credits)
    torch.manual_seed(0)
    drawn = 0.0
    for batch in collate(credits, 0, rows):
        shape = batch.mask.shape
        logp, divergence = (
            (x * batch.mask).requires_grad_(True)
            for x in (-3 * torch.rand(shape), torch.rand(shape))
        )
        # ratios far enough from 1 for the clip to hold some back
        old = logp.detach() + 0.4 * torch.randn(shape) if off_policy else None
        reference, teacher, toward = (
            logp.detach() + 0.5 * torch.randn(shape),
            logp.detach() - torch.rand(shape),
            torch.randn(shape),
        )
        scores = Scores(
            logp,
            torch.rand(shape),
            reference,
            teacher,
            divergence,
            toward * batch.mask,
            torch.rand(shape),
            torch.rand(shape),
        )
        loss = method.loss(scores, replace(batch, old_logp=old))
        gradient, through = torch.autograd.grad(
            loss.value, (logp, divergence), allow_unused=True, materialize_grads=True
        )
        torch.testing.assert_close(
            loss.credit[batch.mask], (through * toward - gradient)[batch.mask] * tokens
        )
        torch.testing.assert_close(loss.per_token.sum(), loss.value.detach())
        drawn = max(drawn, float(loss.credit[batch.mask].abs().max()))
    assert drawn > 1e-2


def gradients(method, learner, group) -> list[torch.Tensor]:
    """grad L of each parameter, with the group as the whole batch."""
    [batch] = collate(method.credit([group], learner), learner.policy.pad_id)
    method.loss(score(learner, batch, method), batch).value.backward()
    felt = [p.grad.clone() for p in learner.parameters]
    learner.optimizer.zero_grad()
    assert max(float(g.abs().max()) for g in felt) > 1e-4
    return felt


def log_probs(learner, rollout) -> torch.Tensor:
    """[T, V] by Hugging Face alone."""
    ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    return learner.policy.model(ids).logits[0, len(rollout.prompt_ids) - 1 : -1].log_softmax(-1)


@each_method
def test_what_is_drawn_is_what_the_parameters_feel(method):
    """-grad L over the parameters = sum_t credit_t / N grad log pi(y_t), with the credit as the
    viewer gets it and log pi by Hugging Face alone.
    """
    learner, group = disturbed()
    task = toys.FirstCharacter()
    drawn = inspect_group(learner, group, task, {"m": method}).layers["m credit"]
    felt = gradients(method.for_task(task), learner, group)
    tokens, by_hand = sum(map(len, drawn)), 0.0
    for rollout, credit in zip(group.rollouts, drawn):
        logp = log_probs(learner, rollout).gather(-1, torch.tensor(rollout.completion_ids)[:, None])
        by_hand = (
            by_hand + (torch.from_numpy(np.ascontiguousarray(credit)) * logp[:, 0]).sum() / tokens
        )
    by_hand.backward()
    for p, gradient in zip(learner.parameters, felt):
        torch.testing.assert_close(p.grad, -gradient, atol=2e-6, rtol=2e-4)


@each_distilled
def test_what_is_drawn_is_what_the_parameters_feel_in_expectation(method):
    """-grad L over the parameters = sum_t E credit_t(y) / N grad log pi(y), over every y ~ pi in
    the place of token t, each drawn as if it were the sampled one. (GRPO's part does not depend on
    y, so it is only the sampled token's.) Nobody sampled these: importance weights 1.
    """
    learner, group = disturbed()
    group = replace(
        group, rollouts=tuple(given(r, len(r.completion_ids), "policy") for r in group.rollouts)
    )
    felt = gradients(method, learner, group)
    [batch] = collate(method.credit([group], learner), learner.policy.pad_id)
    with torch.no_grad():
        own = method.loss(score(learner, batch, method), batch).credit
        by_token = [
            method.loss(
                score(learner, replace(batch, targets=torch.full_like(batch.targets, v)), method),
                batch,
            ).credit
            for v in range(128)
        ]
    by_token, tokens, by_hand = torch.stack(by_token, -1), batch.denominators["tokens"], 0.0
    base = method.grpo if isinstance(method, SDPO) and (method.mix or method.srpo) else None
    for i, rollout in enumerate(group.rollouts):
        n, logp = len(rollout.completion_ids), log_probs(learner, rollout)
        pg = (
            torch.zeros(n)
            if base is None
            else (method.mix or 1.0)
            * (batch.channels["pg"] * base.token_weights(batch))[i, :n]
            * tokens
        )
        by_hand = (
            by_hand + (logp.exp().detach() * (by_token[i, :n] - pg[:, None]) * logp).sum() / tokens
        )
        by_hand = (
            by_hand
            + (pg * logp.gather(-1, torch.tensor(rollout.completion_ids)[:, None])[:, 0]).sum()
            / tokens
        )
        torch.testing.assert_close(
            own[i, :n], by_token[i].gather(-1, batch.targets[i, :, None])[:n, 0]
        )
    by_hand.backward()
    for p, gradient in zip(learner.parameters, felt):
        torch.testing.assert_close(p.grad, -gradient, atol=2e-6, rtol=2e-3)


class Task(toys.FirstCharacter):
    def synthesis(self, problem, wrong, right):
        return problem.messages


@all_methods
@pytest.mark.filterwarnings("ignore:TAPO does little more than GRPO here")
def test_what_a_step_records_is_what_the_viewer_draws(method):
    """The credit of ``update`` and the layer of ``inspect_group`` are one number, when the group
    is the whole batch: a fresh one, one with prefixes and an expert's trace, one with corrections.
    """
    task = Task(toys.HALF, max_new=3)
    problems = task.problems("train", 1, 3)
    for which in (method, *(Replay(method, (group,)) for group in some_groups()[:2])):
        record = update(
            which, learner_of(), task, problems if which is method else [], (0,), rows=3
        )
        drawn = inspect_group(learner_of(), record.groups[0], task, {"m": method}).layers[
            "m credit"
        ]
        for realised, row in zip(record.credit[0], drawn, strict=True):
            np.testing.assert_allclose(realised, row, atol=2e-5)
