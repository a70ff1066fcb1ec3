"""The learning rates: each method at three, judged on the validation split.

``workbench study --tune`` runs it before anything else; the outcome is in data/study/tuning.json.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from workbench.core import coordinates
from workbench.paths import ORGANISM
from workbench.records import dumps, write_atomic
from workbench.studies.arms import METHODS
from workbench.studies.cell import FULL, TUNING, train_stage

RATES = ("3e-5", "1e-4", "3e-4")


def tune(method: str, rate: str, work: Path) -> dict:
    """A shorter run with one learning rate, judged on the validation split."""
    torch.set_num_threads(1)
    arms = {stage.method: (arm, stage) for arm in reversed(METHODS) for stage in arm.stages}
    arm, stage = arms[method]
    steps = 3 * FULL.steps // 4
    short = replace(FULL, steps=steps, eval_every=FULL.steps, eval_problems=200)
    seed = coordinates("tune") % 1000
    out = work / f"tune-{method}-{rate}"
    whole = stage._replace(share=1.0)
    train_stage(arm, whole, seed, out, short, ORGANISM / arm.model, {method: float(rate)})
    lines = (out / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    last = json.loads(lines[-1])
    return {
        "method": method,
        "rate": float(rate),
        "steps": steps,
        "before": first["eval_avg"],
        "after": last["final_eval_avg"],
        "low": last["final_eval_low"],
        "high": last["final_eval_high"],
        "reading": last["final_eval_reading"],
    }


def choose(runs: Sequence[dict]) -> dict[str, float]:
    """For each method the rate that did best on validation; of equals the smaller."""
    best: dict[str, dict] = {}
    for run in sorted(runs, key=lambda run: run["rate"]):
        if run["method"] not in best or run["after"] > best[run["method"]]["after"]:
            best[run["method"]] = run
    return {method: run["rate"] for method, run in best.items()}


def tuning_runs() -> list[dict]:
    """What was tried already."""
    return json.loads(TUNING.read_text())["runs"] if TUNING.is_file() else []


def untried(runs: Sequence[dict]) -> list[tuple[str, str]]:
    """(method, rate) of the runs that are missing."""
    tried = {(run["method"], run["rate"]) for run in runs}
    methods = sorted({stage.method for arm in METHODS for stage in arm.stages})
    both = itertools.product(methods, RATES)
    return [(method, rate) for method, rate in both if (method, float(rate)) not in tried]


def write_tuning(runs: Sequence[dict]) -> None:
    runs = sorted(runs, key=lambda run: (run["method"], run["rate"]))
    record = {"split": "validation", "rates": choose(runs), "runs": runs}
    TUNING.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(TUNING, dumps(record, indent=1) + "\n")
