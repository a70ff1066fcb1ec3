"""vLLM itself, in its build for CPUs: ``make test-vllm``, before each release and whenever
constraints-vllm.txt names another version.

The command makes an environment of its own for it; elsewhere these tests are skipped. What only a
GPU shows is that its kernels round no worse: the kernels for experts are not among those for CPUs.
"""

import os
from pathlib import Path

import pytest
import tiny
import torch
import toys

from data.organism.build.common import tokenizer
from workbench.app.cli import main
from workbench.core import WorkbenchError
from workbench.methods.grpo import GRPO
from workbench.methods.opd import OPD
from workbench.methods.scope import SCOPE
from workbench.methods.sdpo import SDPO
from workbench.methods.tapo import TAPO
from workbench.methods.trapo import TRAPO
from workbench.model import distributed
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.model.policy import Policy
from workbench.model.scores import capped
from workbench.records import read_run
from workbench.rollouts.sampling import generate
from workbench.rollouts.vllm import VLLM
from workbench.tasks.arithmetic import Arithmetic
from workbench.training.update import update

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

ORGANISM = Path(__file__).parent.parent / "data" / "organism"
MODEL = ORGANISM / "3m"
PROMPTS = [tuple(range(10, 10 + n)) for n in (5, 9, 7)]
TASK = Arithmetic()
WINDOWED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}


@pytest.fixture(scope="module")
def learner():
    """The organism with LoRA 8, and its one engine."""
    learner = Learner(
        load_policy(MODEL), OptimConfig(lr=1e-2), lora=8, expert=load_policy(ORGANISM / "teacher")
    )
    learner.policy.engine = VLLM(learner.policy)
    return learner


@pytest.fixture(autouse=True)
def from_the_start(request):
    """Each test begins with the same adapter, with which the organism still solves problems."""
    if "learner" in request.fixturenames:
        shake(request.getfixturevalue("learner").policy, 0.05)


@torch.no_grad()
def shake(policy, strength):
    tiny.shake_adapter(policy.model)
    for name, weight in policy.model.named_parameters():
        if "lora_B.default" in name:
            weight *= strength


def small(family: str, folder: Path, **options) -> Learner:
    """A tiny random model of ``family`` with a shaken adapter of rank 4."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    tok = tokenizer()
    ends = {"eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}
    config = AutoConfig.for_model(family, **tiny.ENGINE_SIZES | ends | options)
    model = AutoModelForCausalLM.from_config(config)
    toys.saved(Policy(model, tok, family), folder)
    learner = Learner(load_policy(folder), lora=4)
    tiny.shake_adapter(learner.policy.model)
    return learner


@torch.no_grad()
def trainers(policy, prompt, ids):
    """Log-probs of a completion by a plain forward pass of the trainer's model."""
    row = torch.tensor([[*prompt, *ids]])
    hidden = policy.hidden(row)[0, len(prompt) - 1 : -1]
    logits = capped(hidden @ policy.head.T, policy.logits.cap)
    return logits.log_softmax(-1).gather(1, row[0, len(prompt) :, None])[:, 0]


def gap(policy, samples, prompts=PROMPTS):
    """Mean |sampler - trainer| over the tokens of all samples."""
    gaps = [
        (trainers(policy, prompt, sample.ids) - torch.tensor(sample.logprobs)).abs()
        for prompt, row in zip(prompts, samples)
        for sample in row
    ]
    return float(torch.cat(gaps).mean())


def own(policy, *arguments, **options):
    """What the in-process engine writes."""
    engine, policy.engine = policy.engine, None
    try:
        return generate(policy, *arguments, **options)
    finally:
        policy.engine = engine


def step(learner, method, number=0, prompts=4):
    problems = TASK.problems("train", prompts, number)
    return update(method, learner, TASK, problems, (0, number), step=number).metrics


# ---- mixtures of experts -------------------------------------------------------------------------

# These come first: vLLM makes the groups of processes that experts want only for the first model.

