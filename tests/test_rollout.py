"""The engines against the model's own naive forward pass; the sampling rule exactly."""

import numpy as np
import pytest
import tiny
import torch

from workbench.core import WorkbenchError
from workbench.model import llama
from workbench.model.learner import Learner
from workbench.rollouts import sampling
from workbench.rollouts.sampling import generate, pick

PROMPTS = [
    (30, 31, 32),
    (40, 41, 42, 43, 44, 45, 46, 47),
    (50, 51, 52),
    (60,),
    (61, 62, 63, 64, 65),
]
SEEDS = [[1, 2, 3], [4], [5, 6, 7, 8], [], [9, 10]]
MODELS = {
    "llama": {"num_key_value_heads": 4},
    "llama, grouped queries": {"num_key_value_heads": 2},
    "llama, one key head, wide heads": {"num_key_value_heads": 1, "head_dim": 16},
    "llama, scaled positions": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "mistral, outgrown window": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "smollm3": {"no_rope_layer_interval": 2},
    "olmo2": {},
    "gpt_neox": {},
}
SLOW = {"gpt_neox", "mistral, outgrown window"}
LONGEST = max(map(len, PROMPTS)) + 24


@pytest.fixture(params=MODELS)
def policy(request):
    policy = tiny.policy(request.param.split(",")[0].split()[0], **MODELS[request.param])
    assert llama.supported(policy, LONGEST) == (request.param not in SLOW)
    return policy


def naive_logprobs(policy, prompt, ids):
    """One sequence alone, no cache, no padding."""
    with torch.no_grad():
        log_p = policy.model(input_ids=torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
    return log_p[len(prompt) - 1 : -1].gather(-1, torch.tensor(ids)[:, None])[:, 0]


def assert_agrees(policy, prompts, groups, atol=1e-4):
    for prompt, samples in zip(prompts, groups):
        for sample in samples:
            torch.testing.assert_close(
                torch.tensor(sample.logprobs),
                naive_logprobs(policy, prompt, sample.ids),
                rtol=0,
                atol=atol,
            )


def test_logprobs_are_those_of_the_naive_forward_pass(policy):
    groups = generate(policy, PROMPTS, SEEDS, max_new=24)
    assert [len(samples) for samples in groups] == [len(seeds) for seeds in SEEDS]
    assert_agrees(policy, PROMPTS, groups)


def test_a_sample_does_not_depend_on_what_ran_beside_it(policy):
    """All together (mixed prompt lengths, rows dropped on the way), each alone, and in another
    order.
    """
    together = generate(policy, PROMPTS, SEEDS, max_new=24)
    for prompt, seeds, samples in zip(PROMPTS, SEEDS, together):
        for seed, sample in zip(seeds, samples):
            [[alone]] = generate(policy, [prompt], [[seed]], max_new=24)
            assert alone.ids == sample.ids and alone.finished == sample.finished
            np.testing.assert_allclose(alone.logprobs, sample.logprobs, atol=1e-4)
    backwards = generate(policy, PROMPTS[::-1], [seeds[::-1] for seeds in SEEDS[::-1]], max_new=24)
    assert [[s.ids for s in samples[::-1]] for samples in backwards[::-1]] == [
        [s.ids for s in samples] for samples in together
    ]


def test_greedy_equals_transformers_generate(policy):
    for prompt in PROMPTS:
        [[sample]] = generate(policy, [prompt], [[0]], max_new=24, temperature=0.0)
        want = policy.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=sorted(policy.stop_ids),
            pad_token_id=0,
        )[0, len(prompt) :]
        assert sample.ids == tuple(want.tolist())


def test_both_engines_write_the_same():
    policy = tiny.policy()
    fast = generate(policy, PROMPTS, SEEDS, max_new=24)
    policy.fast = False
    assert [
        [s.ids for s in samples] for samples in generate(policy, PROMPTS, SEEDS, max_new=24)
    ] == [[s.ids for s in g] for g in fast]


def test_batches_of_limited_rows_change_nothing(monkeypatch):
    policy = tiny.policy()
    together = generate(policy, PROMPTS, SEEDS, max_new=24)
    monkeypatch.setattr(sampling, "ROWS", 3)
    assert [[s.ids for s in g] for g in generate(policy, PROMPTS, SEEDS, max_new=24)] == [
        [s.ids for s in g] for g in together
    ]


