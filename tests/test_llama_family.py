"""Llama's relatives by our own code: equal to the model's logits, in each way that it decodes."""

from unittest import mock

import numpy as np
import pytest
import tiny
import torch

from workbench.core import WorkbenchError
from workbench.model import decoder, llama
from workbench.model.learner import Learner
from workbench.rollouts.sampling import generate

PROMPTS = [(30, 31, 32), tuple(range(40, 60)), (50,)]
SEEDS = [[1, 2], [3], [4, 5, 6]]
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
MODELS = {
    "qwen2": {},
    "qwen2, untied, stretched": {
        "tie_word_embeddings": False,
        "rope_parameters": YARN | {"original_max_position_embeddings": 32},
    },
    "qwen3": {"head_dim": 16, "num_key_value_heads": 1},
    "qwen3, untied": {"tie_word_embeddings": False, "attention_bias": True},
    "mistral": {"sliding_window": 64},
    "mistral, all heads, untied": {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "smollm3": {"no_rope_layer_interval": 2},
    "olmo2": {},
    "olmo2, untied": {"tie_word_embeddings": False, "attention_bias": True},
    "llama, all biases": {"attention_bias": True, "mlp_bias": True},
}


def policy_of(name, lora=0, **options):
    policy = tiny.policy(name.split(",")[0], **MODELS[name] | options)
    decoder.check(policy)
    assert policy.fast
    if lora:
        Learner(policy, lora=lora)
        tiny.shake_adapter(policy.model)
    return policy


def assert_close(policy, prompts, groups):
    """Within 1e-5 of the logits' size, from the model's own logits of each row alone."""
    for prompt, samples in zip(prompts, groups):
        for sample in samples:
            with torch.no_grad():
                logits = policy.model(input_ids=torch.tensor([prompt + sample.ids])).logits[0]
            logp = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            wanted = logp.gather(-1, torch.tensor(sample.ids)[:, None])[:, 0]
            size = float(logits.abs().max())
            np.testing.assert_allclose(sample.logprobs, wanted.numpy(), atol=1e-5 * max(1, size))


def written(policy):
    with mock.patch.object(decoder.Decoder, "_forward", side_effect=AssertionError):
        return generate(policy, PROMPTS, SEEDS, max_new=30)


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("name", MODELS)
def test_log_probs_are_the_models_own(name, lora):
    policy = policy_of(name, lora)
    assert_close(policy, PROMPTS, written(policy))


@pytest.mark.parametrize("name", ["qwen3", "olmo2", "qwen2", "smollm3"])
def test_a_step_of_fixed_size_writes_the_same_tokens(name, monkeypatch):
    """As it is captured on a GPU: places that are not written are hidden, and rows are dropped."""
    policy = policy_of(name, lora=4)
    policy.stop_ids = frozenset(range(0, 128, 16))
    plain = written(policy)
    assert len({len(sample.ids) for samples in plain for sample in samples}) > 2
    monkeypatch.setattr(llama, "NARROWEST", 4)
    begin = llama.Decoder.__init__
    widths, step = [], llama.Decoder._next

    def fixed(self, *given):
        begin(self, *given)
        self.fixed = True
        self.own.fill_(7.0)  # what was there before must not matter

    def next_state(self, token, place, width):
        widths.append((int(place), width))
        return step(self, token, place, width)

    monkeypatch.setattr(llama.Decoder, "__init__", fixed)
    monkeypatch.setattr(llama.Decoder, "_next", next_state)
    again = written(policy)
    assert [[s.ids for s in group] for group in again] == [[s.ids for s in g] for g in plain]
    assert_close(policy, PROMPTS, again)
    assert widths[0] == (0, 4) and (4, 8) in widths
    assert all(place < width for place, width in widths)


@pytest.mark.parametrize("name", MODELS)
def test_the_modules_themselves_decode_the_same(name, monkeypatch):
    """Where nothing is merged: weights of 4 bits, or too many."""
    policy = policy_of(name, lora=4)
    plain = written(policy)
    weights = llama.Weights(
        policy,
        policy.base.get_input_embeddings(),
        tuple(map(llama.live, policy.base.model.layers)),
    )
    monkeypatch.setattr(llama.Weights, "of", lambda policy: weights)
    again = written(policy)
    assert [[s.ids for s in group] for group in again] == [[s.ids for s in g] for g in plain]
    assert_close(policy, PROMPTS, again)


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_a_row_that_outgrows_a_window_is_decoded_by_the_model_itself(family):
    more = {"use_sliding_window": True, "max_window_layers": 1} if family == "qwen2" else {}
    policy = tiny.policy(family, sliding_window=16, **more)
    decoder.check(policy)
    assert policy.fast and llama.supported(policy, 16) and not llama.supported(policy, 17)
    with mock.patch.object(decoder.Decoder, "_forward", side_effect=AssertionError):
        inside = generate(policy, [(30, 31)], [[1]], max_new=14)
    outside = generate(policy, PROMPTS, SEEDS, max_new=30)
    assert_close(policy, [(30, 31), *PROMPTS], [*inside, *outside])


def test_a_layer_that_is_not_what_its_family_says_goes_the_general_way():
    """Its weights have the family's names, and it does something else with them."""
    policy = tiny.policy("qwen3")
    mlp = policy.base.model.layers[1].mlp
    mlp.act_fn = torch.nn.GELU()
    decoder.check(policy)
    assert not policy.fast
    assert_close(policy, PROMPTS, generate(policy, PROMPTS, SEEDS, max_new=12))


# ---- a head with a bias, and ids without a token


def holed(policy, ids):
    """Its tokenizer without these ids, in the middle of others."""
    vocabulary = {t: i for t, i in policy.tokenizer.get_vocab().items() if i not in ids}
    policy.tokenizer.get_vocab = lambda: vocabulary
    return policy


@pytest.mark.parametrize("family", ["qwen2", "gpt_neox", "phi"])
def test_an_id_without_a_token_is_not_written_and_not_counted(family):
    holes = list(range(40, 90, 2))
    policy = holed(tiny.policy(family), holes)
    policy.stop_ids = frozenset()
    decoder.check(policy)
    groups = generate(policy, PROMPTS, [range(20)] * 3, max_new=20)
    assert not {i for samples in groups for sample in samples for i in sample.ids} & {*holes}
    for prompt, samples in zip(PROMPTS, groups):
        for sample in samples[:4]:
            with torch.no_grad():
                logits = policy.model(input_ids=torch.tensor([prompt + sample.ids])).logits[0]
            logits = logits[:, : len(policy.head)].index_fill(-1, torch.tensor(holes), -torch.inf)
            logp = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            wanted = logp.gather(-1, torch.tensor(sample.ids)[:, None])[:, 0]
            np.testing.assert_allclose(sample.logprobs, wanted.numpy(), atol=1e-4)


def test_holes_in_capped_logits_are_refused():
    policy = holed(tiny.policy("qwen2"), [50])
    policy.base.config.final_logit_softcapping = 30.0
    forward = policy.base.forward

    def capped(**inputs):
        output = forward(**inputs)
        output.logits = 30 * (output.logits / 30).tanh()
        return output

    policy.base.forward = capped
    with pytest.raises(WorkbenchError, match="caps its logits, and 1 ids of its tokenizer"):
        decoder.check(policy)


def test_a_bias_of_the_head_is_sampled_and_learned():
    """By plain autograd on the model's own logits."""
    from workbench.core import Credit, Rollout, Verdict
    from workbench.model.batch import collate, score

    policy = tiny.policy("phi", dtype=torch.float64)
    decoder.check(policy)
    groups = generate(policy, PROMPTS, SEEDS, max_new=12)
    learner = Learner(policy)
    row = Rollout(PROMPTS[1], groups[1][0].ids, (0.0,) * 12, "", Verdict(0, False))
    [batch] = collate([Credit.of(row, pg=np.ones(len(row.completion_ids)))], policy.pad_id)
    ours = score(learner, batch).logp[0, : len(row.completion_ids)]
    logits = policy.model(input_ids=torch.tensor([row.prompt_ids + row.completion_ids])).logits[0]
    logp = logits.log_softmax(-1)[len(row.prompt_ids) - 1 : -1]
    plain = logp.gather(-1, torch.tensor(row.completion_ids)[:, None])[:, 0]
    torch.testing.assert_close(ours, plain)
    bias = policy.base.lm_head.bias
    weights = torch.cos(torch.arange(len(ours), dtype=torch.float64))
    gradients = [torch.autograd.grad(weights @ x, learner.parameters) for x in (ours, plain)]
    for mine, reference in zip(*gradients):
        torch.testing.assert_close(mine, reference)
    assert any(p is bias for p in learner.parameters)
    np.testing.assert_allclose(groups[1][0].logprobs, plain.detach().numpy(), atol=1e-5)
