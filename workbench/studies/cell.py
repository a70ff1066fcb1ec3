"""One cell of the comparison: train an arm with a seed, measure it, and leave a small record.

A cell that was killed goes on from its checkpoint; a record is written whole or not at all. With a
seed all arms are evaluated on the same held-out problems (measure.py).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from workbench import methods
from workbench.core import WorkbenchError
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.options import split_options, with_options
from workbench.paths import ORGANISM, ROOT, STUDY
from workbench.records import dumps, write_atomic
from workbench.studies.arms import Arm, Stage
from workbench.studies.measure import Amounts, evaluate_checkpoint
from workbench.tasks import load_task
from workbench.training.cold_start import ColdStartConfig
from workbench.training.run import TrainConfig, fit

TUNING = STUDY / "tuning.json"
SCHEMA_VERSION = 2  # of evaluation.json; 1, without the number: the first study


@dataclass(frozen=True)
class StudyScale:
    """How much of everything: of a run, and of what is measured after it.

    ``lr``: the learning rate of all arms that are not ``tuned``.
    """

    steps: int = 100
    prompts: int = 8
    lr: float = 1e-4
    eval_every: int = 10
    eval_problems: int = 200
    eval_samples: int = 1
    final: Amounts = field(default_factory=Amounts)


FULL = StudyScale()
# of the runs for true credit, which were begun before the plan
TRUTH_SCALE = StudyScale(
    steps=40,
    prompts=16,
    eval_problems=64,
    eval_samples=4,
    final=Amounts(problems=100, samples=32, reading=0, many=0),
)
SMALL = StudyScale(
    steps=4,
    eval_every=4,
    eval_problems=20,
    final=Amounts(problems=20, samples=4, reading=20, many=4, many_samples=8),
)


def run_cell(arm: Arm, seed: int, work: Path, records: Path, scale: StudyScale = FULL) -> Path:
    """Train, evaluate, and leave the record.

    Returns its folder. ``work`` holds the run while it is made and can be thrown away after.
    """
    torch.set_num_threads(1)
    began = time.perf_counter()
    name = arm.cell(seed)
    model = ORGANISM / arm.model
    folders = []
    for number, stage in enumerate(arm.stages, 1):
        out = work / (name if number == len(arm.stages) else f"{name}-stage{number}")
        folders.append(train_stage(arm, stage, seed, out, scale, model))
        model = out / "model"
    policy, task = load_policy(model), load_task(arm.task)
    evaluation = evaluate_checkpoint(policy, task, seed, scale.final, arm.many)
    evaluation["schema_version"] = SCHEMA_VERSION
    evaluation["arm"] = asdict(_by_name(arm))
    evaluation["seconds"] = time.perf_counter() - began
    return _leave(evaluation, folders, records / name)


def _by_name(arm: Arm) -> Arm:
    """With the names of the methods, also where one was given as a class."""
    stages = [s._replace(method=getattr(s.method, "__name__", s.method)) for s in arm.stages]
    return replace(arm, stages=tuple(stages))


def train_stage(
    arm: Arm, stage: Stage, seed: int, out: Path, scale: StudyScale, model: Path
) -> Path:
    """One stage of an arm as a run directory, from its checkpoint where it has one."""
    if (out / "model" / "config.json").is_file():
        return out
    method, optimizer, plan = _settings(arm, stage, seed, scale)
    expert = load_policy(ROOT / arm.teacher) if arm.teacher else None
    learner = Learner(load_policy(model), optimizer, seed=seed, expert=expert)
    config = {
        "model": str(model.relative_to(ROOT)) if model.is_relative_to(ROOT) else model.name,
        "task": arm.task,
        "lora": 0,
        "teacher": arm.teacher or None,
        "optimiser": asdict(optimizer),
    }
    run = method.follow if stage.method == "coldstart" else partial(fit, method)
    task = load_task(arm.task)
    return run(learner, task, plan, out, config=config, resume=True, progress=False)


def _settings(arm: Arm, stage: Stage, seed: int, scale: StudyScale) -> tuple:
    """Method, OptimConfig and TrainConfig of a stage; its own options come last, and hold."""
    kind = kind_of(stage)
    rate = tuned_rate(arm.name) if arm.tuned else scale.lr
    for_method, for_optimizer, for_plan = split_options(
        [f"lr={rate}", *stage.options], kind, OptimConfig, TrainConfig, fixed=("steps", "seed")
    )
    for_all = [
        f"steps={round(scale.steps * stage.share)}",
        f"seed={seed}",
        f"prompts={scale.prompts}",
        f"eval_every={scale.eval_every}",
        f"eval_problems={scale.eval_problems}",
        f"eval_samples={scale.eval_samples}",
        f"keep_groups={int(seed == 0)}",  # texts of one seed to look at are enough
    ]
    return (
        with_options(kind, for_method, kind.__name__),
        with_options(OptimConfig, for_optimizer, "the optimiser"),
        with_options(TrainConfig, [*for_all, *for_plan], "the plan"),
    )


def kind_of(stage: Stage) -> type:
    """The dataclass of the stage's own options."""
    if isinstance(stage.method, type):
        return stage.method
    return ColdStartConfig if stage.method == "coldstart" else methods.find(stage.method)


def own_rates() -> dict[str, float]:
    """By arm, as far as they were tuned."""
    return json.loads(TUNING.read_text())["rates"] if TUNING.is_file() else {}


def at_common_rate(arm: Arm) -> bool:
    """Its own rate came out as the common one, at which it is run already."""
    return arm.tuned and own_rates().get(arm.name) == FULL.lr


def tuned_rate(arm: str) -> float:
    """The arm's own learning rate, as ``workbench study`` tuned it."""
    rates = own_rates()
    if arm not in rates:
        raise WorkbenchError(f"{arm} has no rate of its own yet: workbench study --tune finds it")
    return rates[arm]


# ---- the record


def _leave(evaluation: dict, folders: Sequence[Path], record: Path) -> Path:
    """The record: the last stage's configuration and environment, the metrics of all stages in
    turn, the groups, the evaluation. Not the weights.
    """
    fresh = record.with_name(f".{record.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    if folders:
        for file in ("config.json", "env.json", "groups.jsonl"):
            shutil.copy(folders[-1] / file, fresh / file)
        lines = _metrics(evaluation["arm"]["stages"], folders)
        write_atomic(fresh / "metrics.jsonl", "".join(dumps(line) + "\n" for line in lines))
    write_atomic(fresh / "evaluation.json", dumps(evaluation) + "\n")
    shutil.rmtree(record, ignore_errors=True)
    os.replace(fresh, record)
    for folder in folders:
        shutil.rmtree(folder)
    return record


def _metrics(stages: Sequence[Stage], folders: Sequence[Path]) -> list[dict]:
    """The lines of all stages, their steps numbered on; those of a cold start that comes first end
    at -1.
    """
    lines: list[dict] = []
    for stage, folder in zip(stages, folders):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        before = lines[-1]["step"] + 1 if lines else 0
        if stage.method == "coldstart" and not lines:
            before = -len(rows)
        for row in rows:
            rounded = {name: _round(value) for name, value in row.items()}
            lines.append({**rounded, "step": before + row["step"]})
    return lines


def _round(value):
    return float(f"{value:.6g}") if isinstance(value, float) else value
