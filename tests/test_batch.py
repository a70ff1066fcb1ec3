"""Collation and scores against the naive way: one sequence at a time, all logits, log_softmax."""

import numpy as np
import pytest
import tiny
import torch

from workbench.core import Credit, Rollout, Verdict
from workbench.methods.grpo import GRPO
from workbench.model import llama_states
from workbench.model.batch import collate, score
from workbench.model.learner import Learner

# prompt: completion lengths
SHARED = {(30, 31, 32): (5, 1, 9), (40, 41, 42, 43, 44): (4, 4), (50,): (1,), (33, 34): (1, 1)}


def credits_of(groups=SHARED, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for prompt, lengths in groups.items():
        for n in lengths:
            ids = tuple(rng.integers(6, 128, n).tolist())
            pg = rng.normal(size=n) * (rng.random(n) > 0.3)
            made.append(
                Credit.of(
                    Rollout(prompt, ids, tuple(rng.normal(size=n)), "", Verdict(0.0, False)), pg=pg
                )
            )
    return made


def naive(policy, credit):
    """[T] log-probs and entropies of one completion, from the model's own logits."""
    prompt, ids = credit.rollout.prompt_ids, credit.rollout.completion_ids
    log_p = (
        policy.model(input_ids=torch.tensor([prompt + ids]))
        .logits[0, len(prompt) - 1 : -1]
        .log_softmax(-1)
    )
    return log_p.gather(-1, torch.tensor(ids)[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def gradients(learner):
    found = [p.grad.clone() for p in learner.parameters]
    learner.optimizer.zero_grad(set_to_none=True)
    return found


def learner_of(kind, dtype=torch.float64):
    """fp64, so that a wrong term cannot hide in rounding."""
    family = kind.split(",")[0]
    options = {"num_key_value_heads": 4} if kind == "llama" else {}
    if family == "smollm3":
        options["no_rope_layer_interval"] = 2
    learner = Learner(tiny.policy(family, dtype=dtype, **options), lora=4 * ("LoRA" in kind))
    if learner.lora:
        tiny.shake_adapter(learner.policy.model)
    return learner


KINDS = ["llama", "llama, grouped queries", "llama, LoRA", "qwen2", "qwen3, LoRA", "smollm3"]


@pytest.fixture(params=[*KINDS, "olmo2", "gpt_neox"])
def learner(request):
    return learner_of(request.param)


@pytest.mark.parametrize("kept", [llama_states.KEPT, 0], ids=["weights kept", "weights made again"])
@pytest.mark.parametrize("rows", [None, 3, 1], ids=["one batch", "rows of 3", "rows of 1"])
def test_scores_and_gradients_equal_the_naive_way(learner, rows, kept, monkeypatch):
    """Shared and single prompts, ragged completions, a completion of one token; the loss weighs
    every token differently.
    """
    monkeypatch.setattr(llama_states, "KEPT", kept)
    credits = credits_of()

    def weigh(credit, logp):
        return (logp * torch.from_numpy(credit.pg) * torch.cos(torch.arange(len(logp)))).sum()

    want = {id(credit): naive(learner.policy, credit) for credit in credits}
    sum(weigh(credit, want[id(credit)][0]) for credit in credits).backward()
    want_gradients = gradients(learner)
    seen = 0
    for batch in collate(credits, learner.policy.pad_id, rows):
        scores = score(learner, batch)
        assert not scores.logp[~batch.mask].any() and not scores.entropy[~batch.mask].any()
        for credit, logp, entropy in zip(batch.credits, scores.logp, scores.entropy):
            n = len(credit.rollout.completion_ids)
            torch.testing.assert_close(logp[:n], want[id(credit)][0], rtol=0, atol=1e-6)
            torch.testing.assert_close(entropy[:n], want[id(credit)][1], rtol=0, atol=1e-6)
        sum(
            weigh(credit, logp[: len(credit.rollout.completion_ids)])
            for credit, logp in zip(batch.credits, scores.logp)
        ).backward()
        seen += len(batch.credits)
    assert seen == len(credits)
    for ours, theirs in zip(gradients(learner), want_gradients):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("kind", ["llama", "llama, LoRA", "qwen2"])
def test_scores_in_fp32_are_within_1e_5(kind):
    learner = learner_of(kind, torch.float32)
    [batch] = collate(credits_of(), learner.policy.pad_id)
    logp = score(learner, batch).logp
    for credit, row in zip(batch.credits, logp):
        torch.testing.assert_close(
            row[: len(credit.rollout.completion_ids)],
            naive(learner.policy, credit)[0],
            rtol=1e-5,
            atol=1e-5,
        )


def test_the_shared_prompt_is_taken_where_it_should_be(monkeypatch):
    """Llama rollouts of one prompt, and only those."""
    calls, states = [], llama_states.completion_states
    monkeypatch.setattr(
        llama_states,
        "completion_states",
        lambda *args: (calls.append(len(args[1])), states(*args))[1],
    )
    learner = learner_of("llama")
    for batch in collate(credits_of(), 0, 3):
        score(learner, batch)
    assert (
        sum(calls)
        == sum(
            len(b.credits)
            for b in collate(credits_of(), 0, 3)
            if len({c.rollout.prompt_ids for c in b.credits}) < len(b.credits)
        )
        > 0
    )
    calls.clear()
    other = learner_of("gpt_neox")
    score(other, collate(credits_of(), 0)[0])
    assert calls == []


def test_reference_scores_are_those_of_the_weights_as_loaded():
    for kind in ("llama", "llama, LoRA"):
        policy = tiny.policy()
        [batch] = collate(credits_of(), policy.pad_id)
        start = [naive(policy, credit)[0].detach() for credit in batch.credits]
        learner = Learner(policy, lora=4 * (kind == "llama, LoRA"))
        with torch.no_grad():
            for p in learner.parameters:
                p.add_(0.05)
        scores = score(learner, batch, GRPO(beta=0.1))
        for row, reference, logp in zip(start, scores.reference, scores.logp):
            torch.testing.assert_close(reference[: len(row)], row, rtol=0, atol=1e-4)
            assert (logp[: len(row)] - row).abs().max() > 1e-3
        assert not scores.reference.requires_grad and scores.logp.requires_grad


def test_gather_is_the_one_shift():
    """The state at prompt length - 1 + t predicts completion token t."""
    credits = credits_of()
    [batch] = collate(credits, pad_id=0)
    for i, credit in enumerate(credits):
        prompt, ids = credit.rollout.prompt_ids, credit.rollout.completion_ids
        n = len(ids)
        assert batch.gather[i, :n].tolist() == list(range(len(prompt) - 1, len(prompt) - 1 + n))
        assert (
            tuple(batch.input_ids[i, batch.gather[i, :n] + 1].tolist())
            == ids
            == tuple(batch.targets[i, :n].tolist())
        )
        assert batch.mask[i].tolist() == [True] * n + [False] * (batch.mask.shape[1] - n)
        assert (batch.input_ids[i, len(prompt) + n :] == 0).all()
        np.testing.assert_allclose(batch.channels["pg"][i, :n], credit.pg)
        np.testing.assert_allclose(batch.sampler_logp[i, :n], credit.rollout.logprobs, rtol=1e-6)
    assert batch.gather.max() < batch.input_ids.shape[1]


def test_denominators_count_the_whole_batch_in_every_micro_batch():
    credits = credits_of()
    tokens = sum(map(sum, SHARED.values()))
    nonzero = sum(int((credit.pg != 0).sum()) for credit in credits)
    assert 0 < nonzero < tokens
    for rows in (None, 4, 2, 1):
        batches = collate(credits, 0, rows)
        assert sorted(id(c) for b in batches for c in b.credits) == sorted(map(id, credits))
        for batch in batches:
            assert len(batch.credits) <= (rows or len(credits)) and batch.sequences == len(credits)
            assert batch.denominators == {
                "pg": nonzero,
                "nll": 0,
                "kl": 0,
                "kl_right": 0,
                "tokens": tokens,
                "others": 0,
            }


def test_micro_batches_keep_rollouts_of_one_prompt_together():
    groups = {(30 + i,) * (5 - i): (3, 3, 3, 3) for i in range(4)}
    interleaved = [credits_of(groups)[i::4] for i in range(4)]
    batches = collate([credit for part in interleaved for credit in part], 0, 8)
    assert [len({c.rollout.prompt_ids for c in b.credits}) for b in batches] == [2, 2]
    assert collate([], 0, 8) == []


def test_loss_and_gradient_do_not_depend_on_order_micro_batches_or_padding(learner):
    """The sum of the micro-batches' losses is the loss of the batch; a long stranger in the batch
    pads the others and changes nothing.
    """
    credits = credits_of()

    def loss_of(credits, rows):
        total = 0.0
        for batch in collate(credits, learner.policy.pad_id, rows):
            loss = (
                -(score(learner, batch).logp * batch.channels["pg"]).sum()
                / batch.denominators["tokens"]
            )
            loss.backward()
            total += loss.item()
        return total, gradients(learner)

    value, want = loss_of(credits, None)
    stranger = credits_of({(70, 71, 72, 73): (40,)})
    stranger = Credit.of(stranger[0].rollout)  # no credit on any token
    # it does count in the mean
    scale = (sum(map(sum, SHARED.values())) + 40) / sum(map(sum, SHARED.values()))
    for other, rows, factor in (
        (credits[::-1], None, 1),
        (credits, 4, 1),
        (credits[3:] + credits[:3], 2, 1),
        ([stranger, *credits], None, scale),
    ):
        again, found = loss_of(other, rows)
        assert again * factor == pytest.approx(value, rel=1e-5)
        for ours, theirs in zip(found, want):
            torch.testing.assert_close(
                ours * factor, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max())
            )
