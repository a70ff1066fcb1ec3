"""On-policy distillation against enumeration, hand arithmetic, autograd, Hugging Face's whole
distributions, and known teachers.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import tiny
import torch
import toys
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from workbench.core import Credit, Group, WorkbenchError
from workbench.methods.opd import OPD, teacher_logprobs
from workbench.methods.sdpo import SDPO
from workbench.model import batch as batches
from workbench.model.batch import collate, rescore, score
from workbench.model.learner import Learner, OptimConfig
from workbench.model.policy import Policy
from workbench.tasks.arithmetic import Arithmetic
from workbench.training.update import update

TASK = Arithmetic(steps=1)
FORMS = [{}, {"form": "logit", "top_k": 0}, {"form": "logit", "top_k": 5}]
each_form = pytest.mark.parametrize("form", FORMS, ids=["token", "all tokens", "top 5"])


def pair(seed=3):
    """A learner whose expert is another random model."""
    return Learner(tiny.policy(), OptimConfig(lr=3e-3), expert=tiny.policy(seed=seed))


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
        # at the sampler's temperature, 1
        np.testing.assert_allclose(student, r.logprobs, atol=1e-4)


@each_form
def test_a_teacher_equal_to_the_policy_teaches_exactly_nothing(form):
    task = toys.FirstCharacter(max_new=4)
    problems = task.problems("train", 3, 0)
    for learner, teacher in (
        (Learner(tiny.policy(), expert=tiny.policy()), "expert"),
        (Learner(tiny.policy()), "reference"),
        (Learner(tiny.policy(), lora=2), "reference"),
    ):
        record = update(OPD(k=4, teacher=teacher, **form), learner, task, problems, (0,), rows=4)
        assert (
            record.metrics["loss"] == 0
            and record.metrics["grad_norm"] == 0
            and record.metrics["credit_mean"] == 0
        )


def test_expected_gradient_is_that_of_the_reverse_kl():
    """Two tokens over three, enumerated.

    Per token log-ratios (no sum over what follows) are the gradient of sum_t E KL(pi_t || q_t) with
    the prefixes held: so it is compared with that, on the policy's own prefixes.
    """
    logits = torch.randn(
        4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_(True)
    teacher = torch.randn(
        4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).log_softmax(-1)
    p = logits.log_softmax(-1)
    # chance of each of the 4 contexts
    reach = torch.cat([torch.ones(1, dtype=torch.float64), p[0].exp().detach()])
    [truth] = torch.autograd.grad(
        (reach * (p.exp() * (p - teacher)).sum(-1)).sum() / 2, logits, retain_graph=True
    )
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
        loss = method.loss(
            replace(scores, logp=logp),
            replace(batch, old_logp=(logp.detach() - shift) * batch.mask) if shift else batch,
        )
        [grad] = torch.autograd.grad(loss.value, logp)
        torch.testing.assert_close(-grad * tokens, loss.credit, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            loss.credit, batch.channels["pg"] * np.exp(shift) * batch.mask, atol=1e-4, rtol=1e-4
        )
        total += float(loss.value.detach())
    assert total == pytest.approx(
        -sum(c.pg.sum() for c in credits) / tokens * np.exp(shift), rel=1e-4
    )


def parameter_gradients(method, learner, groups, rows=None) -> list[torch.Tensor]:
    for batch in collate(method.credit(groups, learner), learner.policy.pad_id, rows):
        method.loss(score(learner, batch, method), batch).value.backward()
    found = [p.grad.clone() for p in learner.parameters if p.grad is not None]
    learner.optimizer.zero_grad()
    return found


@each_form
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_micro_batches_padding_and_order_do_not_matter(form, rows):
    learner, method = pair(), OPD(**form)
    groups = [toys.group([3, 1, 6], [1, 0, 0]), toys.group([2, 4], [0, 1], seed=9)]
    turned = [Group(g.problem, g.rollouts[::-1]) for g in groups[::-1]]
    whole = parameter_gradients(method, learner, groups)
    for a, b in zip(whole, parameter_gradients(method, learner, turned, rows), strict=True):
        assert a.abs().max() > 1e-3
        torch.testing.assert_close(a, b, atol=1e-5 * float(a.abs().max()), rtol=1e-4)


# ---- the logit form


def whole_distributions(model, rollout) -> torch.Tensor:
    """[T, V] log-probabilities by Hugging Face alone."""
    ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    return model(ids).logits[0, len(rollout.prompt_ids) - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("top_k", [0, 3, 128, 500])
def test_logit_form_is_the_kl_of_whole_distributions(top_k):
    """Value, gradient and tail by Hugging Face and autograd, the expert a network of another width.

    Top 3: the others are one bucket.
    """
    learner = Learner(tiny.policy(), expert=tiny.policy(seed=3, hidden_size=48))
    method, groups = (
        OPD(form="logit", top_k=top_k),
        [toys.group([3, 6], [1, 0]), toys.group([4], [0], seed=9)],
    )
    ours = parameter_gradients(method, learner, groups)
    [batch] = collate(method.credit(groups, learner), learner.policy.pad_id)
    loss = method.loss(score(learner, batch, method), batch)

    values, tails = [], []
    for rollout in (r for g in groups for r in g.rollouts):
        p, q = (
            whole_distributions(learner.policy.model, rollout),
            whole_distributions(learner.expert.model, rollout).detach(),
        )
        if 0 < top_k < 128:
            top = p.topk(top_k).indices
            p, q = (
                torch.cat(
                    [x.gather(-1, top), (1 - x.gather(-1, top).exp().sum(-1, keepdim=True)).log()],
                    -1,
                )
                for x in (p, q)
            )
            tails.append(p[:, -1].exp())
        values.append((p.exp() * (p - q)).sum(-1))
    value = torch.cat(values).mean()
    assert loss.value.item() == pytest.approx(value.item(), rel=1e-4) and loss.metrics[
        "kl_teacher"
    ] == pytest.approx(value.item(), rel=1e-4)
    assert loss.metrics["tail"] == pytest.approx(
        torch.cat(tails).mean().item() if tails else 0.0, abs=1e-5
    )
    value.backward()
    for p, found in zip(learner.parameters, ours, strict=True):
        torch.testing.assert_close(found, p.grad, atol=1e-5, rtol=1e-3)
    assert value > 0.5


def test_the_token_form_is_a_sample_of_the_logit_form():
    """One credit on the sampled token; that its expectation is the gradient of the whole loss is in
    test_credit_is_gradient.py.
    """
    learner, group, method = pair(), toys.group([3, 5], [1, 0]), OPD(form="logit", top_k=0)
    [batch] = collate(method.credit([group], learner), 0)
    credit = method.loss(score(learner, batch, method), batch).credit
    for row, sampled in zip(credit, OPD().credit([group], learner), strict=True):
        np.testing.assert_allclose(row[: len(sampled.pg)], sampled.pg, atol=1e-5)


def test_opsd_is_this_with_another_prompt_for_the_teacher():
    """SDPO with a frozen teacher and reverse KL, told nothing: OPD from the reference."""
    learner = Learner(tiny.policy())
    with torch.no_grad():
        learner.parameters[0].add_(0.05)
    mine, theirs = (
        OPD(form="logit", top_k=7, teacher="reference"),
        SDPO(a=1.0, top_k=7, teacher="frozen"),
    )
    [batch] = collate(mine.credit([toys.group([3, 6], [1, 0])], learner), learner.policy.pad_id)
    # nobody sampled these: importance weights 1
    batch = replace(batch, sampler_logp=torch.full_like(batch.sampler_logp, torch.nan))
    a, b = (method.loss(score(learner, batch, method), batch) for method in (mine, theirs))
    torch.testing.assert_close(a.per_token, b.per_token)
    torch.testing.assert_close(a.credit, b.credit)
    assert a.value > 1e-3


@pytest.mark.parametrize("form", [{}, {"form": "logit", "top_k": 20}], ids=["token", "top 20"])
def test_the_policy_becomes_its_teacher(form):
    """KL(pi || q) on its own samples, or its estimate, falls by more than half."""
    task, learner = toys.FirstCharacter("7", max_new=2), pair()
    found = [
        update(OPD(k=16, **form), learner, task, task.problems("train", 4, 0), (0, step)).metrics[
            "kl_teacher"
        ]
        for step in range(40)
    ]
    assert np.mean(found[-5:]) < 0.5 * np.mean(found[:5])


# ---- teachers


def test_no_teacher_or_another_vocabulary_is_refused():
    with pytest.raises(WorkbenchError, match="OPD learns from a stronger model .* --teacher"):
        OPD().sample(Learner(tiny.policy()), TASK, TASK.problems("train", 1, 0), (0,))
    larger, renamed, turned = tiny.policy(), tiny.policy(), tiny.policy()
    larger.tokenizer.add_tokens(["<new>"])
    renamed.tokenizer = rewritten(renamed.tokenizer, {"7": "\u00e9"})
    turned.tokenizer = rewritten(turned.tokenizer, {"7": "8", "8": "7"})
    assert len(turned.tokenizer) == len(renamed.tokenizer) == len(tiny.policy().tokenizer)
    for other in (larger, renamed, turned):
        with pytest.raises(
            WorkbenchError,
            match="^the teacher llama has another vocabulary than llama: it cannot score its "
            "tokens$",
        ):
            Learner(tiny.policy(), expert=other)


def rewritten(tokenizer, names):
    """The tokenizer with some tokens called otherwise: the same size, the same ids."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"]["vocab"] = {
        names.get(token, token): i for token, i in content["model"]["vocab"].items()
    }
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), eos_token=tokenizer.eos_token
    )
    made.chat_template = tokenizer.chat_template
    return made


