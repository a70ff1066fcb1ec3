"""How much faster Llama's relatives are by our own forward pass than by transformers', in turns.

    python benchmarks/fast_path.py          writes data/study/fast_path.json (eight minutes)

Each family that workbench/model/llama.py knows, with random weights of two shapes: the organism's,
and SmolLM2-135M's width and vocabulary with six of its thirty layers. A LoRA adapter of rank 8, one
GRPO step of 2 problems x 8 rollouts; on one thread, in the process's own CPU time, which others on
the machine disturb less than the clock. That both compute the same is tests/test_llama_family.py's.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import gpu
import torch
from transformers import AutoModelForCausalLM

from workbench.methods.grpo import GRPO
from workbench.model import decoder, llama
from workbench.model.learner import Learner
from workbench.records import dumps, write_atomic
from workbench.training.update import update

OUT = Path(__file__).resolve().parent.parent / "data" / "study" / "fast_path.json"
SHAPES = {  # the six of gpu.SHAPES, and the vocabulary
    "organism": (192, 512, 6, 6, 6, 32, 512),
    "smollm2, 6 layers": (576, 1536, 6, 9, 3, 64, 49_152),
}
ROUNDS, PROBLEMS, PROMPT, NEW, RANK = 3, 2, 32, 32, 8


def learner_of(family: str, shape: str) -> Learner:
    """Random weights, checked as every model is when it is loaded."""
    *sizes, vocabulary = SHAPES[shape]
    config = gpu.config_of(family, sizes, vocabulary, max_position_embeddings=1024)
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    policy = gpu.policy_of(net.eval().requires_grad_(False), f"{family}, {shape}")
    decoder.check(policy)
    if not policy.fast:
        raise SystemExit(f"{policy.name}: the fast path does not take it")
    return Learner(policy, lora=RANK)


def measure(learner: Learner, number: int) -> dict[str, float]:
    """CPU seconds of one step, and of its sampling alone."""
    task = gpu.Coins(NEW, PROMPT)
    problems = task.problems("train", PROBLEMS, number)
    method, began = GRPO(k=8), time.process_time()
    method.sample(learner, task, problems, (0, number))
    sampled = time.process_time()
    update(method, learner, task, problems, (0, number), rows=gpu.ROWS)
    step = time.process_time() - sampled
    return {"sampling": sampled - began, "step": step}


def compare(family: str, shape: str) -> dict[str, float]:
    """Fast over general, medians of the rounds; the first of each is not counted."""
    learner, taken = learner_of(family, shape), {True: [], False: []}
    for number in range(ROUNDS + 1):
        for fast in (True, False):
            learner.policy.fast = fast
            taken[fast].append(measure(learner, number))
    medians = {
        fast: {key: statistics.median(row[key] for row in rows[1:]) for key in rows[0]}
        for fast, rows in taken.items()
    }
    return {key: medians[True][key] / medians[False][key] for key in medians[True]}


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for shape in SHAPES:
        for family in llama.FAMILIES:
            rows.append({"shape": shape, "family": family, **compare(family, shape)})
            print(dumps(rows[-1]), flush=True)
    found = {"rounds": ROUNDS, "rollouts": 8 * PROBLEMS, "new": NEW, "fast_over_general": rows}
    write_atomic(OUT, dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
