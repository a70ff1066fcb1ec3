"""How hard is the task for the base, and what does a run cost? Measured before the study's plan.

    python -m data.study.dial                    data/study/dial.json

On 200 problems of the validation split (the study is judged on the test split), 32 samples each, at
several largest numbers: avg, pass@32, and of groups of 8 drawn from the 32 without replacement the
shares that are all wrong, that have contrast, and that TAPO can use (2 to 4 right). ``repeat`` is
what another 4 samples of the same problems change in avg@4: the error within a seed. Then the
seconds of one update, of each method, and of the evaluations, on one thread of a shared machine.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import hypergeom

from workbench import methods
from workbench.evaluation.metrics import Evaluation
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.paths import ORGANISM
from workbench.records import dumps, write_atomic
from workbench.rollouts.sampling import sample_groups
from workbench.tasks import load_task
from workbench.training.update import update

OUT = Path(__file__).with_name("dial.json")
LARGEST = (20, 26, 30, 34, 40)
COSTED = ("grpo", "sdpo", "tapo", "trapo", "luffy", "scope", "opd", "kd", "sft")
PROBLEMS, SAMPLES, K = 200, 32, 8


def dial(policy, largest: int) -> dict:
    task = load_task(f"arithmetic:largest={largest}")
    problems = task.problems("validation", PROBLEMS, 0)
    began = time.perf_counter()
    groups = sample_groups(policy, task, problems, SAMPLES, (0, "dial"))
    seconds = time.perf_counter() - began
    whole = Evaluation.of(groups)
    right = np.array([sum(r.verdict.correct for r in g.rollouts) for g in groups])
    chance = hypergeom(SAMPLES, right[:, None], K).pmf(np.arange(K + 1)).mean(0)
    hits = np.array([[r.verdict.correct for r in g.rollouts] for g in groups]).reshape(
        PROBLEMS, SAMPLES // 4, 4
    )
    return {
        "largest": largest,
        "avg": whole.avg,
        "pass@32": whole.pass_at[SAMPLES],
        "length": whole.length,
        "all_wrong": float(chance[0]),
        "contrast": float(1 - chance[0] - chance[K]),
        "eligible": float(chance[2:5].sum()),
        "repeat": float(hits.mean((0, 2)).std(ddof=1)),
        "between_problems": float((right / SAMPLES).std(ddof=1)),
        "seconds_a_rollout": seconds / (PROBLEMS * SAMPLES),
    }


def cost(name: str, task) -> dict:
    """Seconds of an update of 16 problems, the median of five after one that warms up."""
    kind = methods.find(name)
    method = kind(**{"k": K} if name in ("opd", "kd") else {})
    expert = load_policy(ORGANISM / "teacher") if method.needs_expert else None
    learner = Learner(load_policy(ORGANISM / "3m"), OptimConfig(lr=1e-4), seed=0, expert=expert)
    count = 128 if name == "sft" else 16
    seconds = []
    for step in range(6):
        began = time.perf_counter()
        update(method, learner, task, task.problems("train", count, step), (0, step), rows=32)
        seconds.append(time.perf_counter() - began)
    return {"method": name, "update": float(np.median(seconds[1:]))}


def main() -> None:
    torch.set_num_threads(1)
    policy = load_policy(ORGANISM / "3m")
    table = [dial(policy, largest) for largest in LARGEST]
    task = load_task("arithmetic:largest=26")
    record = {"problems": PROBLEMS, "samples": SAMPLES, "dial": table}
    record["cost"] = [cost(name, task) for name in COSTED]
    write_atomic(OUT, dumps(record, indent=1) + "\n")
    for row in (*table, *record["cost"]):
        print(row)


if __name__ == "__main__":
    main()
