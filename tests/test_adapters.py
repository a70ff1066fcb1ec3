"""Adapters that a policy was loaded with: what is trained next, and its reference and teacher, start
from them; what is saved is the policy; hostile folders are one sentence.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from workbench.core import WorkbenchError
from workbench.methods.grpo import GRPO
from workbench.model.adapters import read_config
from workbench.model.batch import rescore
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.rollouts.sampling import sample_groups
from workbench.tasks.arithmetic import Arithmetic
from workbench.training.run import TrainConfig, fit
from workbench.training.update import update

TASK = Arithmetic()
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
    """Qwen2 has biases, and here a head of its own."""
    apart = {"tie_word_embeddings": False} if family == "qwen2" else {}
    policy = tiny.policy(family, max_position_embeddings=256, num_hidden_layers=2, **apart)
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {family: save_base(family, root / family) for family in ("llama", "qwen2")}


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
CASES += [("qwen2", variant) for variant in VARIANTS if "bias" in variant]
CASES += [("qwen2", "head saved whole"), ("qwen2", "lora on both")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lora", [4, 0], ids=["lora", "all weights"])
@pytest.mark.parametrize("family, variant", CASES)
def test_everything_starts_from_the_policy_as_loaded(
    bases, rollouts, family, variant, lora, tmp_path
):
    """Before, at the start, the reference and the teacher: one policy, and that of peft alone. After
    training the reference is still that; the policy is not, and what is saved is the policy.
    """
    base = bases[family]
    adapter = save_adapter(base, tmp_path / "a", **VARIANTS[variant])
    policy = load_policy(base, adapter=adapter)
    before = logps(policy, rollouts)
    np.testing.assert_allclose(before, plain_logps(base, adapter, rollouts), atol=2e-4)
    assert np.abs(before - logps(load_policy(base), rollouts)).max() > 0.05
    if variant == "lora_bias" and not lora and family == "llama":  # a layer without a bias
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