EXPERTS = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def test_adapters_of_experts_go_over(tmp_path):
    """What vLLM holds of each expert is peft's product of B and A."""
    learner = small("qwen3_moe", tmp_path, **EXPERTS["qwen3_moe"])
    config = learner.policy.model.peft_config["default"]
    assert max(config.rank_pattern.values()) == 8 > config.r
    engine = VLLM(learner.policy)
    request = engine._adapter()
    core = engine._llm.llm_engine
    core.add_lora(request)
    worker = core.model_executor.driver_worker.model_runner.lora_manager
    manager = worker._adapter_manager
    manager.activate_adapter(request.lora_int_id)
    held = manager.modules["model.layers.1.mlp.experts"]
    pairs = zip(
        (*held.w13_lora_b_stacked, *held.w2_lora_b_stacked),
        (*held.w13_lora_a_stacked, *held.w2_lora_a_stacked),
    )
    gate, up, down = (b[0].float() @ a[0].float() for b, a in pairs)
    wrappers = {
        module.parameter_name: module.get_delta_weight("default")
        for name, module in learner.policy.model.named_modules()
        if "layers.1.mlp.experts" in name and hasattr(module, "parameter_name")
    }
    for vllms, ours in (
        (torch.cat([gate, up], 1), wrappers["gate_up_proj"]),
        (down, wrappers["down_proj"]),
    ):
        torch.testing.assert_close(vllms, ours, atol=1e-3, rtol=1e-3)
        assert ours.abs().max() > 0.1


def test_experts_of_another_name_are_refused(tmp_path):
    """vLLM would sample without their adapter, and say nothing."""
    learner = small("mixtral", tmp_path, **EXPERTS["mixtral"])
    with pytest.raises(WorkbenchError, match="without their adapter: leave --vllm out"):
        VLLM(learner.policy)


# ---- sampler and trainer -------------------------------------------------------------------------


def test_the_adapter_just_trained_is_sampled_from(learner, monkeypatch):
    """The gap stays at what 16 bits round, while the adapter moves; and not because it moves too
    little: where it is not handed over the gap is many times larger.
    """
    gaps = [step(learner, GRPO(k=8), number)["gap_mean"] for number in range(3)]
    assert max(gaps) < 5e-3 and not learner.policy.trains_in_fp32
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "fingerprint", lambda tensors: [0])  # "nothing has changed"
        old = [step(learner, GRPO(k=8), number)["gap_mean"] for number in range(3, 6)]
    assert old[-1] > 10 * max(gaps)


def test_the_organism_is_sampled_to_four_digits(learner):
    shake(learner.policy, 0)
    metrics = step(learner, GRPO(k=8), prompts=8)
    assert 0 < metrics["gap_mean"] < 3e-4 and metrics["grad_norm"] > 0


METHODS = {
    "grpo": GRPO(k=4),
    "sdpo": SDPO(k=4),
    "trapo": TRAPO(),
    "scope": SCOPE(k=4),
    "tapo": TAPO(k=6, n_pos=1, n_neg=1, prefix="none"),
    "opd": OPD(k=4),
}


@pytest.mark.parametrize("name", METHODS)
def test_six_methods_take_an_update(learner, name):
    metrics = step(learner, METHODS[name], prompts=6)
    assert metrics["gap_mean"] < 5e-3 and metrics["grad_norm"] > 1e-4


def test_policy_reference_and_teacher_are_each_sampled_as_themselves(learner):
    shake(learner.policy, 1)
    arguments = (PROMPTS, [[1, 2], [3, 4], [5, 6]])
    policy = generate(learner.policy, *arguments, max_new=20)
    assert gap(learner.policy, policy) < 5e-3
    written = {}
    for which in ("reference", "teacher"):
        with learner.weights(which) as weights:
            written[which] = generate(weights, *arguments, max_new=20)
            assert gap(weights, written[which]) < 5e-3
    assert gap(learner.policy, written["reference"]) > 0.1
    assert generate(learner.policy, *arguments, max_new=20) == policy


# ---- what a request says -------------------------------------------------------------------------


