"""The runs of PLAN.md: every method from the same warm start, LoRA, one small record each.

    python -m data.words.run                    what has no record yet, one after the other
    python -m data.words.run --only grpo sdpo   some arms
    python -m data.words.run --tune             the common learning rate, before anything else
    python -m data.words.run --list             what is there, what is missing

It can be stopped at any moment and begun again: a run goes on from its checkpoint, and a record is
written whole or not at all. Several processes share the queue, each a run of its own.

The warm start and the teacher are the base with an adapter merged into it, so that all runs train a
fresh adapter on a plain model. A record is data/words/runs/NAME: the configuration, the metrics of
every update, some groups, what was measured on held-out problems, and the attempts at the first few
of these (examples.jsonl). Not the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock, Timeout

from workbench.core import Group, WorkbenchError
from workbench.evaluation.metrics import Evaluation
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.model.policy import Policy
from workbench.options import split_options, with_options
from workbench.paths import DATA, ROOT
from workbench.records import dumps, group_to_dict, write_atomic
from workbench.rollouts.sampling import sample_groups
from workbench.studies.arms import Arm, Stage
from workbench.studies.cell import kind_of
from workbench.studies.grid import missing
from workbench.tasks import load_task
from workbench.training.run import TrainConfig, fit

HERE = DATA / "words"
RECORDS = HERE / "runs"
TUNING = HERE / "tuning.json"
WORK = ROOT / "runs" / "words"
RANK = 8
STEPS = 30
PLAN = (
    "prompts=3",
    "rows=12",
    "eval_every=15",
    "eval_problems=24",
    "checkpoint_every=3",
    "keep_groups=1",
)
RATES = ("1e-4", "3e-4")
TUNE_STEPS = 20
TUNE_SEED = 90
TURNED = "words:style=turned"  # an expert who writes otherwise than the model
FOUR_BIT = "-4bit"  # at the end of an arm's name: QLoRA
SFT = ("prompts=24",)  # as many solutions in a step as the others have rollouts


def _arm(name: str, *options: str, method: str = "", **more) -> Arm:
    stage = Stage(method or name, options)
    return Arm(name, (stage,), **{"task": "words", "model": "warm", "seeds": 2} | more)


_ALONE = (
    Arm("base", task="words", model="warm", seeds=2),
    _arm("grpo", seeds=5),
    _arm("sdpo", seeds=5),
    _arm("tapo"),
    _arm("trapo", task=TURNED),
)
_TAUGHT = (
    _arm("scope", teacher="teacher"),
    _arm("opd", "k=8", teacher="teacher"),
    _arm("luffy", task=TURNED),
    _arm("sft", *SFT, task=TURNED),
)
_TWO_STAGES = (Stage("sft", SFT, 1 / 3), Stage("grpo", (), 2 / 3))
_BOTH = (Arm("sft-then-rl", _TWO_STAGES, task=TURNED, model="warm", seeds=2),)
_QUANTISED = (
    Arm(f"base{FOUR_BIT}", task="words", model="warm", seeds=1),
    *(_arm(f"{name}{FOUR_BIT}", method=name, seeds=1) for name in ("grpo", "sdpo")),
)
_TEACHER = (Arm("teacher", task="words", model="teacher", seeds=2),)  # measured only
ARMS = (*_ALONE, *_TAUGHT, *_BOTH, *_TEACHER, *_QUANTISED)


class Scale(NamedTuple):
    """How much is measured at the end: problems and samples of each."""

    problems: int = 200
    samples: int = 2
    held: int = 100
    held_samples: int = 2
    examples: int = 6  # problems whose attempts are kept


FULL = Scale()


# ---- models: the base with an adapter merged into it


def merged(name: str) -> Path:
    """The folder of ``warm`` or ``teacher``, made from the committed adapter when first asked."""
    folder = WORK / f"{name}-merged"
    with FileLock(WORK / f".{name}.lock"):
        if not (folder / "config.json").is_file():
            policy = load_policy("smollm2", adapter=HERE / name)
            save(policy.model.merge_and_unload(), policy, folder)
    return folder


def save(model, policy: Policy, folder: Path) -> None:
    fresh = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(fresh)
    policy.tokenizer.save_pretrained(fresh)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)


# ---- a run


def run(arm: Arm, seed: int, rate: float, records: Path = RECORDS, scale: Scale = FULL) -> Path:
    """Train, evaluate, and leave the record."""
    began, name = time.perf_counter(), arm.cell(seed)
    folders: list[Path] = []
    model = merged(arm.model)
    policy = load_policy(model, four_bit=arm.name.endswith(FOUR_BIT))
    for number, stage in enumerate(arm.stages, 1):
        if number > 1:  # the next stage starts from what the last one left, merged
            model = WORK / f"{name}-stage{number - 1}-merged"
            if not (model / "config.json").is_file():
                save(policy.model.merge_and_unload(), policy, model)
        folders.append(WORK / f"{name}-stage{number}")
        policy = train(arm, stage, seed, rate, model, folders[-1])
    evaluation, examples = measure(policy, seed, scale)
    evaluation |= {"arm": asdict(arm), "seconds": time.perf_counter() - began}
    return leave(evaluation, examples, folders, records / name)


def train(arm: Arm, stage: Stage, seed: int, rate: float, model: Path, out: Path) -> Policy:
    """One stage of an arm: a fresh adapter on ``model``, from its checkpoint where it has one."""
    method, optimizer, plan = settings(stage, seed, rate, STEPS)
    expert = load_policy(merged(arm.teacher)) if arm.teacher else None
    policy = load_policy(model, four_bit=arm.name.endswith(FOUR_BIT))
    learner = Learner(policy, optimizer, lora=RANK, seed=seed, expert=expert)
    config = {
        "model": model.name,
        "task": arm.task,
        "lora": RANK,
        "teacher": arm.teacher or None,
        "optimiser": asdict(optimizer),
    }
    task = load_task(arm.task)
    fit(method, learner, task, plan, out, config=config, resume=True, progress=False)
    return learner.policy


def settings(stage: Stage, seed: int, rate: float, steps: int) -> tuple:
    """Method, OptimConfig and TrainConfig of a stage."""
    kind = kind_of(stage)
    options = [f"lr={rate}", *PLAN, *stage.options]
    for_method, for_optimizer, for_plan = split_options(
        options, kind, OptimConfig, TrainConfig, fixed=("steps", "seed")
    )
    length = [f"steps={round(steps * stage.share)}", f"seed={seed}"]
    return (
        with_options(kind, for_method, kind.__name__),
        with_options(OptimConfig, for_optimizer, "the optimiser"),
        with_options(TrainConfig, [*for_plan, *length], "the plan"),
    )


def measure(policy: Policy, seed: int, scale: Scale) -> tuple[dict, list[Group]]:
    """On the same held-out problems for every run; the samples are the seed's own. And the first
    few groups.
    """
    task, held = load_task("words"), load_task("words:stories=held")
    groups = sample_groups(
        policy, task, task.problems("test", scale.problems, 0), scale.samples, (seed, "words")
    )
    others = sample_groups(
        policy, held, held.problems("test", scale.held, 0), scale.held_samples, (seed, "held")
    )
    evaluation = {
        "seed": seed,
        "test": asdict(Evaluation.of(groups)),
        "answers": _answered(groups),
        "held": asdict(Evaluation.of(others)),
    }
    return evaluation, groups[: scale.examples]


def _answered(groups: Sequence[Group]) -> float:
    """Share with the right answer, whatever the equations."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return sum(rollout.verdict.parts["answer"] for rollout in rollouts) / len(rollouts)


