"""Adapters that a policy was loaded with.

What is trained next, its reference and its teacher start from them; what is saved is the policy;
hostile folders are one sentence.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_shard import Halves

from workbench.app.cli import main
from workbench.core import WorkbenchError
from workbench.methods.sdpo import SDPO
from workbench.model.adapters import merge
from workbench.model.batch import rescore
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.rollouts.sampling import sample_groups
from workbench.tasks.arithmetic import Arithmetic
from workbench.training.run import TrainConfig, fit

TASK, ORGANISM = Arithmetic(), Path(__file__).parent.parent / "data" / "organism"
LLAMA = ["q_proj", "v_proj", "down_proj"]
# What people have: LoRA of every variant that peft saves
VARIANTS = {
    "rank 2": {"r": 2},
    "another alpha": {"r": 4, "lora_alpha": 3},
    "rslora": {"r": 8, "lora_alpha": 16, "use_rslora": True},
    "a list of modules": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "some layers": {"r": 4, "target_modules": ["o_proj"], "layers_to_transform": [1]},
    "rank patterns": {
        "r": 4,
        "target_modules": LLAMA,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"down_proj": 7},
    },
    "dropout": {"r": 4, "lora_dropout": 0.5},
    "dora": {"r": 4, "use_dora": True},
    "lora_bias": {"r": 4, "lora_bias": True},
    "pissa": {"r": 2, "init_lora_weights": "pissa"},
    "all biases": {"r": 4, "bias": "all"},
    "biases of its layers": {"r": 4, "bias": "lora_only", "target_modules": ["k_proj"]},
    "head saved whole": {"r": 4, "modules_to_save": ["lm_head"]},
    "both embeddings saved whole": {"r": 4, "modules_to_save": ["lm_head", "embed_tokens"]},
    "norms saved whole": {"r": 4, "modules_to_save": ["post_attention_layernorm"]},
    "lora on the head": {"r": 4, "target_modules": [*LLAMA, "lm_head"]},
    "lora on the embedding": {"r": 4, "target_modules": [*LLAMA, "embed_tokens"]},
    "lora on both": {"r": 4, "target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    "rows of the embedding": {"r": 4, "trainable_token_indices": [3, 4, 70, 71]},
}


def save_base(family: str, folder: Path) -> Path:
    """A Llama, or one with biases and a head of its own, as Qwen2 has them. (AutoTokenizer would
    read the organism's tokenizer beside a Qwen2 as a byte-level one.)
    """
    biased = {"attention_bias": True, "tie_word_embeddings": False} if family == "biased" else {}
    policy = tiny.policy("llama", max_position_embeddings=256, num_hidden_layers=2, **biased)
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {family: save_base(family, root / family) for family in ("llama", "biased")}


@pytest.fixture(scope="module")
def base(bases):
    return bases["llama"]


def save_adapter(base: Path, folder: Path, seed: int = 0, config=None, **options) -> Path:
    """An adapter as somebody else's first stage left it: every weight of it has moved."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    options = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options
    model = get_peft_model(load_policy(base).model, config or LoraConfig(**options))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rollouts(base):
    [group] = sample_groups(load_policy(base), TASK, TASK.problems("train", 1, 0), 2, (0,))
    return group.rollouts


def logps(policy, rollouts) -> np.ndarray:
    return np.concatenate([logp for logp, _ in rescore(policy, rollouts)])


def plain_logps(base: Path, adapter: Path, rollouts) -> np.ndarray:
    """By transformers and peft alone, a row at a time."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(net, adapter).eval()
    columns = []
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        with torch.no_grad():
            logp = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        columns.append(logp.gather(1, ids[0, 1:, None])[len(rollout.prompt_ids) - 1 :, 0].numpy())
    return np.concatenate(columns)


def views(learner, rollouts) -> dict[str, np.ndarray]:
    columns = {}
    for which in ("policy", "reference", "teacher"):
        with learner.weights(which) as policy:
            columns[which] = logps(policy, rollouts)
    return columns


def move(learner, steps: int = 2):
    """Steps of the optimiser, large enough to see."""
    numbers = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for p in learner.parameters:
            p.grad = torch.randn(p.shape, generator=numbers)
        learner.step()


# ---- the start is the policy as loaded


CASES = [("llama", variant) for variant in VARIANTS]
CASES += [("biased", variant) for variant in VARIANTS if "bias" in variant]
CASES += [("biased", "head saved whole"), ("biased", "lora on both")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lora", [4, 0], ids=["lora", "all weights"])
@pytest.mark.parametrize("family, variant", CASES)
def test_everything_starts_from_the_policy_as_loaded(
    bases, rollouts, family, variant, lora, tmp_path
):
    """Before, at the start, the reference and the teacher: one policy, and that of peft alone.

    After training the reference is still that; the policy is not, and what is saved is the policy.
    """
    base = bases[family]
    adapter = save_adapter(base, tmp_path / "a", **VARIANTS[variant])
    policy = load_policy(base, adapter=adapter)
    before = logps(policy, rollouts)
    np.testing.assert_allclose(before, plain_logps(base, adapter, rollouts), atol=2e-4)
    assert np.abs(before - logps(load_policy(base), rollouts)).max() > 0.05
    if variant == "lora_bias" and not lora:  # o_proj has no bias to merge it into
        with pytest.raises(WorkbenchError, match="cannot be merged: .* has no bias"):
            Learner(policy)
        return
    learner = Learner(policy, OptimConfig(lr=1e-2), lora=lora)
    merged = {} if lora else {"atol": 2e-4}
    for which, column in views(learner, rollouts).items():
        np.testing.assert_allclose(column, before, err_msg=which, rtol=0, **merged)
    move(learner)
    learner.update_teacher()
    after = views(learner, rollouts)
    np.testing.assert_allclose(after["reference"], before, rtol=0, **merged)
    assert np.abs(after["policy"] - before).max() > 0.02
    assert np.abs(after["teacher"] - before).max() > 1e-4
    learner.save(tmp_path / "saved")
    again = [base, tmp_path / "saved"] if lora else [tmp_path / "saved", None]
    loaded = load_policy(again[0], adapter=again[1])
    np.testing.assert_allclose(logps(loaded, rollouts), after["policy"], atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "variant", ["dora", "lora on both", "rows of the embedding", "both embeddings saved whole"]
)
def test_sampler_and_trainer_agree(base, variant, tmp_path):
    """What decodes merges adapters, and what scores does not."""
    policy = load_policy(base, adapter=save_adapter(base, tmp_path / "a", **VARIANTS[variant]))
    [group] = sample_groups(policy, TASK, TASK.problems("train", 1, 1), 3, (1,))
    sampled = np.concatenate([rollout.logprobs for rollout in group.rollouts])
    np.testing.assert_allclose(sampled, logps(policy, group.rollouts), atol=2e-4)


@pytest.mark.filterwarnings("ignore")
def test_of_several_adapters_the_one_in_force_is_trained(base, rollouts, tmp_path):
    """And saved, in the folder itself, whatever its name was; two at once are refused."""
    policy = load_policy(base, adapter=save_adapter(base, tmp_path / "a", r=2))
    save_adapter(base, tmp_path / "b", seed=1, r=3, target_modules=["q_proj"])
    policy.model.load_adapter(str(tmp_path / "b"), "other")
    policy.model.set_adapter("other")
    second = logps(policy, rollouts)
    learner = Learner(policy, OptimConfig(lr=1e-2), lora=2)
    assert learner.adapter_use == "trained further, rank 3 (not 2)"
    assert len(learner.parameters) == 4  # A and B of q_proj in two layers
    move(learner)
    after = views(learner, rollouts)
    np.testing.assert_array_equal(after["reference"], second)
    learner.save(tmp_path / "saved")
    again = load_policy(base, adapter=tmp_path / "saved")
    np.testing.assert_allclose(logps(again, rollouts), after["policy"], atol=1e-6)
    policy.model.base_model.set_adapter(["default", "other"])
    with pytest.raises(WorkbenchError, match="2 adapters are active .default, other."):
        Learner(policy, lora=2)


@pytest.mark.filterwarnings("ignore")
def test_in_four_bits_the_adapter_goes_on(base, rollouts, tmp_path):
    """Merging there would not be exact, and nobody asks for it."""
    adapter = save_adapter(base, tmp_path / "a", r=4)
    policy = load_policy(base, adapter=adapter, four_bit=True)
    before = logps(policy, rollouts)
    with pytest.raises(WorkbenchError, match="in 4 bits, where its adapter cannot be merged"):
        merge(policy)
    with pytest.raises(WorkbenchError, match="train an adapter with lora"):
        Learner(policy)
    learner = Learner(policy, OptimConfig(lr=1e-2), lora=4)
    for which, column in views(learner, rollouts).items():
        np.testing.assert_array_equal(column, before, err_msg=which)
    move(learner)
    after = logps(policy, rollouts)
    learner.save(tmp_path / "saved")
    again = load_policy(base, adapter=tmp_path / "saved", four_bit=True)
    np.testing.assert_allclose(logps(again, rollouts), after, atol=1e-5)
    assert np.abs(after - before).max() > 0.02


def test_a_tokenizer_that_came_with_the_adapter_goes_on_with_it(base, tmp_path):
    """The first stage may have had a chat template of its own."""
    adapter = save_adapter(base, tmp_path / "a", r=2)
    policy = load_policy(base)
    policy.tokenizer.chat_template = policy.tokenizer.chat_template + "{# another #}1"
    policy.tokenizer.save_pretrained(adapter)
    learner = Learner(load_policy(base, adapter=adapter), lora=2)
    learner.save(tmp_path / "saved")
    messages = TASK.problems("train", 1, 0)[0].messages
    again = load_policy(base, adapter=tmp_path / "saved")
    assert again.prompt_ids(messages) == policy.prompt_ids(messages)
    assert again.prompt_ids(messages) != load_policy(base).prompt_ids(messages)


@pytest.mark.filterwarnings("ignore")
def test_other_kinds_are_read_and_merged_but_not_trained_further(base, rollouts, tmp_path):
    from peft import IA3Config

    config = IA3Config(
        target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        task_type="CAUSAL_LM",
    )
    adapter = save_adapter(base, tmp_path / "a", config=config)
    policy = load_policy(base, adapter=adapter)
    before = logps(policy, rollouts)
    np.testing.assert_allclose(before, plain_logps(base, adapter, rollouts), atol=2e-4)
    with pytest.raises(WorkbenchError, match="its adapter is of the kind IA3"):
        Learner(policy, lora=2)
    np.testing.assert_allclose(logps(Learner(policy).policy, rollouts), before, atol=2e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", ["dora", "lora on both", "rows of the embedding", "rank 2"])
def test_only_matrices_in_the_layers_are_sharded(base, variant, tmp_path):
    """(The last could be, were there a second process: tests/test_shard.py.)"""
    policy = load_policy(base, adapter=save_adapter(base, tmp_path / "a", **VARIANTS[variant]))
    why = "start them with torchrun" if variant == "rank 2" else "it cannot be sharded"
    with pytest.raises(WorkbenchError, match=why):
        Learner(policy, lora=2, shard=True)


# ---- runs


def run(base: Path, adapter: Path, out: Path, steps: int, lora: int, **how) -> list[dict]:
    learner = Learner(load_policy(base, adapter=adapter), OptimConfig(lr=1e-3), lora=lora)
    plan = TrainConfig(steps=steps, prompts=2, eval_every=0, checkpoint_every=1)
    fit(SDPO(k=2, teacher="ema"), learner, Halves(), plan, out, progress=False, **how)
    return lines(out)


def lines(out: Path) -> list[dict]:
    """The metrics, without the clock."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


@pytest.mark.parametrize("lora", [4, 0], ids=["lora", "all weights"])
def test_a_resumed_run_is_the_uninterrupted_one(base, lora, tmp_path):
    """Bit for bit, also where the first stage's folder has changed meanwhile (with LoRA the
    checkpoint holds the reference; all weights start from the folder, as from a model's).
    """
    adapter = save_adapter(base, tmp_path / "a", r=4)
    whole = run(base, adapter, tmp_path / "whole", 3, lora)
    run(base, adapter, tmp_path / "cut", 2, lora)
    if lora:
        save_adapter(base, adapter, seed=5, r=4)
    assert run(base, adapter, tmp_path / "cut", 3, lora, resume=True) == whole
    file = "adapter/adapter_model.safetensors" if lora else "model/model.safetensors"
    assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    use = "trained further, rank 4" if lora else "merged into the weights"
    assert (config["adapter"], config["adapter_use"]) == (str(adapter), use)
    with pytest.raises(WorkbenchError, match="adapter: .* -> None"):
        run(base, None, tmp_path / "cut", 4, lora, resume=True)


def test_a_checkpoint_says_whether_it_began_with_an_adapter(base, tmp_path):
    """Same names, same shapes, another reference."""
    adapter = save_adapter(base, tmp_path / "a", r=4)
    fresh = Learner(load_policy(base), lora=4)
    further = Learner(load_policy(base, adapter=adapter), lora=4)
    assert fresh.state()["trainable"].keys() == further.state()["trainable"].keys()
    with pytest.raises(WorkbenchError, match="another adapter to start from"):
        fresh.load_state(further.state())
    with pytest.raises(WorkbenchError, match="another adapter to start from"):
        further.load_state(fresh.state())


# ---- hostile folders


def wrong_adapters(base: Path, folder: Path) -> dict[str, tuple[Path, str]]:
    """By name: a folder, and what is said of it."""
    from safetensors.torch import load_file, save_file

    good = save_adapter(base, folder / "good", r=2)
    config = json.loads((good / "adapter_config.json").read_text())
    file = "adapter_model.safetensors"
    weights = load_file(good / file)

    def changed(name: str, config=config, weights=weights, tail: int = 0) -> Path:
        shutil.copytree(good, folder / name)
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / name / "adapter_config.json").write_text(text)
        save_file(weights, folder / name / file)
        if tail:
            data = (folder / name / file).read_bytes()
            (folder / name / file).write_bytes(data[:-tail])
        return folder / name

    some = dict(list(weights.items())[:-1])
    nan = {name: w * float("nan") for name, w in weights.items()}
    deeper = {name.replace("layers.1", "layers.7"): w for name, w in weights.items()}
    return {
        "half a file": (changed("torn", tail=100), "is damaged"),
        "no JSON": (changed("text", config="{"), "is damaged: its adapter_config.json"),
        "a list": (changed("list", config="[]"), "is damaged: its adapter_config.json"),
        "weights missing": (changed("some", weights=some), "1 of its weights have no place"),
        "not numbers": (changed("nan", weights=nan), "not all finite"),
        "a deeper model's": (changed("deep", weights=deeper), "does not fit the model"),
        "another rank": (changed("rank", config=config | {"r": 3}), "does not fit the model"),
        "unknown kind": (changed("kind", config=config | {"peft_type": "NO"}), "does not fit"),
        "a prompt": (changed("p", config=config | {"peft_type": "PROMPT_TUNING"}), "not supported"),
        "aLoRA": (changed("al", config=config | {"alora_invocation_tokens": [5]}), "not supported"),
        "a model": (base, "it is a model"),
        "nothing": (folder / "nowhere", "adapter_config.json and adapter_model.safetensors"),
    }