def test_seeds_draw_and_repeat(learner):
    seeds = [[1, 2, 3], [], [4]]
    first = generate(learner.policy, PROMPTS, seeds, max_new=24)
    assert [len(row) for row in first] == [3, 0, 1]
    assert generate(learner.policy, PROMPTS, seeds, max_new=24) == first
    assert len({sample.ids for sample in first[0]}) == 3
    assert generate(learner.policy, [], [], max_new=8) == []
    others = generate(learner.policy, PROMPTS, [[7, 8, 9], [], [10]], max_new=24)
    assert [s.ids for s in others[0]] != [s.ids for s in first[0]]


def test_greedy_is_the_in_process_engines(learner):
    arguments = (PROMPTS, [[1]] * 3)
    ours, vllms = (
        write(learner.policy, *arguments, max_new=16, temperature=0) for write in (own, generate)
    )
    equal = [a.ids == b.ids for [a], [b] in zip(ours, vllms)]
    assert sum(equal) >= 2, "a tie may tip once"


def test_turns_end_at_stop_tokens_and_budgets(learner):
    """The organism's own questions, which end; and prompts of nothing, which mostly do not."""
    problems = TASK.problems("test", 4, 0)
    asked = [learner.policy.prompt_ids(problem.messages) for problem in problems]
    budgets = [64, 64, 64, 64, 3, 9, 5]
    samples = generate(learner.policy, asked + PROMPTS, [[1, 2, 3, 4]] * 7, max_new=budgets)
    stops = learner.policy.stop_ids
    for row, budget in zip(samples, budgets):
        for sample in row:
            assert sample.finished == (sample.ids[-1] in stops)
            assert len(sample.ids) == len(sample.logprobs) <= budget
            assert sample.finished or len(sample.ids) == budget
            assert not stops & set(sample.ids[:-1])
    assert {sample.finished for row in samples for sample in row} == {True, False}


def test_log_probs_are_those_at_temperature_one(learner):
    hot = generate(learner.policy, PROMPTS, [[1, 2]] * 3, max_new=20, temperature=0.5)
    assert gap(learner.policy, hot) < 5e-3


def test_what_does_not_fit_is_refused(learner):
    room = learner.policy.context
    with pytest.raises(WorkbenchError, match=f"do not fit the model's context of {room}"):
        generate(learner.policy, PROMPTS[:1], [[1]], max_new=room)


# ---- other models --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_padded_rows_of_the_vocabulary_are_never_sampled(family, tmp_path):
    """They would take nearly all of the probability, were they counted."""
    learner = small(family, tmp_path, vocab_size=256, tie_word_embeddings=False)
    with torch.no_grad():
        head = learner.policy.base.get_output_embeddings().weight
        head[128:] = 4 * head[:128]
    with learner.policy.model.disable_adapter():
        learner.policy.base.save_pretrained(tmp_path / "padded")
    plain = load_policy(tmp_path)
    with torch.no_grad():
        plain.base.get_output_embeddings().weight.copy_(head)
    toys.saved(plain, tmp_path / "padded")
    learner = Learner(load_policy(tmp_path / "padded"), lora=4)
    tiny.shake_adapter(learner.policy.model)
    learner.policy.engine = VLLM(learner.policy)
    samples = generate(learner.policy, PROMPTS, [list(range(8))] * 3, max_new=40)
    assert max(max(sample.ids) for row in samples for sample in row) < 128
    assert gap(learner.policy, samples) < 5e-3


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_families_without_fp16_are_sampled_in_bf16(family, tmp_path):
    learner = small(family, tmp_path, **WINDOWED)
    learner.policy.engine = VLLM(learner.policy)
    samples = generate(learner.policy, PROMPTS, [[1, 2]] * 3, max_new=40)
    assert gap(learner.policy, samples) < 0.03


# ---- the command line ----------------------------------------------------------------------------


def test_the_command_line_trains_with_it(tmp_path):
    settings = ["k=4", "prompts=4", "eval_every=1", "eval_problems=4", "eval_samples=1"]
    words = ["train", "grpo", "--model", str(MODEL), "--vllm", "--lora", "8", "--steps", "2"]
    options = [word for setting in settings for word in ("--set", setting)]
    assert main([*words, *options, "--out", str(tmp_path / "run")]) == 0
    metrics = read_run(tmp_path / "run").metrics
    assert len(metrics) == 2 and metrics["gap_mean"].max() < 5e-3
