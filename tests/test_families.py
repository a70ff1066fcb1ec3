"""Each family of models is right, or refused in one sentence when it is loaded.

One row a family (zoo.py), a column a test: batch equals alone; sampler equals trainer equals plain
``log_softmax(logits)``; an update, full and LoRA; saved and loaded again; ``doctor --model``.
"""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toys
import zoo
from transformers import PreTrainedTokenizerFast

from workbench.app import memory
from workbench.app.cli import main
from workbench.core import Rollout, Verdict, WorkbenchError
from workbench.methods import METHODS, find
from workbench.methods.grpo import GRPO
from workbench.methods.sdpo import SDPO
from workbench.model import decoder, families, scores
from workbench.model.batch import rescore
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.rollouts.sampling import generate
from workbench.training.update import update


class Task(toys.FirstCharacter):
    """With what TAPO asks for, and a contrast in any group whose texts are not all the same."""

    def grade(self, problem, text):
        verdict = super().grade(problem, text)
        reward = (sum(map(ord, text)) % 7) / 6
        return replace(verdict, reward=reward, correct=reward > 0.5)

    def synthesis(self, problem, wrong, right):
        return problem.messages


TASK = Task(toys.HALF, max_new=4)
RIGHT = [*zoo.FAMILIES, *zoo.WRAPPED]
# one of each kind: soft cap, fused experts, latent attention, chunks, two kinds of recurrence,
# multipliers, another tower
KINDS = ["gemma2", "mixtral", "deepseek_v3", "llama4_text", "lfm2", "falcon_h1", "gemma3", "gpt2"]
# Sampler against trainer, nats: rounding. What a gated delta rule adds up in chunks, and token by
# token, differs by more.
GAPS = {"qwen3_next": 5e-3, "qwen3_5_text": 5e-4, "qwen3_5": 5e-4}


