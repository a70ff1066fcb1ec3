"""On-policy distillation against enumeration, hand arithmetic, autograd, and a teacher whose distribution is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

import tiny
import toys
from workbench.batch import collate, rescore, score
from workbench.core import Credit, WorkbenchError
from workbench.methods.opd import OPD, teacher_logprobs
from workbench.policy import Learner, Optimiser, Policy
from workbench.tasks.arithmetic import Arithmetic
from workbench.train import update

TASK = Arithmetic(steps=1)


def pair(seed=3):
    """A learner whose expert is another random model."""
    return Learner(tiny.policy(), Optimiser(lr=3e-3), expert=tiny.policy(seed=seed))


@pytest.mark.parametrize("k", [1, 4])
def test_credit_is_the_teachers_log_ratio(k):
    learner, method = pair(), OPD(k=k)
    groups = method.sample(learner, TASK, TASK.problems("train", 3, 0), (0,))
    rollouts = [r for g in groups for r in g.rollouts]
    assert len(rollouts) == 3 * k
    credits = method.credit(groups, learner)
    scored = zip(rescore(learner.expert, rollouts), rescore(learner.policy, rollouts))
    for credit, r, ((teacher, _), (student, _)) in zip(credits, rollouts, scored, strict=True):
        assert credit.rollout is r and not credit.nll.any() and not credit.kl.any()
        np.testing.assert_allclose(credit.pg, teacher - student, atol=1e-5)
        np.testing.assert_allclose(student, r.logprobs, atol=1e-4)  # at the sampler's temperature, 1


def test_a_teacher_equal_to_the_policy_teaches_exactly_nothing():
    learner = Learner(tiny.policy(), expert=tiny.policy())
    record = update(OPD(k=4), learner, TASK, TASK.problems("train", 3, 0), (0,), rows=4)
    assert record.metrics["loss"] == 0 and record.metrics["grad_norm"] == 0 and record.metrics["credit_mean"] == 0
    record = update(OPD(k=4, teacher="reference"), Learner(tiny.policy()), TASK, TASK.problems("train", 3, 0), (0,), rows=4)
    assert record.metrics["grad_norm"] == 0


def test_expected_gradient_is_that_of_the_reverse_kl():
    """Two tokens over three, enumerated. Per token log-ratios (no sum over what follows) are the gradient of sum_t E KL(pi_t || q_t) with the
    prefixes held: so it is compared with that, on the policy's own prefixes."""
    logits = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    teacher = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    p = logits.log_softmax(-1)
    reach = torch.cat([torch.ones(1, dtype=torch.float64), p[0].exp().detach()])  # chance of each of the 4 contexts
    [truth] = torch.autograd.grad((reach * (p.exp() * (p - teacher)).sum(-1)).sum() / 2, logits, retain_graph=True)
    method, total = OPD(), 0.0
    rollout = toys.rollout(2)
    for a, b in product(range(3), repeat=2):
        where = [(0, a), (1 + a, b)]
        student, target = (torch.stack([table[i] for i in where]) for table in (p, teacher))
        [batch] = collate([Credit.of(rollout, pg=(target - student.detach()).numpy())], 0)
        loss = method.loss(toys.scores_of(batch, {"logp": {id(rollout): student}}), batch)
        total = total + student.sum().exp().detach() * loss.value
    [estimate] = torch.autograd.grad(total, logits)
    torch.testing.assert_close(estimate, truth, atol=1e-6, rtol=1e-5)
    assert truth.abs().max() > 0.01


