"""The learning rates of the arms that have one of their own, judged on the validation split.

``workbench study --tune`` runs it, and the study before the block that needs it; the outcome is in
data/study/tuning.json. Each rate is tried with three seeds that the study does not use, in runs of
half its length. One standard error: of the rates that cannot be told from the best the smallest is
taken. Where a rate at the edge of the grid is taken, or is the best, the grid grows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from workbench.evaluation.metrics import evaluate
from workbench.model.loading import load_policy
from workbench.paths import ORGANISM
from workbench.records import dumps, write_atomic
from workbench.studies.arms import GRID
from workbench.studies.cell import FULL, TUNING, train_stage
from workbench.tasks import load_task

RATES = (3e-5, 1e-4, 3e-4)
SEEDS = (910, 911, 912)
STEPS = 50
PROBLEMS, SAMPLES = 400, 4
FACTOR = 3  # between neighbours of the grid
MOST = 6  # rates
TUNED = {arm.name: arm for arm in GRID if arm.tuned}


def tune(name: str, rate: float, seed: int, work: Path) -> dict:
    """A shorter run of an arm at one rate, and how well it then does."""
    torch.set_num_threads(1)
    arm = replace(TUNED[name], tuned=False)
    scale = replace(FULL, steps=STEPS, lr=rate, eval_every=0)
    out = work / f"tune-{name}-{rate:g}-seed{seed}"
    train_stage(arm, arm.stages[0], seed, out, scale, ORGANISM / arm.model)
    task = load_task(arm.task)
    problems = task.problems("validation", PROBLEMS, 0)
    found = evaluate(load_policy(out / "model"), task, problems, SAMPLES, seed)
    return {"arm": name, "rate": rate, "seed": seed, "avg": found.avg}


def by_rate(runs: Sequence[dict], name: str) -> dict[float, np.ndarray]:
    """Each rate's accuracies, a value a seed, of the rates that all seeds have tried."""
    found: dict[float, list[float]] = {}
    for run in runs:
        if run["arm"] == name:
            found.setdefault(run["rate"], []).append(run["avg"])
    whole = {rate: np.array(avgs) for rate, avgs in found.items() if len(avgs) == len(SEEDS)}
    return dict(sorted(whole.items()))


def best(accuracies: dict[float, np.ndarray]) -> float:
    return max(accuracies, key=lambda rate: accuracies[rate].mean())


def choose(accuracies: dict[float, np.ndarray]) -> float:
    """The smallest rate whose mean is within the best one's standard error of it."""
    top = accuracies[best(accuracies)]
    error = top.std(ddof=1) / np.sqrt(len(top))
    return min(rate for rate, avgs in accuracies.items() if avgs.mean() >= top.mean() - error)


def wanted(accuracies: dict[float, np.ndarray]) -> set[float]:
    """The rates to try: those of the grid, and one more beyond an edge that wins, up to ``MOST``:
    of a method that only harms the smallest rate would win for ever.
    """
    rates = set(RATES) | set(accuracies)
    if set(RATES) <= set(accuracies) and len(accuracies) < MOST:
        if choose(accuracies) == min(accuracies):
            rates.add(_beyond(min(accuracies) / FACTOR))
        if best(accuracies) == max(accuracies):
            rates.add(_beyond(max(accuracies) * FACTOR))
    return rates


def _beyond(rate: float) -> float:
    return float(f"{rate:.1g}")


def tuning_runs() -> list[dict]:
    """What was tried already."""
    return json.loads(TUNING.read_text())["runs"] if TUNING.is_file() else []


def untried(runs: Sequence[dict]) -> list[tuple[str, float, int]]:
    """(arm, rate, seed) of the runs that are missing, as far as is known now."""
    tried = {(run["arm"], run["rate"], run["seed"]) for run in runs}
    missing = []
    for name in TUNED:
        for rate in sorted(wanted(by_rate(runs, name))):
            missing += [(name, rate, seed) for seed in SEEDS if (name, rate, seed) not in tried]
    return missing


def write_tuning(runs: Sequence[dict]) -> None:
    """The runs; and the rates, once nothing is left to try."""
    runs = sorted(runs, key=lambda run: (run["arm"], run["rate"], run["seed"]))
    rates = {}
    if not untried(runs):
        rates = {name: choose(by_rate(runs, name)) for name in TUNED}
    record = {"split": "validation", "rates": rates, "runs": runs}
    TUNING.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(TUNING, dumps(record, indent=1) + "\n")