@pytest.mark.filterwarnings("ignore")
def test_hostile_adapters(base, tmp_path):
    for name, (folder, why) in wrong_adapters(base, tmp_path).items():
        with pytest.raises(WorkbenchError) as refusal:
            load_policy(base, adapter=folder)
        sentence = str(refusal.value)
        assert why in sentence and "\n" not in sentence and str(folder) in sentence, name


def test_an_adapter_of_another_width_is_refused(base, tmp_path):
    other = tiny.policy(hidden_size=64, max_position_embeddings=256)
    other.model.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    adapter = save_adapter(tmp_path / "other", tmp_path / "a", r=2)
    with pytest.raises(WorkbenchError, match="does not fit the model"):
        load_policy(base, adapter=adapter)


def test_folders_named_in_each_others_place(base, tmp_path):
    """Runs, models and adapters: what to name instead."""
    adapter = save_adapter(base, tmp_path / "lora" / "adapter", r=2)
    whole = tmp_path / "whole"
    shutil.copytree(base, whole / "model")
    for folder in (tmp_path / "lora", whole):
        (folder / "config.json").write_text('{"plan": {}}')

    def refused(model, adapter=None) -> str:
        with pytest.raises(WorkbenchError) as refusal:
            load_policy(model, adapter=adapter)
        return str(refusal.value)

    assert f"and {adapter} as --adapter" in refused(tmp_path / "lora")
    assert f"its policy is {whole / 'model'}" in refused(whole)
    assert "it is an adapter" in refused(adapter)
    assert f"that of this run is {adapter}" in refused(base, tmp_path / "lora")
    for folder in (whole, whole / "adapter", whole / "model"):
        assert "the run trained all weights" in refused(base, folder)
    assert "was made for" in refused(whole / "model", adapter)
    own = save_adapter(whole / "model", tmp_path / "next" / "adapter", r=2)
    load_policy(whole / "model", adapter=own)
    shutil.copy(adapter / "adapter_config.json", base)  # both in one: transformers would apply it
    shutil.copy(adapter / "adapter_model.safetensors", base)
    try:
        assert "is an adapter, or holds one" in refused(base)
    finally:
        (base / "adapter_config.json").unlink()
        (base / "adapter_model.safetensors").unlink()


