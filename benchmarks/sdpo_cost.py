"""What SDPO costs: one of its steps against one of GRPO's on the same batch, and the memory of its
divergence as the vocabulary grows.

    python benchmarks/sdpo_cost.py                 writes data/study/sdpo_cost.json

Time. They take steps in turns on the organism: 16 problems x 8 rollouts, one thread, the seconds of
CPU that the process used, which other work on the machine changes less than the time on the wall.
The learning rate moves no weight, so all see the same rollouts in every step. The ratio is the
median over the steps of SDPO's time over GRPO's.

Memory. A process of its own for each number: the largest resident set of a divergence, forward and
backward, above that of the same process before it. By chunk, as the package does it, it rises to
the size of a chunk (32 MB of logits, and what is made of them) and stays there; beside it the
textbook, with both [tokens, vocabulary] tables of log-probabilities at once.
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
OUT = ROOT / "data" / "study" / "sdpo_cost.json"
STEPS, PROMPTS, STILL = 8, 16, 1e-12
WIDTH, VOCABULARIES = 64, (2_000, 8_000, 32_000, 128_000)
WAYS = (("by chunk", 512), ("by chunk", 2048), ("whole tables", 512))  # and tokens


def step_times() -> dict:
    """Medians over the steps, after one that is not counted."""
    import torch

    from workbench.methods.grpo import GRPO
    from workbench.methods.sdpo import SDPO
    from workbench.model.learner import Learner, OptimConfig
    from workbench.model.loading import load_policy
    from workbench.tasks.arithmetic import Arithmetic
    from workbench.training.update import update

    torch.set_num_threads(1)
    task = Arithmetic()
    methods = {"grpo": GRPO(), "sdpo": SDPO(), "sdpo, mixed teacher": SDPO(teacher="mixed")}
    learners = {
        name: Learner(load_policy(ROOT / "data" / "organism" / "3m"), OptimConfig(lr=STILL))
        for name in methods
    }
    laps: dict[str, list[float]] = {name: [] for name in methods}
    for step in range(STEPS + 1):
        problems, written = task.problems("train", PROMPTS, step), set()
        for name, method in methods.items():
            began = time.process_time()
            record = update(method, learners[name], task, problems, (0, step), step=step)
            laps[name].append(time.process_time() - began)
            written.add(tuple(r.completion_ids for group in record.groups for r in group.rollouts))
        assert len(written) == 1, "the methods did not see the same rollouts"
    ratios = {
        name: [mine / base for mine, base in zip(times, laps["grpo"])][1:]
        for name, times in laps.items()
        if name != "grpo"
    }
    return {
        "steps": STEPS,
        "prompts": PROMPTS,
        "rollouts": methods["sdpo"].k,
        "cpu_seconds": {name: statistics.median(times[1:]) for name, times in laps.items()},
        "ratio": {
            name: {"median": statistics.median(row), "least": min(row), "most": max(row)}
            for name, row in ratios.items()
        },
    }


def peak(how: str, tokens: int, vocabulary: int) -> float:
    """MB that a divergence adds to this process."""
    import torch

    from workbench.model.scores import divergence

    torch.set_num_threads(1)
    head, teacher_head = torch.randn(2, vocabulary, WIDTH) / WIDTH**0.5
    hidden, teacher = torch.randn(2, tokens, WIDTH)
    hidden.requires_grad_()
    resident = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # noqa: E731
    before = resident()
    if how == "by chunk":
        value = divergence(
            hidden, head, teacher, teacher_head, torch.zeros(tokens, dtype=torch.long), 0.5, 100
        ).value
    else:
        log_p, log_q = (hidden @ head.T).log_softmax(-1), (teacher @ teacher_head.T).log_softmax(-1)
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        value = (
            (log_p.exp() * (log_p - log_m)).sum(-1) + (log_q.exp() * (log_q - log_m)).sum(-1)
        ) / 2
    value.sum().backward()
    return resident() - before


def memory() -> dict:
    def fresh(*words) -> int:
        ran = subprocess.run(
            [sys.executable, __file__, "--peak", *map(str, words)],
            capture_output=True,
            text=True,
            check=True,
        )
        return round(float(ran.stdout))

    return {
        "vocabularies": VOCABULARIES,
        "mb": {
            f"{how}, {tokens:,} tokens": [fresh(how, tokens, v) for v in VOCABULARIES]
            for how, tokens in WAYS
        },
    }


def main() -> None:
    # first: the largest resident set of a new process begins at that of the one that started it
    found = {"memory": memory()}
    found["time"] = step_times()
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    for name, ratio in found["time"]["ratio"].items():
        print(
            f"{name}: {ratio['median']:.2f} of GRPO's step [{ratio['least']:.2f}, "
            f"{ratio['most']:.2f}]"
        )
    for how, mb in found["memory"]["mb"].items():
        print(f"{how}: " + ", ".join(f"{size} MB at {v:,}" for v, size in zip(VOCABULARIES, mb)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print(peak(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    else:
        main()
