"""How hard is the task for the base, and what does a run cost? Measured before the study's plan.

    python -m data.study.dial                    all of it into data/study/dial.json
    python -m data.study.dial --cost             the costs and spreads alone, the rest stays

On 200 problems of the validation split (the study is judged on the test split), 32 samples each, at
several largest numbers: avg, pass@32, and of groups of 8 drawn from the 32 without replacement the
shares that are all wrong, that have contrast, and that TAPO can use (2 to 4 right). ``repeat`` is
what another 4 samples of the same problems change in avg@4: the error within a seed. Then the CPU
seconds of one update of each method, and of the evaluations, on one thread (CPU seconds, because
the machine was shared); and how far seeds of the first study lay apart, paired with GRPO or another
arm: ``total``, the standard deviation of the paired differences, of which ``measured`` is error of
measurement and ``runs`` is left.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import hypergeom

from workbench import methods
from workbench.evaluation.metrics import Evaluation
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.paths import FIRST_STUDY, ORGANISM
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
    """CPU seconds of an update of 8 problems, the median of four after one that warms up."""
    method = methods.find(name)(**{"k": K} if name == "kd" else {})
    expert = load_policy(ORGANISM / "teacher") if method.needs_expert else None
    learner = Learner(load_policy(ORGANISM / "3m"), OptimConfig(lr=1e-4), seed=0, expert=expert)
    count = 64 if name in ("sft", "opd") else 8  # opd: one rollout of each
    seconds = []
    for step in range(5):
        began = time.process_time()
        update(method, learner, task, task.problems("train", count, step), (0, step), rows=32)
        seconds.append(time.process_time() - began)
    return {"method": name, "update": float(np.median(seconds[1:]))}


def evaluation_cost(policy, task) -> dict:
    """CPU seconds a rollout: 200 problems x 4."""
    began = time.process_time()
    sample_groups(policy, task, task.problems("validation", 200, 1), 4, (0, "cost"))
    return {"evaluation": (time.process_time() - began) / 800}


PAIRS = (
    *("sdpo grpo", "tapo grpo", "scope grpo", "opd grpo", "kd grpo", "luffy grpo"),
    *("scope opd", "tapo-cold grpo-cold", "srpo sdpo", "sft-then-rl grpo", "trapo luffy"),
)


def spread(pair: str) -> dict:
    """Of the first study, whose evaluation had 100 problems x 32 a seed."""
    rights = []
    for arm in pair.split():
        by_seed = []
        for seed in range(5):
            path = FIRST_STUDY / f"{arm}-3m-seed{seed}" / "evaluation.json"
            counts = json.loads(path.read_text())["counts"]
            by_seed.append([row[0] / SAMPLES for _, row in sorted(counts.items())])
        rights.append(np.array(by_seed))
    difference = rights[0] - rights[1]
    total = difference.mean(1).std(ddof=1)
    measured = np.sqrt((difference.var(1, ddof=1) / difference.shape[1]).mean())
    runs = np.sqrt(max(0.0, total**2 - measured**2))
    return {"pair": pair, "total": float(total), "measured": float(measured), "runs": float(runs)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cost", action="store_true")
    only_cost = parser.parse_args().cost
    torch.set_num_threads(1)
    policy = load_policy(ORGANISM / "3m")
    if only_cost:
        table = json.loads(OUT.read_text())["dial"]
    else:
        table = [dial(policy, largest) for largest in LARGEST]
    task = load_task("arithmetic:largest=26")
    record = {"problems": PROBLEMS, "samples": SAMPLES, "dial": table}
    record["cost"] = [evaluation_cost(policy, task), *(cost(name, task) for name in COSTED)]
    record["spread"] = [spread(pair) for pair in PAIRS]
    write_atomic(OUT, dumps(record, indent=1) + "\n")
    for row in (*table, *record["cost"], *record["spread"]):
        print(row)


if __name__ == "__main__":
    main()
