"""What the micro-groups of TRAPO cost: its sampling against GRPO's of as many rollouts, in turns on
the same problems.

    python benchmarks/sampling_cost.py          writes data/study/trapo_sampling.json

Both sample 8 rollouts of each of 16 problems with the organism as it is, on one thread. TRAPO does
so in four generations, one after the other, and writes fewer tokens, because the expert writes
some. What it pays for is decoding steps: each costs something however few rows it has. Time is the
process's own CPU time, which other processes on the machine disturb less than the clock; both are
recorded.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from workbench.core import Method
from workbench.methods.grpo import GRPO
from workbench.methods.trapo import TRAPO
from workbench.model.learner import Learner
from workbench.model.loading import load_policy
from workbench.records import dumps, write_atomic
from workbench.tasks import load_task

ROOT = Path(__file__).resolve().parent.parent
TURNED = "arithmetic:style=turned"  # expert solutions that the organism does not write
OUT = ROOT / "data" / "study" / "trapo_sampling.json"
ROUNDS, PROBLEMS = 15, 16


def measure(method: Method, learner: Learner, task, number: int) -> dict[str, float]:
    """Seconds and generated tokens of one step's sampling."""
    problems = task.problems("train", PROBLEMS, number)
    clock, cpu = time.perf_counter(), time.process_time()
    groups = method.sample(learner, task, problems, (0, number))
    return {
        "cpu": time.process_time() - cpu,
        "clock": time.perf_counter() - clock,
        "tokens": sum(len(r.completion_ids) - r.borrowed for g in groups for r in g.rollouts),
    }


def main() -> None:
    torch.set_num_threads(1)
    learner, task = Learner(load_policy(ROOT / "data" / "organism" / "3m")), load_task(TURNED)
    methods = {"grpo": GRPO(), "trapo": TRAPO()}
    # first: warm
    rounds = [
        {name: measure(method, learner, task, number) for name, method in methods.items()}
        for number in range(ROUNDS + 1)
    ][1:]
    ratios = {
        key: statistics.median(row["trapo"][key] / row["grpo"][key] for row in rounds)
        for key in ("cpu", "clock", "tokens")
    }
    found = {
        "problems": PROBLEMS,
        "rollouts": 8,
        "rounds": ROUNDS,
        "trapo_over_grpo": ratios,
        "median": {
            name: {key: statistics.median(row[name][key] for row in rounds) for key in ratios}
            for name in methods
        },
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(OUT, dumps(found, indent=1) + "\n")
    print(dumps(ratios))


if __name__ == "__main__":
    main()
