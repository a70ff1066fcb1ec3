"""Which locator finds the failure point?

Every locator against the truth on wrong attempts of the organism.

    workbench locators                           writes data/locators.json and data/locators.md
    workbench locators --attempts 40 --out .     a quick look

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

from workbench.core import Group, Task, refuse_if
from workbench.evaluation.statistics import bootstrap
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
from workbench.options import add_flags
from workbench.paths import DATA, ORGANISM
from workbench.records import refuse_unwritable, write_atomic
from workbench.rollouts.sampling import sample_groups
from workbench.tasks import load_task
from workbench.viz.page import markdown_table

DRAW = 100  # most problems sampled at once
MEASURES = {"exact": "right step", "within_one": "within one step", "answered": "gives an answer"}


def wrong_attempts(
    policy: Policy, task: Task, attempts: int, k: int, seed: int
) -> list[tuple[Group, int]]:
    """(group, index of its first wrong rollout) of as many test problems.

    Raises WorkbenchError when the split has too few.
    """
    cases = []
    at_once = min(DRAW, 2 * attempts)
    problems = task.problems("test", 3 * attempts, seed)
    for drawn in range(0, len(problems), at_once):
        if len(cases) >= attempts:
            break
        batch = problems[drawn : drawn + at_once]
        for group in sample_groups(policy, task, batch, k, (seed, "locators")):
            wrong = [i for i, r in enumerate(group.rollouts) if not r.verdict.correct]
            if wrong:
                cases.append((group, wrong[0]))
    refuse_if(
        len(cases) < attempts,
        f"{policy.name} fails only {len(cases)} of {len(problems)} problems, {attempts} "
        "wrong attempts were wanted",
    )
    return cases[:attempts]


def score(findings: Sequence[Finding], truths: Sequence[Finding]) -> dict[str, object]:
    """Rates over the attempts with their 95 % intervals, [value, low, high], and the mean of
    generated tokens. The first candidate counts.
    """
    steps_away = np.array([_away(f, truth) for f, truth in zip(findings, truths, strict=True)])
    rates = zip(MEASURES, (steps_away == 0, steps_away <= 1, np.isfinite(steps_away)))
    row = {name: [float(np.mean(hits)), *bootstrap(hits)] for name, hits in rates}
    return row | {"tokens": float(np.mean([finding.cost for finding in findings]))}


def _away(finding: Finding, truth: Finding) -> float:
    """How many steps from the truth; infinite: no answer."""
    if not finding.candidates:
        return np.inf
    return abs(finding.candidates[0].step - truth.candidates[0].step)


def measure(
    policy: Policy, task: Task, attempts: int, k: int, samples: int, seed: int, says=print
) -> dict[str, object]:
    """The whole table as plain data."""
    chosen = wrong_attempts(policy, task, attempts, k, seed)
    says(f"{attempts} wrong attempts")
    plain = _cases(policy, task, chosen, "solution")
    informed = _cases(policy, task, chosen, "feedback")
    truths = Truth().locate(plain)
    both = {"steepest drop of Δ": SteepestDrop(), "sustained negative Δ": SustainedNegative()}
    runs = {
        "chance": (Chance(seed), plain),
        "divergence from the nearest correct sibling": (Divergence(), plain),
    }
    for what, read in (("a sibling", plain), ("the feedback*", informed)):
        for name, drop in both.items():
            runs[f"{name}, teacher reads {what}"] = (drop, read)
    runs["own diagnosis (TAPO)"] = (OwnDiagnosis(policy, task, seed), plain)
    if samples:
        value_drop = ValueDrop(policy, task, samples, seed)
        runs[f"value drop, {samples} samples a step"] = (value_drop, plain)
    locators = {}
    for name, (locator, cases) in runs.items():
        began = time.perf_counter()
        locators[name] = score(locator.locate(cases), truths)
        says(f"{name}: {locators[name]['exact'][0]:.3f} ({time.perf_counter() - began:.0f} s)")
    steps = [len(case.layout.steps) for case in plain]
    with_sibling = [bool(case.siblings()) for case in plain]
    return {
        "schema_version": 1,
        "model": Path(policy.name).name,
        "task": repr(task),
        "scope": SCOPES.get(task.name, "One model on one task."),
        "split": "test",
        "seed": seed,
        "attempts": attempts,
        "rollouts": k,
        "steps": float(np.mean(steps)),
        "with_sibling": float(np.mean(with_sibling)),
        "locators": locators,
    }


def _cases(policy: Policy, task: Task, chosen: Sequence[tuple[Group, int]], kind: str) -> list:
    """The attempts as a teacher reads them who is shown a solution, or the feedback."""
    return [
        Case(inspect_group(policy, group, task, show=(kind,)), i, policy.decode)
        for group, i in chosen
    ]


SCOPES = {
    "arithmetic": "One tiny model on chains of + and -, where each step depends on the one before "
    "and the first wrong step is known exactly. The numbers say\nhow the locators compare there, "
    "and nothing about free text or large models.",
    "words": "One model of 135M on short stories with one equation a line, all in a wording that "
    "it was taught. The truth is the first equation that does not hold, uses a number from "
    "nowhere, or is not the solution's.\nThe numbers say how the locators compare there, and "
    "nothing about text without written equations. (Further options of the command below: "
    "data/words/README.md.)",
}
TEXT = """# Where did it go wrong?

Every locator against the truth, on {attempts} wrong attempts of the model `{model}`, \
one a problem ({task}, test split,
{rollouts} rollouts a problem, seed {seed}). An attempt has {steps:.1f} steps; \
{with_sibling:.0%} of the attempts have a
correct sibling. In brackets: 95 % bootstrap interval over the attempts. No answer counts as a \
miss. Tokens: generated for one attempt, beyond the group itself.

{rows}

\\* The feedback of this task names a wrong step, so these two rows show how much of what the \
teacher reads comes through, not a discovery.

Scope. {scope} The truth is the \
first step that was wrong when written, also where
the attempt took it back and failed later. Made by `workbench locators --attempts {attempts} \
--seed {seed}`.
"""


def table(record: dict) -> str:
    """The table in words, with its scope."""
    best_first = sorted(record["locators"].items(), key=lambda item: -item[1]["exact"][0])
    rows = []
    for name, row in best_first:
        # a narrow column breaks before an interval, not inside it
        rates = ["{:.1%} [{:.1%},\N{NO-BREAK SPACE}{:.1%}]".format(*row[m]) for m in MEASURES]
        rows.append([name, *rates, f"{row['tokens']:.0f}"])
    record = {"scope": SCOPES["arithmetic"]} | record  # older ones have none
    return TEXT.format(
        **record, rows=markdown_table(["locator", *MEASURES.values(), "tokens"], rows)
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", type=Path, help="a peft adapter to put on the model")
    add_flags(
        parser,
        out=DATA,
        model=str(ORGANISM / "3m"),
        task="arithmetic",
        attempts=500,
        rollouts=(8, "K: attempts at each problem, which are each other's siblings"),
        samples=(8, "continuations from each step, for the value drop; 0: without it"),
        seed=0,
    )


def main(args: argparse.Namespace) -> None:
    refuse_unwritable(args.out / "locators.json")
    record = measure(
        load_policy(args.model, adapter=args.adapter),
        load_task(args.task),
        args.attempts,
        args.rollouts,
        args.samples,
        args.seed,
    )
    text = table(record)
    write_atomic(args.out / "locators.json", json.dumps(record, indent=1, ensure_ascii=False))
    write_atomic(args.out / "locators.md", text)
    print(text)