def test_a_row_ends_with_its_first_stop_token_and_only_there():
    """Many rows, several stop tokens: rows end at different times and are dropped, whole prompts
    too.
    """
    policy = tiny.policy()
    policy.stop_ids = frozenset(range(0, 128, 16))
    seeds = [[100 * i + j for j in range(8)] for i in range(5)]
    groups = generate(policy, PROMPTS, seeds, max_new=40)
    samples = [sample for group in groups for sample in group]
    assert len({len(sample.ids) for sample in samples}) > 8
    for sample in samples:
        stops = [i for i, token in enumerate(sample.ids) if token in policy.stop_ids]
        assert stops == ([len(sample.ids) - 1] if sample.finished else [])
        assert sample.finished or len(sample.ids) == 40
        assert len(sample.logprobs) == len(sample.ids)
    assert_agrees(policy, PROMPTS, groups)
    # nothing ends a turn: every sample has the full length, and starts in the same way
    policy.stop_ids = frozenset()
    endless = [sample for group in generate(policy, PROMPTS, seeds, max_new=40) for sample in group]
    assert all(
        len(long.ids) == 40 and not long.finished and long.ids[: len(short.ids)] == short.ids
        for long, short in zip(endless, samples)
    )


def test_finished_rows_are_dropped(monkeypatch):
    """The rows given to the engine shrink."""
    policy = tiny.policy()
    policy.stop_ids = frozenset(range(0, 128, 8))
    widths, step = [], llama.Decoder.step
    monkeypatch.setattr(
        llama.Decoder, "step", lambda self, token: (widths.append(len(token)), step(self, token))
    )
    generate(policy, PROMPTS, [[10 * i + j for j in range(8)] for i in range(5)], max_new=60)
    assert widths[0] == 40 and widths[-1] < 10 and widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_prompt_may_hold_the_pad_token_and_padding_may_be_the_stop_token(family):
    policy = tiny.policy(family)
    policy.tokenizer.pad_token = policy.tokenizer.eos_token
    end = policy.tokenizer.eos_token_id
    assert policy.pad_id == end
    prompts = [(end, 31, end, 33), (end,), (40, end, 42, 43, 44, 45, end)]
    assert_agrees(policy, prompts, generate(policy, prompts, [[1, 2], [3], [4]], max_new=16))


def test_the_adapter_that_is_active_writes():
    """Adapter on, off, and another one: each agrees with the naive forward pass in the same state,
    and they differ.
    """
    policy = tiny.policy()
    plain = generate(policy, PROMPTS, SEEDS, max_new=16)
    learner = Learner(policy, lora=4)
    assert llama.supported(policy)
    assert generate(policy, PROMPTS, SEEDS, max_new=16) == plain  # B is 0 at the start
    tiny.shake_adapter(policy.model)
    learner.update_teacher()
    tiny.shake_adapter(policy.model, seed=2)
    written = {}
    for which in ("policy", "reference", "teacher"):
        with learner.weights(which):
            written[which] = generate(policy, PROMPTS, SEEDS, max_new=16)
            assert_agrees(policy, PROMPTS, written[which])
    assert written["reference"] == plain
    first = {
        which: [s.logprobs[0] for group in groups for s in group]
        for which, groups in written.items()
    }
    assert first["policy"] != first["teacher"] != first["reference"]


def test_changed_weights_are_used_at_the_next_call():
    policy = tiny.policy()
    generate(policy, PROMPTS, SEEDS, max_new=4)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.mul_(1.1)
    assert_agrees(policy, PROMPTS, generate(policy, PROMPTS, SEEDS, max_new=16))


def test_a_prompt_that_leaves_no_room_is_refused():
    policy = tiny.policy()
    generate(policy, [(30,) * 120], [[0]], max_new=8)
    with pytest.raises(
        WorkbenchError, match="120 tokens and 9 new ones do not fit the model's context of 128"
    ):
        generate(policy, [(30,) * 120], [[0]], max_new=9)


# ---- pick ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_pick_gives_every_token_its_share_of_the_uniform_numbers(temperature):
    """Exact: over a grid of n uniform numbers a token of probability p is picked n p times, up to
    the two ends of its interval.
    """
    n, logits = 20_000, torch.tensor([0.3, -1.0, 2.0, -torch.inf, 0.0, -6.0])
    uniforms = (torch.arange(n) + 0.5) / n
    picked = pick(logits.expand(n, -1), uniforms, temperature)
    share = torch.bincount(picked, minlength=6) / n
    torch.testing.assert_close(share, (logits / temperature).softmax(-1), rtol=0, atol=2 / n)
    assert (picked.diff() >= 0).all()  # inverse transform: monotone in the uniform number


def test_pick_never_takes_an_impossible_token():
    """At both ends of [0, 1), whatever the rounding of the cumulative sum."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2_000, 300, generator=generator)
    logits[:, :3] = logits[:, -3:] = -torch.inf
    for uniform in (0.0, 1 - 2**-24):
        picked = pick(logits, torch.full((2_000,), uniform), 1.0)
        assert picked.min() >= 3 and picked.max() < 297


def test_temperature_changes_the_draw_and_not_the_recorded_logprobs():
    policy = tiny.policy()
    hot, cold = (generate(policy, PROMPTS, SEEDS, max_new=12, temperature=t) for t in (1.5, 0.3))
    assert_agrees(policy, PROMPTS, hot)
    assert_agrees(policy, PROMPTS, cold)

    def mean(groups):
        return np.mean([x for group in groups for s in group for x in s.logprobs])

    assert mean(cold) > mean(hot)
