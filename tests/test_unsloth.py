"""Unsloth itself, on a CPU: ``make test-unsloth``, before each release and whenever
constraints-gpu.txt names another version.

The command makes an environment of its own for it; elsewhere these tests are skipped. Its kernels
run in Triton's interpreter. What only a GPU shows are 4 bits, the LoRA kernels for 16 bits, and the
speed. What it is compared with was made before the import, which changes transformers' classes.
"""

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import toys
import unsloth_on_cpu

from data.organism.build.common import tokenizer
from workbench.core import Credit
from workbench.methods.grpo import GRPO
from workbench.methods.opd import OPD
from workbench.methods.scope import SCOPE
from workbench.methods.sdpo import SDPO
from workbench.methods.tapo import TAPO
from workbench.methods.trapo import TRAPO
from workbench.model.batch import collate, score
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.model.policy import Policy
from workbench.rollouts.sampling import generate
from workbench.training.update import update

if importlib.util.find_spec("unsloth") is None or os.environ.get("UNSLOTH_ALLOW_CPU") != "1":
    pytest.skip("needs Unsloth: make test-unsloth", allow_module_level=True)

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "data/organism/0.4m"
PROMPTS = [tuple(range(10, 10 + n)) for n in (5, 9, 7)]
IDS = torch.arange(10, 40)[None]
# its own forward pass (pairs of keys and values), and transformers' with its kernels in it
MODELS = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": None},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 3.0},
    "smollm3": {},
    "olmo2": {},
    "long": {"max_position_embeddings": 4096, "num_hidden_layers": 1},
}
LONG = torch.randint(10, 100, (1, 2060), generator=torch.Generator().manual_seed(0))


def small(name: str, folder: Path) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    tok = tokenizer()
    ends = {"eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}
    family = "llama" if name == "long" else name
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **tiny.ENGINE_SIZES | ends | MODELS[name])
    )
    return toys.saved(Policy(model, tok, name), folder)


@torch.no_grad()
def outputs(policy):
    """Hidden states of a row; and samples, from prompts of unequal lengths."""
    samples = generate(policy, PROMPTS, [[1, 2], [3], [4]], max_new=[10, 4, 7])
    return policy.hidden(IDS).clone(), samples


def credits_of():
    """Few and short: the interpreter takes milliseconds a row."""
    numbers = np.random.default_rng(0)
    rollouts = [toys.rollout(length, prompt=4, seed=length) for length in (6, 3)]
    return [Credit.of(r, pg=numbers.normal(size=len(r.completion_ids))) for r in rollouts]


def gradients(learner, credits):
    for parameter in learner.parameters:
        parameter.grad = None
    for batch in collate(credits, learner.policy.pad_id, None):
        GRPO().loss(score(learner, batch), batch).value.backward()
    return [p.grad.clone() for p in learner.parameters]


def adapter_of(learner):
    return {
        name: weight.detach().clone()
        for name, weight in learner.policy.model.named_parameters()
        if "lora_" in name and ".default." in name
    }