def lacking(family):
    """Skips a family by name where the installed transformers does not have it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if family not in CONFIG_MAPPING:
        pytest.skip(f"transformers lacks {family}")


def rows(sizes=(13, 17), seed=3):
    """Prompts, longer and shorter than the windows."""
    numbers = np.random.default_rng(seed)
    return [tuple(numbers.integers(6, 100, size).tolist()) for size in sizes]


def rollouts_of(prompts, samples):
    return [
        Rollout(prompt, s.ids, s.logprobs, "", Verdict(0, False), finished=s.finished)
        for prompt, several in zip(prompts, samples)
        for s in several
    ]


@torch.no_grad()
def plain_logp(policy, rollout):
    """By the model's own logits, of this row alone."""
    ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    logp = policy.base(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    targets = torch.tensor(rollout.completion_ids)[:, None]
    return logp[len(rollout.prompt_ids) - 1 : -1].gather(-1, targets)[:, 0].numpy()


# ---- the table


@pytest.mark.parametrize("family", RIGHT)
def test_sampler_and_trainer_and_plain_logits_agree(family):
    lacking(family)
    policy = zoo.policy(family)
    decoder.check(policy)
    prompts = rows()
    samples = generate(policy, prompts, [[1, 2], [3]], max_new=[5, 3])
    rollouts = rollouts_of(prompts, samples)
    beside = [logp for logp, _ in rescore(policy, rollouts)]
    close = GAPS.get(family, 5e-5)
    for rollout, trainer in zip(rollouts, beside):
        plain = plain_logp(policy, rollout)
        np.testing.assert_allclose(trainer, plain, atol=close)  # batch, and alone
        np.testing.assert_allclose(rollout.logprobs, plain, atol=close)
        assert plain.std() > 0.02  # a flat model would hide a fault


@pytest.mark.parametrize("family", zoo.REFUSED)
def test_what_decodes_wrongly_is_refused(family, tmp_path, capsys):
    lacking(family)
    folder = toys.saved(zoo.policy(family), tmp_path / "model")
    words = ["train", "grpo", "--model", str(folder), "--steps", "1"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(rf"workbench: \S*{folder.name} cannot be sampled from here: .*", said)
    assert not (tmp_path / "run").exists()


def step(policy, method, lora):
    learner = Learner(
        policy, OptimConfig(lr=1e-2), lora=lora, expert=policy if method.needs_expert else None
    )
    return learner, update(method, learner, TASK, TASK.problems("train", 2, 0), (0, 0))


def saved_again(learner, base, folder, lora):
    learner.save(folder / "again")
    if lora:
        return load_policy(base, adapter=folder / "again")
    return load_policy(folder / "again")


def trained(family, lora, folder, method, monkeypatch):
    """An update; and what was saved says of a row what the learner says.

    The toy's tokenizer is loaded as what it is: of some families (qwen2, qwen3_5) transformers
    takes the family's own class whatever lies there, which loses its text and is refused.
    """
    base = toys.saved(zoo.policy(family), folder / "base")
    monkeypatch.setattr("transformers.AutoTokenizer", PreTrainedTokenizerFast)
    policy = load_policy(base)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    learner, record = step(policy, method, lora)
    assert np.isfinite(record.metrics["loss"]) and record.metrics["grad_norm"] > 0
    (prompt,) = rows((11,))
    row = [Rollout(prompt, prompt[:6], (0.0,) * 6, "", Verdict(0, False))]
    after = saved_again(learner, base, folder, lora)
    (here, _), (there, _) = rescore(policy, row)[0], rescore(after, row)[0]
    np.testing.assert_allclose(here, there, atol=1e-5)
    if not lora:
        moved = [name for name, p in policy.model.named_parameters() if not p.equal(before[name])]
        assert len(moved) > len(before) / 3
    return learner


@pytest.mark.parametrize("lora", [0, 2])
@pytest.mark.parametrize("family", KINDS)
def test_an_update_is_saved_and_loaded_again(family, lora, tmp_path, monkeypatch):
    lacking(family)
    trained(family, lora, tmp_path, SDPO(), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [0, 2])
@pytest.mark.parametrize("family", RIGHT)
def test_every_family_takes_an_update(family, lora, tmp_path, monkeypatch):
    lacking(family)
    trained(family, lora, tmp_path, GRPO(), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", RIGHT)
def test_every_method_takes_a_step(family, name):
    lacking(family)
    for lora in (0, 2):
        _, record = step(zoo.policy(family), find(name)(), lora)
        assert np.isfinite(record.metrics["loss"])


# ---- logits that are scaled or soft-capped


@pytest.mark.parametrize("cap", [0.7, 5.0])
@pytest.mark.parametrize("train_head", [False, True])
def test_capped_scores_equal_autograd(cap, train_head, monkeypatch):
    monkeypatch.setattr(scores, "CHUNK_ELEMENTS", 40)
    torch.manual_seed(0)
    hidden = torch.randn(7, 4, dtype=torch.double, requires_grad=True)
    head = torch.randn(11, 4, dtype=torch.double, requires_grad=train_head)
    targets = torch.randint(11, (7,))

    def naive():
        logp = (cap * torch.tanh(F.linear(hidden, head) / cap)).log_softmax(-1)
        return logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)

    weights = torch.randn(7, dtype=torch.double)
    wanted = [hidden, head] if train_head else [hidden]
    for use_entropy in (0.0, 0.3):
        sums = []
        for logp, entropy in (scores.token_scores(hidden, head, targets, cap), naive()):
            total = (weights * logp).sum() + use_entropy * (weights * entropy).sum()
            sums.append((logp, entropy, *torch.autograd.grad(total, wanted)))
        for ours, theirs in zip(*sums):
            torch.testing.assert_close(ours, theirs)
    values, ids = scores.top_k(hidden, head, 3, cap)
    logp = (cap * torch.tanh(F.linear(hidden, head) / cap)).log_softmax(-1)
    torch.testing.assert_close(values, logp.gather(-1, ids).detach())


@pytest.mark.parametrize("trust, shared", [(None, False), (0.3, False), (0.3, True)])
@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("a", [0.0, 0.5, 1.0])
def test_a_divergence_of_capped_logits_equals_autograd(a, k, trust, shared):
    """Against the divergence of a model whose head is the identity and whose states are the capped
    logits themselves.
    """
    torch.manual_seed(1)
    caps, targets = (1.5, 2.5), torch.randint(11, (5,))
    hidden, head, teacher, other = (torch.randn(n, 4).double() for n in (5, 11, 5, 5))
    heads = torch.randn(2, 11, 4).double()
    hidden.requires_grad_(True)

    def capped(states, matrix, cap):
        return cap * torch.tanh(F.linear(states, matrix) / cap)

    if trust is None:
        theirs, matrix, logits = teacher, heads[0], capped(teacher, heads[0], caps[1])
    else:
        heads = heads[:1].repeat(2, 1, 1) if shared else heads
        theirs = torch.cat([teacher, other], -1)
        matrix = heads[0] if shared else torch.cat([*heads], -1)
        halves = [capped(x, y, caps[1]) for x, y in zip((teacher, other), heads)]
        logits = (1 - trust) * halves[0] + trust * halves[1]
    ours = scores.divergence(hidden, head, theirs, matrix, targets, a, k, 9.0, caps, trust)
    eye = torch.eye(11).double()
    plain = scores.divergence(capped(hidden, head, caps[0]), eye, logits, eye, targets, a, k, 9.0)
    for mine, reference in zip(ours, plain):
        torch.testing.assert_close(mine, reference)
    gradients = [torch.autograd.grad(d.value.sum(), hidden)[0] for d in (ours, plain)]
    torch.testing.assert_close(*gradients)


def test_what_names_mean_is_found_by_trying():
    """One name, two meanings; and a wrapper that leaves out what its text model does."""
    forms = {family: tuple(zoo.policy(family).logits) for family in ("granite", "hyperclovax")}
    assert forms == {"granite": (0.25, 0.0), "hyperclovax": (0.3, 0.0)}
    assert zoo.policy("gemma2").logits.cap == 3 and zoo.policy("gemma3").logits.cap == 0
    assert zoo.policy("llama").logits == (1.0, 0.0)


def test_an_unknown_change_of_logits_is_refused_however_small():
    policy = zoo.policy("qwen2")
    forward = policy.base.forward

    def bent(**inputs):
        output = forward(**inputs)
        output.logits = output.logits - 2e-4 * output.logits.abs().max() * output.logits.tanh()
        return output

    policy.base.forward = bent
    with pytest.raises(WorkbenchError, match="its configuration does not name"):
        decoder.check(policy)


# ---- the check at load


@pytest.mark.parametrize("scale", [0.02, 0.3])
def test_a_state_that_padding_enters_is_found_at_any_scale(scale):
    """Weights of the usual first size give nearly flat logits: a fault there is as small, and is
    judged by what the context does to them.
    """
    net = zoo.model.__wrapped__("phi3")  # one that its own forward pass decodes
    for weight in net.parameters():
        weight.mul_(scale / 0.3 if weight.ndim > 1 else 1)
    policy = zoo.Policy(net, zoo.tokenizer(), "flat")
    decoder.check(policy)
    assert policy.pads_left
    rotary = net.model.rotary_emb
    whole = rotary.forward
    # positions that count the padding on the left too
    rotary.forward = lambda x, position_ids: whole(
        x, position_ids + 3 * (len(position_ids[0]) == 1)
    )
    with pytest.raises(WorkbenchError, match="its logits are others"):
        decoder.check(policy)


def test_recurrent_prompts_of_different_lengths_are_read_apart(monkeypatch):
    policy, widths = zoo.policy("lfm2"), []
    monkeypatch.setattr(
        decoder.Decoder,
        "_forward",
        lambda self, ids, *rest, f=decoder.Decoder._forward: (
            widths.append((tuple(ids.shape), self.padded)),
            f(self, ids, *rest),
        )[1],
    )
    generate(policy, rows((9, 4, 9)), [[1], [2], [3]], max_new=1)
    assert widths == [((1, 4), False), ((2, 9), False)]


# ---- rotary scaling that depends on the batch


def stretched(kind):
    from transformers import AutoModelForCausalLM

    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    original = {"original_max_position_embeddings": 32} if kind == "longrope" else {}
    family = "phi3" if kind == "longrope" else "qwen2"
    longest = 128 if kind == "longrope" else 32
    config = zoo.config(family, rope_parameters=rope, max_position_embeddings=longest, **original)
    torch.manual_seed(0)
    return zoo.Policy(AutoModelForCausalLM.from_config(config).eval(), zoo.tokenizer(), kind)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_rows_never_change_the_frequencies_of_others(kind):
    policy = stretched(kind)
    assert policy.context == 32
    short, long = rows((10, 40))
    rollouts = [Rollout(p, p[:5], (0.0,) * 5, "", Verdict(0, False)) for p in (short, long)]
    with pytest.raises(WorkbenchError, match="45 tokens, more than the model's context of 32"):
        rescore(policy, rollouts)
    with pytest.raises(WorkbenchError, match="context of 32"):
        generate(policy, [short], [[0]], max_new=23)
    np.testing.assert_allclose(
        rescore(policy, rollouts[:1])[0][0], plain_logp(policy, rollouts[0]), atol=1e-5
    )


# ---- adapters, memory, checkpointing


@pytest.mark.parametrize("family", zoo.WRAPPED)
def test_the_text_part_of_a_nested_configuration_counts(family):
    lacking(family)
    policy = zoo.policy(family)
    assert policy.context == (128 if family == "llama4" else 96)
    learner = Learner(policy, lora=2)
    adapted = [name for name, _ in learner.policy.model.named_parameters() if "lora_" in name]
    assert adapted and not any("vis" in name for name in adapted)


@pytest.mark.parametrize(
    "family", ["qwen3_moe", "mixtral", "deepseek_v3", "llama4_text", "qwen3_next"]
)
def test_no_adapter_on_a_router(family):
    lacking(family)
    learner = Learner(zoo.policy(family), lora=2)
    places = {name.partition(".lora_A")[0] for name, _ in learner.policy.model.named_parameters()}
    parts = {part for place in places if "base_layer" not in place for part in place.split(".")}
    adapted = {n for n, _ in learner.policy.model.named_parameters() if "lora_" in n}
    assert adapted and not any(families.ROUTERS & set(name.split(".")) for name in adapted), parts


@pytest.mark.parametrize("family", ["mixtral", "gemma4_text", "gpt2", "mpt", "mamba2"])
def test_memory_is_counted(family, tmp_path):
    counted(family, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*RIGHT, *zoo.REFUSED])
def test_memory_of_every_family_is_counted(family, tmp_path):
    counted(family, tmp_path)


def counted(family, folder):
    """Weights and adapter to the byte, the sampler's cache to that of a real model of these sizes.
    (Its tensors for a moment, and its logits, are by rule.)
    """
    lacking(family)
    zoo.config(family).save_pretrained(folder)
    net = memory.skeleton(folder)
    sizes = memory.StepSizes(prompt=12, new=8, rows=2, prompts=2, rank=2)
    try:
        parts = {mode: memory.predict(net, GRPO(), mode, sizes) for mode in memory.MODES}
    except WorkbenchError as error:
        assert family == "minimax" and "cannot be counted" in str(error)
        return
    policy = zoo.policy(family)
    real = sum(p.numel() for p in policy.model.parameters())
    assert parts["full"]["weights"] == 4 * real == parts["full"]["gradients"]
    assert parts["lora"]["weights"] == 2 * real > parts["qlora"]["weights"]
    assert all(part["activations"] > 0 for part in parts.values())
    logits = 4 * 4 * 16 * len(policy.base.get_output_embeddings().weight)
    if family not in zoo.REFUSED:
        cached = cache_bytes(policy, 20)
        assert parts["full"]["sampling"] == 2 * 16 * cached + logits
        assert parts["lora"]["sampling"] == pytest.approx(16 * cached + logits, rel=0.5)
        assert parts["lora"]["sampling"] < parts["full"]["sampling"]
        trained = sum(p.numel() for p in Learner(policy, lora=2).parameters)
        assert parts["lora"]["adapter"] == 4 * trained == parts["qlora"]["adapter"]


@torch.no_grad()
def cache_bytes(policy, length):
    """Of a row, in the cache that the model fills."""
    from torch.utils._pytree import tree_leaves
    from transformers import DynamicCache

    cache = DynamicCache(config=policy.base.config)
    ids = torch.ones(1, length, dtype=torch.long)
    policy.decoder(input_ids=ids, past_key_values=cache, use_cache=True)
    leaves = tree_leaves([vars(layer) for layer in cache.layers])
    return sum(x.nbytes for x in leaves if isinstance(x, torch.Tensor))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "deepseek_v3", "gemma3"])