def test_heads_padded_to_other_sizes():
    """Rows after the tokenizer's last token are no tokens, the policy's as little as the teacher's:
    the two are compared over the others.
    """
    narrow, wide = tiny.policy(seed=3), tiny.policy(seed=3, vocab_size=136)
    _compare_heads(Learner(tiny.policy(), expert=wide), wide)
    learner = Learner(tiny.policy(vocab_size=136), expert=narrow)
    _compare_heads(learner, narrow)
    assert len(OPD().credit([toys.group([3, 6], [1, 0])], learner)) == 2


def _compare_heads(learner, teacher):
    method, groups = OPD(form="logit", top_k=0), [toys.group([3, 6], [1, 0])]
    [batch] = collate(method.credit(groups, learner), learner.policy.pad_id)
    loss, n = method.loss(score(learner, batch, method), batch), batch.mask.sum()
    for row, rollout in zip(loss.per_token, (c.rollout for c in batch.credits)):
        p, q = (
            whole_distributions(learner.policy.model, rollout)[:, :128].log_softmax(-1),
            whole_distributions(teacher.model, rollout)[:, :128].log_softmax(-1),
        )
        torch.testing.assert_close(
            (row * n)[: len(p)], (p.exp() * (p - q)).sum(-1).detach(), atol=1e-5, rtol=1e-4
        )