def with_adapter(learner, adapter):
    """The same adapter: each library draws its own."""
    weights = dict(learner.policy.model.named_parameters())
    assert {name for name in weights if "lora_" in name and ".default." in name} == set(adapter)
    with torch.no_grad():
        for name, weight in adapter.items():
            weights[name].copy_(weight)
    return learner


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What transformers and peft make of all models; then Unsloth is imported."""
    made = {}
    for name in (*MODELS, "organism"):
        folder = MODEL
        if name != "organism":
            folder = small(name, tmp_path_factory.mktemp("models") / name)
        before = outputs(load_policy(folder))
        learner = Learner(load_policy(folder), lora=4)
        tiny.shake_adapter(learner.policy.model)
        made[name] = {
            "folder": folder,
            "base": before,
            "adapter": adapter_of(learner),
            "trained": outputs(learner.policy),
            "gradients": gradients(learner, credits_of()),
        }
    with torch.no_grad():
        made["long row"] = load_policy(made["long"]["folder"]).hidden(LONG).clone()
    unsloth_on_cpu.start()
    return made


def same(found, expected):
    """Hidden states, tokens and log-probs."""
    torch.testing.assert_close(found[0], expected[0], atol=2e-4, rtol=1e-4)
    for row, other in zip(found[1], expected[1], strict=True):
        for a, b in zip(row, other, strict=True):
            assert (a.ids, a.finished) == (b.ids, b.finished)
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def learner_of(plain, name, **options):
    policy = load_policy(plain[name]["folder"], unsloth=True)
    return with_adapter(Learner(policy, lora=4, **options), plain[name]["adapter"])


# ---- the same numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MODELS, "organism"])
def test_it_reads_and_writes_as_transformers_does(plain, name):
    """States, and samples of unequal prompts and budgets: without an adapter, and with one."""
    same(outputs(load_policy(plain[name]["folder"], unsloth=True)), plain[name]["base"])
    same(outputs(learner_of(plain, name).policy), plain[name]["trained"])


@pytest.mark.parametrize(
    "name, checkpointing", [("organism", False), ("qwen3", True), ("olmo2", True)]
)
def test_gradients_are_pefts(plain, name, checkpointing):
    learner = learner_of(plain, name, checkpointing=checkpointing)
    found = gradients(learner, credits_of())
    for a, b in zip(found, plain[name]["gradients"], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max()) + 1e-6, rtol=1e-3)


def test_rows_longer_than_its_default_are_read_whole(plain):
    policy = load_policy(plain["long"]["folder"], unsloth=True)
    assert policy.context == 4096
    with torch.no_grad():
        hidden = policy.hidden(LONG)
    torch.testing.assert_close(hidden, plain["long row"], atol=5e-4, rtol=1e-3)


def test_nothing_is_done_unasked(plain):
    """Neither checkpointing, nor another rotary embedding where the model is short."""
    policy = load_policy(MODEL, unsloth=True)
    rope = policy.base.config.rope_parameters
    assert (rope["rope_type"], policy.context) == ("default", 512)
    Learner(policy, lora=4)
    modules = policy.model.modules()
    assert not any(getattr(module, "gradient_checkpointing", False) for module in modules)
    assert next(policy.base.get_input_embeddings().parameters()).device == policy.device


# ---- training ------------------------------------------------------------------------------------

METHODS = {
    "grpo": GRPO(k=4),
    "sdpo": SDPO(k=4),
    "trapo": TRAPO(),
    "scope": SCOPE(k=4),
    "tapo": TAPO(k=6, n_pos=1, n_neg=1, prefix="none"),
    "opd": OPD(k=4),
}


@dataclass(frozen=True)
class Halves(toys.FirstCharacter):
    """Half of what a random model writes is right; a self-teacher reads an expert's solution."""

    wanted: str = toys.HALF
    max_new: int = 5

    def reprompt(self, problem, *, solution="", attempt="", feedback=""):
        text = f"{problem.messages[0]['content']} {solution} {attempt}"
        return ({"role": "user", "content": text},)


@pytest.mark.parametrize("name", METHODS)
def test_six_methods_take_an_update(plain, name):
    """The teacher is loaded without Unsloth, after its import."""
    expert = load_policy(plain["long"]["folder"])
    same(outputs(expert), plain["long"]["base"])  # the teacher of KD writes
    policy = load_policy(plain["llama"]["folder"], unsloth=True)
    learner = Learner(policy, OptimConfig(lr=1e-2), lora=4, expert=expert)
    task = Halves()
    metrics = update(METHODS[name], learner, task, task.problems("train", 2, 0), (0, 0)).metrics
    assert metrics["gap_max"] < 1e-3 and metrics["grad_norm"] > 1e-5


def test_reference_and_teacher_write_as_themselves(plain):
    learner = learner_of(plain, "organism")
    for which in ("reference", "teacher"):
        with learner.weights(which) as weights:
            # the teacher began as the adapter was made: it does nothing yet
            same(outputs(weights), plain["organism"]["base"])
    same(outputs(learner.policy), plain["organism"]["trained"])


def test_its_adapter_is_right_in_plain_peft(plain, tmp_path):
    """Read in a process without Unsloth, on a model that is shorter than Unsloth's default."""
    learner = learner_of(plain, "organism")
    learner.policy.model.save_pretrained(tmp_path / "adapter")
    script = (
        "import sys, torch\n"
        "from workbench.model.loading import load_policy\n"
        "policy = load_policy(sys.argv[1], adapter=sys.argv[2])\n"
        "torch.save(policy.hidden(torch.arange(10, 40)[None]).detach(), sys.argv[3])\n"
    )
    words = [str(MODEL), str(tmp_path / "adapter"), str(tmp_path / "states.pt")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script, *words], check=True, env=environment)
    torch.testing.assert_close(
        torch.load(tmp_path / "states.pt"), plain["organism"]["trained"][0], atol=1e-4, rtol=1e-4
    )
    with torch.no_grad():
        states = learner.policy.hidden(IDS)
    torch.testing.assert_close(torch.load(tmp_path / "states.pt"), states, atol=2e-4, rtol=1e-4)