def test_what_is_kept_in_four_bits_is_counted(family, tmp_path):
    pytest.importorskip("bitsandbytes")
    lacking(family)
    folder = toys.saved(zoo.policy(family), tmp_path)
    policy = load_policy(folder, four_bit=True, device="cpu")
    packed = [p for p in policy.model.parameters() if hasattr(p, "quant_state")]
    assert memory._in_four_bits(memory.skeleton(folder)) == 2 * sum(p.numel() for p in packed) > 0


@pytest.mark.parametrize("family", ["blip", "florence2", "clip", "t5"])
def test_doctor_says_what_is_no_language_model(family, tmp_path, capsys):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    lacking(family)
    CONFIG_MAPPING[family]().save_pretrained(tmp_path)
    assert main(["doctor", "--model", str(tmp_path), "--method", "grpo"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(r"workbench: (the memory of a \w+ cannot be counted|could not load).+", said)


@pytest.mark.parametrize("family", ["falcon", "gptj"])
def test_doctor_asks_families_with_attention_of_their_own(family, tmp_path, capsys):
    """Counted, or why not: that their table of kinds lacks ours is no reason."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    heads = {"num_attention_heads": 4} if family == "falcon" else {"n_head": 4, "rotary_dim": 4}
    CONFIG_MAPPING[family](vocab_size=128, hidden_size=32, **heads).save_pretrained(tmp_path)
    code = main(["doctor", "--model", str(tmp_path), "--method", "grpo"])
    out, err = capsys.readouterr()
    assert code == (0 if family == "falcon" else 2) and "'counted'" not in err
    assert ("T4" in out) if code == 0 else "cannot be counted" in err


def test_doctor_counts_a_configuration_that_checks_its_fields(tmp_path, capsys):
    """One in which the padding token must be a number."""
    lacking("emu3")
    from transformers import Emu3Config

    sizes = zoo.SIZES | zoo.GROUPED | {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    Emu3Config(text_config=sizes).save_pretrained(tmp_path)
    assert main(["doctor", "--model", str(tmp_path), "--method", "grpo"]) == 0
    assert re.search(r"grpo +\d+\.\d  T4", capsys.readouterr().out)


def test_doctor_says_why_it_cannot_count(tmp_path, capsys, monkeypatch):
    zoo.config("qwen2").save_pretrained(tmp_path)

    def run(net, **inputs):
        raise RuntimeError("needs numbers")

    monkeypatch.setattr(memory, "_run", run)
    assert main(["doctor", "--model", str(tmp_path), "--method", "grpo"]) == 2
    assert (
        "cannot be counted, because it does not run here without weights" in capsys.readouterr().err
    )


@pytest.mark.parametrize("family", ["opt", "xglm", "biogpt", "llama", "gpt2", "bart"])
def test_checkpointing_with_dropout_gives_the_same_gradient(family):
    from copy import deepcopy

    gradients = []
    for checkpointing in (False, True):
        policy = zoo.policy(family)
        for module in policy.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.4
            for name in ("dropout", "attention_dropout", "activation_dropout"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.4)
        learner = Learner(policy, checkpointing=checkpointing)
        ids = torch.tensor(rows((12,)))
        # its own passes, not the Llama family's
        policy.hidden(ids).sin().sum().backward()
        gradients.append([p.grad for p in learner.parameters])
    for plain, again in zip(*deepcopy(gradients)):
        torch.testing.assert_close(plain, again)
