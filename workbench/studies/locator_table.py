"""Which locator finds the failure point?

Every locator against the truth on wrong attempts of the organism.

    python -m workbench.studies.locator_table                        writes data/locators.json and
        data/locators.md
    python -m workbench.studies.locator_table --attempts 40 --out .  a quick look

One wrong attempt is taken from each problem of the test split that has one (the first of its K), so
the attempts are independent and the bootstrap over them is honest. The truth is the first step that
was wrong when written. No answer counts as a miss.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from workbench.core import Group, Task, WorkbenchError
from workbench.evaluation.metrics import bootstrap
from workbench.inspection.generative_locators import OwnDiagnosis, ValueDrop
from workbench.inspection.locators import (
    Case,
    Chance,
    Divergence,
    Finding,
    SteepestDrop,
    SustainedNegative,
    Truth,
)
from workbench.inspection.readings import inspect_group
from workbench.model.loading import load_policy
from workbench.model.policy import Policy
from workbench.paths import DATA, ORGANISM
from workbench.records import write_atomic
from workbench.rollouts.sampling import sample_groups
from workbench.tasks import load_task
from workbench.viz.page import plain_table

DRAW = 100  # most problems sampled at once
MEASURES = {"exact": "right step", "within_one": "within one step", "answered": "gives an answer"}


def wrong_attempts(
    policy: Policy, task: Task, attempts: int, k: int, seed: int
) -> list[tuple[Group, int]]:
    """(group, index of its first wrong rollout) of as many test problems.

    Raises WorkbenchError when the split has too few.
    """
    found, drawn, step = [], 0, min(DRAW, 2 * attempts)
    problems = task.problems("test", 3 * attempts, seed)
    while len(found) < attempts and drawn < len(problems):
        for group in sample_groups(
            policy, task, problems[drawn : drawn + step], k, (seed, "locators")
        ):
            wrong = next((i for i, r in enumerate(group.rollouts) if not r.verdict.correct), None)
            found += [(group, wrong)] if wrong is not None else []
        drawn += step
    if len(found) < attempts:
        raise WorkbenchError(
            f"{policy.name} fails only {len(found)} of {len(problems)} problems, {attempts} "
            "wrong attempts were wanted"
        )
    return found[:attempts]


def score(findings: Sequence[Finding], truths: Sequence[Finding]) -> dict[str, object]:
    """Rates over the attempts with their 95 % intervals, [value, low, high], and the mean of
    generated tokens. The first candidate counts.
    """
    away = np.array(
        [
            abs(f.candidates[0].step - t.candidates[0].step) if f.candidates else np.inf
            for f, t in zip(findings, truths, strict=True)
        ]
    )
    rates = {"exact": away == 0, "within_one": away <= 1, "answered": np.isfinite(away)}
    return {name: [float(np.mean(hits)), *bootstrap(hits)] for name, hits in rates.items()} | {
        "tokens": float(np.mean([f.cost for f in findings]))
    }


def measure(
    policy: Policy, task: Task, attempts: int, k: int, samples: int, seed: int, says=print
) -> dict[str, object]:
    """The whole table as plain data."""
    chosen = wrong_attempts(policy, task, attempts, k, seed)
    says(f"{attempts} wrong attempts")
    plain, told = (
        [
            Case(inspect_group(policy, group, task, show=(kind,)), i, policy.decode)
            for group, i in chosen
        ]
        for kind in ("solution", "feedback")
    )
    truths = Truth().locate(plain)
    runs = {
        "chance": (Chance(seed), plain),
        "divergence from the nearest correct sibling": (Divergence(), plain),
        "steepest drop of Δ, teacher reads a sibling": (SteepestDrop(), plain),
        "sustained negative Δ, teacher reads a sibling": (SustainedNegative(), plain),
        "steepest drop of Δ, teacher reads the feedback*": (SteepestDrop(), told),
        "sustained negative Δ, teacher reads the feedback*": (SustainedNegative(), told),
        "own diagnosis (TAPO)": (OwnDiagnosis(policy, task, seed), plain),
        f"value drop, {samples} samples a step": (ValueDrop(policy, task, samples, seed), plain),
    }
    locators = {}
    for name, (locator, where) in runs.items():
        began = time.perf_counter()
        locators[name] = score(locator.locate(where), truths)
        says(f"{name}: {locators[name]['exact'][0]:.3f} ({time.perf_counter() - began:.0f} s)")
    return {
        "schema_version": 1,
        "model": Path(policy.name).name,
        "task": repr(task),
        "split": "test",
        "seed": seed,
        "attempts": attempts,
        "rollouts": k,
        "steps": float(np.mean([len(case.layout.steps) for case in plain])),
        "with_sibling": float(np.mean([bool(case.siblings()) for case in plain])),
        "locators": locators,
    }


def table(found: dict) -> str:
    """The table in words, with its scope."""
    rows = [
        [
            name,
            *(f"{row[m][0]:.1%} [{row[m][1]:.1%}, {row[m][2]:.1%}]" for m in MEASURES),
            f"{row['tokens']:.0f}",
        ]
        for name, row in sorted(found["locators"].items(), key=lambda item: -item[1]["exact"][0])
    ]
    return f"""# Where did it go wrong?

Every locator against the truth, on {found["attempts"]} wrong attempts of the organism `{found["model"]}`, one a problem ({found["task"]}, test split,
{found["rollouts"]} rollouts a problem, seed {found["seed"]}). An attempt has {found["steps"]:.1f} steps; {found["with_sibling"]:.0%} of the attempts have a
correct sibling. In brackets: 95 % bootstrap interval over the attempts. No answer counts as a miss. Tokens: generated for one attempt, beyond the group itself.

```text
{plain_table(["locator", *MEASURES.values(), "tokens"], rows)}
```

\\* The feedback of this task names a wrong step, so these two rows show how much of what the teacher reads comes through, not a discovery.

Scope. One tiny model on chains of + and -, where each step depends on the one before and the first wrong step is known exactly. The numbers say
how the locators compare there, and nothing about free text or large models. The truth is the first step that was wrong when written, also where
the attempt took it back and failed later. Made by `python -m workbench.studies.locator_table --attempts {found["attempts"]} --seed {found["seed"]}`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(ORGANISM / "3m"))
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--attempts", type=int, default=500)
    parser.add_argument(
        "--rollouts",
        type=int,
        default=8,
        help="K: attempts at each problem, which are each other's siblings",
    )
    parser.add_argument(
        "--samples", type=int, default=8, help="continuations from each step, for the value drop"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=DATA)
    args = parser.parse_args()
    found = measure(
        load_policy(args.model),
        load_task(args.task),
        args.attempts,
        args.rollouts,
        args.samples,
        args.seed,
    )
    write_atomic(args.out / "locators.json", json.dumps(found, indent=1, ensure_ascii=False))
    write_atomic(args.out / "locators.md", table(found))
    print(table(found))


if __name__ == "__main__":
    main()