@each_form
def test_the_disabled_adapter_is_the_base_as_a_teacher(form):
    """LoRA, away from where it began: the reference teaches what the base as an expert does, and
    the adapter is on again after.
    """
    learner, groups = (
        Learner(tiny.policy(), lora=2, expert=tiny.policy()),
        [toys.group([3, 6], [1, 0])],
    )
    tiny.shake_adapter(learner.policy.model)
    before = rescore(learner.policy, groups[0].rollouts)[0][0]
    by_base, by_reference = (
        parameter_gradients(OPD(teacher=teacher, **form), learner, groups)
        for teacher in ("expert", "reference")
    )
    for a, b in zip(by_base, by_reference, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    assert max(float(g.abs().max()) for g in by_base) > 1e-2
    np.testing.assert_array_equal(before, rescore(learner.policy, groups[0].rollouts)[0][0])


def test_the_teacher_is_asked_in_batches_and_without_gradient(monkeypatch):
    asked, states = [], batches.states

    def watched(policy, batch):
        asked.append((policy, len(batch.rows), torch.is_grad_enabled()))
        return states(policy, batch)

    monkeypatch.setattr(batches, "states", watched)
    learner = Learner(tiny.policy(), expert=tiny.policy(seed=3))
    learner.expert.model.requires_grad_(True)
    found = teacher_logprobs(
        learner, [toys.rollout(n % 5 + 1, seed=n) for n in range(130)], "expert"
    )
    assert (
        [n for _, n, _ in asked] == [64, 64, 2]
        and not any(grad for *_, grad in asked)
        and {id(p) for p, *_ in asked} == {id(learner.expert)}
    )
    assert [len(row) for row in found] == [n % 5 + 1 for n in range(130)]
    record = update(OPD(k=2, form="logit"), learner, TASK, TASK.problems("train", 2, 0), (0,))
    assert record.metrics["grad_norm"] > 0 and all(
        p.grad is None for p in learner.expert.model.parameters()
    )


def test_the_reference_is_the_policy_as_loaded():
    learner = Learner(tiny.policy(), lora=2)
    tiny.shake_adapter(learner.policy.model)
    rollouts = [
        r
        for g in OPD(k=2, teacher="reference").sample(
            learner, TASK, TASK.problems("train", 2, 0), (0,)
        )
        for r in g.rollouts
    ]
    for found, (base, _), (own, _) in zip(
        teacher_logprobs(learner, rollouts, "reference"),
        rescore(tiny.policy(), rollouts),
        rescore(learner.policy, rollouts),
    ):
        np.testing.assert_allclose(found, base, atol=1e-4)
        assert np.abs(found - own).max() > 0.01


def broken(token: int) -> Policy:
    """Not a number from where it reads ``token``."""
    policy = tiny.policy(seed=3, tie_word_embeddings=False)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[token] = float("nan")
    return policy


def test_what_the_teacher_cannot_score_is_none_and_never_zero():
    """A short context and a broken weight; order is kept."""
    rollouts = [toys.rollout(n) for n in (5, 40, 8)]
    a, b, c = teacher_logprobs(
        Learner(tiny.policy(), expert=tiny.policy(seed=3, max_position_embeddings=24)),
        rollouts,
        "expert",
    )
    assert len(a) == 5 and b is None and len(c) == 8
    assert teacher_logprobs(
        Learner(tiny.policy(), expert=broken(rollouts[0].completion_ids[1])), rollouts[:1], "expert"
    ) == [None]


@each_form
def test_what_the_teacher_cannot_score_is_left_out_and_counted(form):
    method, group = OPD(k=2, **form), toys.group([5, 40, 8], [1, 0, 0])
    short = Learner(tiny.policy(), expert=tiny.policy(seed=3, max_position_embeddings=24))
    credits = method.credit([group], short)
    assert [c.rollout for c in credits] == [
        group.rollouts[0],
        group.rollouts[2],
    ] and method.diagnose([group], credits) == {"teacher_failed": 1.0}
    unreadable = (
        set(group.rollouts[0].completion_ids[:-1])
        - set(group.rollouts[1].completion_ids)
        - set(group.rollouts[2].completion_ids)
    )
    odd = Learner(tiny.policy(), expert=broken(min(unreadable)))
    assert [c.rollout for c in method.credit([group], odd)] == list(group.rollouts[1:])
    assert all(bool(g.isfinite().all()) for g in parameter_gradients(method, odd, [group]))
    record = update(
        method,
        Learner(tiny.policy(), expert=tiny.policy(max_position_embeddings=6)),
        TASK,
        TASK.problems("train", 2, 0),
        (0,),
    )
    # nobody could be scored: nothing is learned
    assert record.metrics["teacher_failed"] == 4 and record.metrics["grad_norm"] == 0


@pytest.mark.parametrize(
    "options", [{"k": 0}, {"teacher": "base"}, {"form": "sequence"}, {"top_k": -1}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(WorkbenchError, match=next(iter(options))):
        OPD(**options)