def test_unsloth_takes_no_saved_adapter(base, tmp_path):
    with pytest.raises(WorkbenchError, match="leave --unsloth or --adapter out"):
        load_policy(base, adapter=tmp_path, unsloth=True)


# ---- the command line


def test_sft_then_reinforcement_learning_then_a_file(tmp_path, capsys):
    """Two stages with LoRA, measured, compared and merged: the first stage is in all of it."""
    model = str(ORGANISM / "0.4m")
    first, second, third = (str(tmp_path / name) for name in ("sft", "rl", "whole"))
    few = ["--steps", "2", "--set", "prompts=2", "eval_every=0"]
    train = ["--model", model, "--task", "arithmetic", *few]
    assert main(["train", "sft", *train, "lr=0.01", "--lora", "4", "--out", first]) == 0
    adapter = ["--adapter", f"{first}/adapter"]
    again = [*train, "k=2", "lr=0.00001", *adapter, "--out"]
    assert main(["train", "grpo", *again, second, "--lora", "8"]) == 0
    assert "is trained further, rank 4 (not 8)" in capsys.readouterr().out
    assert main(["train", "grpo", *again, third]) == 0
    assert f"{first}/adapter is merged into the weights" in capsys.readouterr().out
    assert main(["compare", first, second, third]) == 0
    assert capsys.readouterr().out.count("0.4m + sft/adapter") == 2
    policies = [
        load_policy(model),
        load_policy(model, adapter=f"{first}/adapter"),
        load_policy(model, adapter=f"{second}/adapter"),
        load_policy(f"{third}/model"),
    ]
    [group] = sample_groups(policies[0], TASK, TASK.problems("train", 1, 0), 2, (0,))
    start, sft, *rest = [logps(policy, group.rollouts) for policy in policies]
    for column in rest:  # two small steps from the first stage, which is far from the start
        assert np.abs(column - sft).max() < 0.1 * np.abs(start - sft).max()
        assert np.abs(column - sft).max() > 0
    out = str(tmp_path / "out")
    assert main(["export", second, "--out", out, "--dtype", "fp32"]) == 0
    np.testing.assert_allclose(logps(load_policy(out), group.rollouts), rest[0], atol=2e-4)
    few = ["--task", "arithmetic", "--problems", "2", "--samples", "1", "--json"]
    capsys.readouterr()
    results = []
    for words in (["--model", out], ["--model", model, "--adapter", f"{second}/adapter"]):
        assert main(["eval", *words, *few]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "words",
    [
        ["train", "grpo", "--out", "{out}"],
        ["eval"],
        ["tour", "--out", "{out}"],
        ["cold-start", "--out", "{out}"],
        ["discover", "--out", "{out}", "--task", "arithmetic"],
        ["locators", "--out", "{out}"],
        ["rescue", "--out", "{out}", "--teacher", str(ORGANISM / "0.4m")],
        ["credit", "--out", "{out}"],
        ["lead", "--out", "{out}"],
        ["doctor"],
    ],
    ids=lambda words: words[0],
)
def test_every_command_that_takes_a_model_takes_an_adapter(words, tmp_path, capsys):
    """A missing one is one sentence, and nothing is left behind."""
    words = [word.format(out=tmp_path / "out") for word in words]
    words += ["--model", str(ORGANISM / "0.4m"), "--adapter", str(tmp_path / "nowhere")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "there is no adapter in" in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())