def leave(
    evaluation: dict, examples: Sequence[Group], folders: Sequence[Path], record: Path
) -> Path:
    """The last stage's files, the metrics of all stages in turn, the evaluation, the examples."""
    fresh = record.with_name(f".{record.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    if folders:
        for file in ("config.json", "env.json", "groups.jsonl"):
            shutil.copy(folders[-1] / file, fresh / file)
        lines = [line for folder in folders for line in _lines(folder)]
        rows = [dumps({**line, "step": step}) + "\n" for step, line in enumerate(lines)]
        write_atomic(fresh / "metrics.jsonl", "".join(rows))
    groups = "".join(dumps(group_to_dict(group)) + "\n" for group in examples)
    write_atomic(fresh / "examples.jsonl", groups)
    write_atomic(fresh / "evaluation.json", dumps(evaluation) + "\n")
    shutil.rmtree(record, ignore_errors=True)
    os.replace(fresh, record)
    return record


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---- the common learning rate


def tune() -> dict:
    """GRPO with each rate, judged on the validation split: the rate of all runs."""
    runs = []
    for rate in RATES:
        method, optimizer, plan = settings(Stage("grpo"), TUNE_SEED, float(rate), TUNE_STEPS)
        plan = replace(plan, eval_every=TUNE_STEPS, eval_problems=60)
        learner = Learner(load_policy(merged("warm")), optimizer, lora=RANK, seed=TUNE_SEED)
        out = WORK / f"tune-{rate}"
        fit(method, learner, load_task("words"), plan, out, resume=True, progress=False)
        lines = _lines(out)
        before, after = lines[0]["eval_avg"], lines[-1]["final_eval_avg"]
        runs.append({"rate": float(rate), "before": before, "after": after})
        print(dumps(runs[-1]), flush=True)
    best = max(runs, key=lambda each: (each["after"], -each["rate"]))
    tuning = {"split": "validation", "rate": best["rate"], "runs": runs}
    write_atomic(TUNING, dumps(tuning, indent=1) + "\n")
    return tuning


# ---- the queue


def work_off(arms: Sequence[Arm], rate: float) -> None:
    """Every run without a record that no other process is at, seed by seed.

    Raises WorkbenchError, when all others are done, with what those said that could not be made.
    """
    failures = []
    for arm, seed in missing(arms, None, RECORDS):
        lock = FileLock(WORK / f".{arm.cell(seed)}.lock")
        try:
            with lock.acquire(timeout=0):
                if not (RECORDS / arm.cell(seed) / "evaluation.json").is_file():
                    record = run(arm, seed, rate)
                    print(_line(record), flush=True)
        except Timeout:
            continue
        except WorkbenchError as error:
            failures.append(f"{arm.cell(seed)}: {error}")
            print(failures[-1], flush=True)
    if failures:
        raise WorkbenchError("; ".join(failures))


def _line(record: Path) -> str:
    evaluation = json.loads((record / "evaluation.json").read_text())
    test, held = evaluation["test"], evaluation["held"]
    return (
        f"{record.name}: avg@{test['samples']} {test['avg']:.3f} "
        f"[{test['low']:.3f}, {test['high']:.3f}]  held stories {held['avg']:.3f}  "
        f"{evaluation['seconds']:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", metavar="ARM")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    arms = [arm for arm in ARMS if not args.only or arm.name in args.only]
    if args.list:
        for record in sorted(RECORDS.glob("*/evaluation.json")):
            print(_line(record.parent))
        print("missing:", *(arm.cell(seed) for arm, seed in missing(arms, None, RECORDS)))
        return
    if args.tune or not TUNING.is_file():
        tune()
    if not args.tune:
        work_off(arms, json.loads(TUNING.read_text())["rate"])


if __name__ == "__main__":
    try:
        main()
    except WorkbenchError as error:
        raise SystemExit(f"error: {error}") from error
