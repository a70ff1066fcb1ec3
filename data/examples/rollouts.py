"""Makes rollouts.jsonl: what two models wrote, as a file from elsewhere would have it.

    python -m data.examples.rollouts

The 0.4m organism on chains of four operations; SmolLM2-135M-Instruct on sums in words. Rewards: the
final answer.
"""

from __future__ import annotations

import json
from pathlib import Path

from workbench.core import Problem
from workbench.exchange.external import GivenAnswers
from workbench.model.loading import load_policy
from workbench.paths import ORGANISM
from workbench.rollouts.sampling import sample_groups
from workbench.tasks import load_task

SUMS = {
    "Tom has 12 apples and buys 9 more. How many apples does he have?": "21",
    "A bus has 30 seats. 17 are taken. How many are free?": "13",
}


def main() -> None:
    chains = load_task("arithmetic").problems("test", 4, 5)
    sums = [
        Problem(f"sum:{i}", ({"role": "user", "content": question},), answer)
        for i, (question, answer) in enumerate(SUMS.items())
    ]
    lines = []
    for author, model, problems, k in (
        ("organism-0.4m", str(ORGANISM / "0.4m"), chains, 6),
        ("SmolLM2-135M-Instruct", "smollm2", sums, 4),
    ):
        task = GivenAnswers(max_new=80)
        for group in sample_groups(load_policy(model, frozen=True), task, problems, k, (0, "own")):
            row = {
                "author": author,
                "question": group.problem.messages[-1]["content"],
                "answer": group.problem.answer,
                "completions": [rollout.text for rollout in group.rollouts],
                "rewards": [int(reward) for reward in group.rewards],
            }
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    Path(__file__).with_suffix(".jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