@pytest.mark.parametrize("rows", [None, 1, 3])
@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_credit_is_the_gradient_in_any_micro_batch(rows, shift):
    learner, method = pair(), OPD(k=2)
    groups = method.sample(learner, TASK, TASK.problems("train", 2, 0), (0,))
    credits = method.credit(groups, learner)
    whole = collate(credits, learner.policy.pad_id)[0]
    tokens, total = whole.denominators["tokens"], 0.0
    for batch in collate(credits, learner.policy.pad_id, rows):
        scores = score(learner, batch, method)
        logp = scores.logp.detach().requires_grad_(True)
        loss = method.loss(replace(scores, logp=logp), replace(batch, old=(logp.detach() - shift) * batch.mask) if shift else batch)
        [grad] = torch.autograd.grad(loss.value, logp)
        torch.testing.assert_close(-grad * tokens, loss.credit, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(loss.credit, batch.channels["pg"] * np.exp(shift) * batch.mask, atol=1e-4, rtol=1e-4)
        total += float(loss.value.detach())
    assert total == pytest.approx(-sum(c.pg.sum() for c in credits) / tokens * np.exp(shift), rel=1e-4)


def test_the_policy_becomes_its_teacher():
    """Mean log-ratio on its own samples, the estimate of KL(pi || q), falls by more than half."""
    task, learner = toys.FirstCharacter("7", max_new=2), pair()
    found = [update(OPD(k=16), learner, task, task.problems("train", 4, 0), (0, step)).metrics["kl_teacher"] for step in range(40)]
    assert np.mean(found[-5:]) < 0.5 * np.mean(found[:5])


# ---- teachers

def test_no_teacher_or_another_vocabulary_is_refused():
    with pytest.raises(WorkbenchError, match="OPD learns from a stronger model .* --teacher"):
        OPD().sample(Learner(tiny.policy()), TASK, TASK.problems("train", 1, 0), (0,))
    other = tiny.policy()
    other.tokenizer.add_tokens(["<new>"])
    with pytest.raises(WorkbenchError, match="another vocabulary"):
        Learner(tiny.policy(), expert=other)


def test_the_reference_is_the_policy_as_loaded():
    learner = Learner(tiny.policy(), lora=2)
    tiny.shake_adapter(learner.policy.model)
    rollouts = [r for g in OPD(k=2, teacher="reference").sample(learner, TASK, TASK.problems("train", 2, 0), (0,)) for r in g.rollouts]
    for found, (base, _), (own, _) in zip(teacher_logprobs(learner, rollouts, "reference"), rescore(tiny.policy(), rollouts),
                                          rescore(learner.policy, rollouts)):
        np.testing.assert_allclose(found, base, atol=1e-4)
        assert np.abs(found - own).max() > 0.01


def test_what_the_teacher_cannot_score_is_left_out_and_counted():
    """A short context and a broken weight: None, never 0; order is kept."""
    short = tiny.policy(seed=3, max_position_embeddings=24)
    learner = Learner(tiny.policy(), expert=short)
    rollouts = [toys.rollout(n) for n in (5, 40, 8)]
    a, b, c = teacher_logprobs(learner, rollouts, "expert")
    assert len(a) == 5 and b is None and len(c) == 8
    broken = tiny.policy(seed=3)
    with torch.no_grad():
        broken.model.get_input_embeddings().weight[rollouts[0].completion_ids[1]] = float("nan")
    assert teacher_logprobs(Learner(tiny.policy(), expert=Policy(broken.model, broken.tokenizer)), rollouts[:1], "expert") == [None]

    group = toys.group([5, 40, 8], [1, 0, 0])
    credits = OPD().credit([group], learner)
    assert [c.rollout for c in credits] == [group.rollouts[0], group.rollouts[2]]
    assert OPD().diagnose([group], credits) == {"teacher_failed": 1.0}
    record = update(OPD(k=2), Learner(tiny.policy(), expert=tiny.policy(max_position_embeddings=6)), TASK, TASK.problems("train", 2, 0), (0,))
    assert record.metrics["teacher_failed"] == 4 and record.metrics["grad_norm"] == 0  # nobody could be scored: nothing is learned


@pytest.mark.parametrize("options", [{"k": 0}, {"teacher": "base"}])
def test_bad_options_are_refused(options):
    with pytest.raises(WorkbenchError, match=next(iter(options))):
        OPD(**options)
