"""The comparison as a grid that can be stopped and taken up again: arms x seeds, each cell a run
that leaves a small record in data/runs.

    workbench study                          every cell of the grid that has no record yet, one
                                             process a core, one thread each
    workbench study --only grpo sdpo         some arms
    workbench study --tune                   the learning rate of each method on the validation
                                             split, before anything else: data/study/tuning.json
    workbench study --quick --out DIR        three arms, few steps: the whole path in minutes

An arm is what one would write about it in a paper: a method with its options, or two in turn. All
arms of a task start from the same checkpoint and see the same problems in the same steps (but those
with a larger step: ``prompts=128``); with a seed they are evaluated on the same held-out problems
(measure.py). A cell that was killed goes on from its checkpoint; a record is written whole or not
at all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

from workbench.core import WorkbenchError, coordinates
from workbench.options import with_options
from workbench.paths import ORGANISM, RECORDS, ROOT, STUDY
from workbench.records import dumps, write_atomic

TUNING = STUDY / "tuning.json"
RATES = ("3e-5", "1e-4", "3e-4")
TEACHER = "data/organism/teacher"
PROGRAMMER_TEACHER = "data/organism/programmer-teacher"
# what the organism could do before, and may forget
READING = "arithmetic:largest=99,shown=solution"
TURNED = "arithmetic:style=turned"  # expert solutions in a style that the organism does not write
# numbers that the 3m rarely gets right: three groups of four are all wrong at the start
HARD = "arithmetic:largest=40,style=turned"
# the same problems, solved in the style that the organism writes itself
HARD_OWN = "arithmetic:largest=40"


class Stage(NamedTuple):
    """``method``: the name of a file in workbench/methods, or a method's own dataclass.

    ``share``: of the arm's steps. ``options``: key=value, of the method, the optimiser or the plan.
    "coldstart" is a cold_start.Recipe: it has steps of its own, which the record numbers below 0.
    """

    method: str | type
    options: tuple[str, ...] = ()
    share: float = 1.0


@dataclass(frozen=True)
class Arm:
    """One line of the comparison. Without stages: the model as it is."""

    name: str
    stages: tuple[Stage, ...] = ()
    task: str = "arithmetic"
    model: str = "3m"
    teacher: str = ""
    seeds: int = 3

    def cell(self, seed: int) -> str:
        return f"{self.name}-{self.model}-seed{seed}"


def _arm(name: str, method: str = "", *options: str, **more) -> Arm:
    return Arm(name, (Stage(method or name, options),), **more)


METHODS = tuple(
    replace(arm, seeds=5)
    for arm in (
        Arm("base"),
        _arm("grpo"),
        _arm(
            "grpo-tokens", "grpo", "k=9"
        ),  # as many tokens as TAPO writes: 1.12 times those of k=8
        _arm("sdpo"),
        _arm("tapo"),
        _arm("trapo", task=TURNED),
        _arm("scope", teacher=TEACHER),
        _arm("opd", "opd", "k=8", teacher=TEACHER),
        _arm("opd-1", "opd", "k=1", teacher=TEACHER),
        _arm("kd", "kd", "k=8", teacher=TEACHER),
        _arm("luffy", task=TURNED),
        # as many solutions in a step as the others have rollouts
        _arm("sft", "sft", "prompts=128", task=TURNED),
        Arm(
            "sft-then-rl",
            (Stage("sft", ("prompts=128",), 1 / 3), Stage("grpo", (), 2 / 3)),
            task=TURNED,
        ),
        _arm("srpo", "sdpo", "srpo=true"),
    )
)
ABLATIONS = (
    *(
        _arm(f"sdpo-{teacher}", "sdpo", f"teacher={teacher}")
        for teacher in ("frozen", "mixed", "live")
    ),
    *(_arm(f"sdpo-{form}", "sdpo", f"form={form}") for form in ("token", "sequence")),
    *(
        _arm(f"scope-{name}", "scope", *options, teacher=TEACHER)
        for name, options in {
            "uniform": ("correct=uniform", "wrong=uniform"),
            "correct-only": ("wrong=off",),
            "wrong-only": ("correct=off",),
            "low": ("correct=low",),
        }.items()
    ),
    *(
        _arm(f"trapo-{prefix}", "trapo", f"prefix={prefix}", task=TURNED)
        for prefix in ("none", "sft", "luffy")
    ),
    *(
        _arm(f"tapo-{name}", "tapo", option)
        for name, option in {
            "no-reference": "reference=false",
            "no-dae": "dae=false",
            "no-ots": "ots=false",
            "no-negatives": "negatives=false",
            "no-prefix": "prefix=none",
            "sft": "sft=true",
        }.items()
    ),
)
# The most lessons with which first-pass accuracy stays at 80 % of the base's (data/LOG.md).
COLD_START = Stage("coldstart", ("problems=200", "epochs=1", "lr=1e-5"))
COLD = tuple(
    Arm(f"{method}-cold", (COLD_START, Stage(method)), seeds=5) for method in ("tapo", "grpo")
)
HARDER = (
    Arm("hard-base", task=HARD),
    _arm("hard-grpo", "grpo", task=HARD),
    _arm("hard-trapo", "trapo", task=HARD),
    _arm("hard-luffy", "luffy", task=HARD),
    _arm("hard-trapo-own", "trapo", task=HARD_OWN),
)
# The self-teacher reads another right program, or (where there is none, or always) what the sandbox
# said of the attempt.
PROGRAMS = tuple(
    replace(arm, task="programs", model="programmer")
    for arm in (
        Arm("base"),
        _arm("grpo"),
        _arm("sdpo"),
        _arm("sdpo-feedback", "sdpo", "demonstration=none"),
        _arm("sdpo-both", "sdpo", "feedback=always"),
        _arm("scope", teacher=PROGRAMMER_TEACHER),
    )
)
SIZES = tuple(
    replace(arm, model=model, seeds=3)
    for model in ("1m", "0.4m")
    for arm in METHODS
    if arm.name in ("base", "grpo", "sdpo", "tapo")
)
GRID = (*METHODS, *ABLATIONS, *COLD, *HARDER, *PROGRAMS, *SIZES)
QUICK = tuple(arm for arm in METHODS if arm.name in ("base", "grpo", "sdpo"))


@dataclass(frozen=True)
class StudyScale:
    """How much of everything: steps of a run, problems and samples of its evaluations."""

    steps: int = 40
    eval_every: int = 10
    eval_problems: int = 64
    problems: int = 100
    samples: int = 32


FULL, SMALL = (
    StudyScale(),
    StudyScale(steps=4, eval_every=4, eval_problems=20, problems=20, samples=4),
)


# ---- one cell


def run_cell(
    arm: Arm,
    seed: int,
    work: Path,
    records: Path,
    scale: StudyScale = FULL,
    rates: dict[str, float] | None = None,
) -> Path:
    """Train, assess, and leave the record.

    Returns its folder. ``work`` holds the run while it is made and can be thrown away after.
    """
    import torch

    from workbench.model.loading import load_policy
    from workbench.studies.measure import evaluate_checkpoint
    from workbench.tasks import load_task

    torch.set_num_threads(1)
    name = arm.cell(seed)
    out, model, rates = work / name, ORGANISM / arm.model, _rates() if rates is None else rates
    began, folders = time.perf_counter(), []
    for number, stage in enumerate(arm.stages):
        last = number + 1 == len(arm.stages)
        folders.append(
            train_stage(
                arm,
                stage,
                seed,
                out if last else work / f"{name}-stage{number + 1}",
                scale,
                model,
                rates,
            )
        )
        model = folders[-1] / "model"
    policy, base = load_policy(model), load_policy(ORGANISM / arm.model)
    found = evaluate_checkpoint(
        policy, base, load_task(arm.task), seed, scale.problems, scale.samples
    )
    named = replace(
        arm,
        stages=tuple(
            s._replace(method=getattr(s.method, "__name__", s.method)) for s in arm.stages
        ),
    )
    found |= {"arm": asdict(named), "seconds": time.perf_counter() - began}
    return _keep(found, folders, records / name)


def train_stage(
    arm: Arm,
    stage: Stage,
    seed: int,
    out: Path,
    scale: StudyScale,
    model: Path,
    rates: dict[str, float],
) -> Path:
    """One stage of an arm as a run directory, from its checkpoint where it has one."""
    from workbench.model.learner import Learner, OptimConfig
    from workbench.model.loading import load_policy
    from workbench.options import split_options
    from workbench.tasks import load_task
    from workbench.training.run import TrainConfig, fit

    if (out / ("model/config.json")).is_file():
        return out
    kind = kind_of(stage)
    rate = [f"lr={rates[stage.method]}"] if stage.method in rates else []
    mine, optimizer, plan = split_options(
        [*rate, *stage.options], kind, tuple(f.name for f in fields(OptimConfig))
    )
    optimizer = with_options(OptimConfig, optimizer, "the optimiser")
    plan = with_options(
        TrainConfig,
        [
            f"steps={round(scale.steps * stage.share)}",
            f"seed={seed}",
            f"eval_every={scale.eval_every}",
            f"eval_problems={scale.eval_problems}",
            "keep_groups=1",
            *plan,
        ],
        "the plan",
    )
    expert = load_policy(ROOT / arm.teacher) if arm.teacher else None
    learner = Learner(load_policy(model), optimizer, seed=seed, expert=expert)
    config = {
        "model": _within(model),
        "task": arm.task,
        "lora": 0,
        "teacher": arm.teacher or None,
        "optimiser": asdict(optimizer),
    }
    run = kind.follow if stage.method == "coldstart" else fit
    return run(
        with_options(kind, mine, kind.__name__),
        learner,
        load_task(arm.task),
        plan,
        out,
        config=config,
        resume=True,
        watch={"reading": load_task(READING)} if arm.task.startswith("arithmetic") else {},
        progress=False,
    )


def kind_of(stage: Stage) -> type:
    """The dataclass of the stage's own options."""
    from workbench import methods
    from workbench.training.cold_start import ColdStartConfig

    if isinstance(stage.method, type):
        return stage.method
    return ColdStartConfig if stage.method == "coldstart" else methods.find(stage.method)


def _within(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def _rates() -> dict[str, float]:
    """The tuned learning rate of each method."""
    return json.loads(TUNING.read_text())["rates"] if TUNING.is_file() else {}


def _keep(found: dict, folders: Sequence[Path], record: Path) -> Path:
    """The record: the last stage's configuration and environment, the metrics of all stages in
    turn, the groups, the evaluation. Not the weights.
    """
    fresh = record.with_name(f".{record.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    lines: list[dict] = []
    for stage, folder in zip(found["arm"]["stages"], folders):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        begun = -len(rows) if stage.method == "coldstart" else lines[-1]["step"] + 1 if lines else 0
        lines += [
            {**{name: _round(value) for name, value in row.items()}, "step": begun + row["step"]}
            for row in rows
        ]
    if folders:
        for file in ("config.json", "env.json", "groups.jsonl"):
            shutil.copy(folders[-1] / file, fresh / file)
        write_atomic(fresh / "metrics.jsonl", "".join(dumps(line) + "\n" for line in lines))
    write_atomic(fresh / "evaluation.json", dumps(found) + "\n")
    shutil.rmtree(record, ignore_errors=True)
    os.replace(fresh, record)
    for folder in folders:
        shutil.rmtree(folder)
    return record


def _round(value):
    return float(f"{value:.6g}") if isinstance(value, float) else value


# ---- the learning rates


def tune(method: str, rate: str, work: Path, scale: StudyScale = FULL) -> dict:
    """A shorter run with one learning rate, judged on the validation split."""
    import torch

    torch.set_num_threads(1)
    arm = next(arm for arm in METHODS if any(stage.method == method for stage in arm.stages))
    stage = next(stage for stage in arm.stages if stage.method == method)
    short = replace(scale, steps=3 * scale.steps // 4, eval_every=scale.steps, eval_problems=200)
    out = work / f"tune-{method}-{rate}"
    train_stage(
        arm,
        stage._replace(share=1.0),
        coordinates("tune") % 1000,
        out,
        short,
        ORGANISM / arm.model,
        {method: float(rate)},
    )
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "method": method,
        "rate": float(rate),
        "steps": short.steps,
        "before": _first(out),
        "after": last["final_eval_avg"],
        "low": last["final_eval_low"],
        "high": last["final_eval_high"],
        "reading": last["final_eval_reading"],
    }


def _first(out: Path) -> float:
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["eval_avg"]


def choose(found: Sequence[dict]) -> dict[str, float]:
    """For each method the rate that did best on validation; of equals the smaller."""
    best: dict[str, dict] = {}
    for row in sorted(found, key=lambda row: row["rate"]):
        if row["method"] not in best or row["after"] > best[row["method"]]["after"]:
            best[row["method"]] = row
    return {method: row["rate"] for method, row in best.items()}


# ---- the grid


def missing(
    arms: Sequence[Arm], seeds: Sequence[int] | None, records: Path
) -> list[tuple[Arm, int]]:
    """The cells without a record, seed by seed, so that a study that is stopped early has whole
    rows of seeds.
    """
    cells = [
        (arm, seed)
        for seed in range(max((arm.seeds for arm in arms), default=0))
        for arm in arms
        if seed < arm.seeds
    ]
    return [
        (arm, seed)
        for arm, seed in cells
        if (seeds is None or seed in seeds)
        and not (records / arm.cell(seed) / "evaluation.json").is_file()
    ]


def in_processes(
    jobs: Sequence[list[str]], workers: int, done: Callable[[list[str], str], None]
) -> list[str]:
    """``python -m workbench.studies.grid WORDS`` for each job, one thread each.

    Returns what the failed ones said; the others go on.
    """
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }

    def one(words: list[str]) -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "workbench.studies.grid", *words],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
        )
        if ran.returncode:
            return (
                f"{' '.join(words)}: "
                f"{ran.stderr.strip().splitlines()[-1] if ran.stderr.strip() else 'killed'}"
            )
        done(words, ran.stdout)
        return ""

    with ThreadPoolExecutor(workers) as pool:
        return [failure for failure in pool.map(one, jobs) if failure]


def study(
    arms: Sequence[Arm],
    seeds: Sequence[int] | None,
    workers: int,
    records: Path,
    work: Path,
    quick: bool,
) -> None:
    """Make the missing cells. Raises WorkbenchError when some failed, after all others are done."""
    todo = missing(arms, seeds, records)
    jobs = [
        [
            "--cell",
            arm.cell(seed),
            "--out",
            str(records),
            "--work",
            str(work),
            *(["--quick"] if quick else []),
        ]
        for arm, seed in todo
    ]
    print(f"{len(todo)} cells to make, {workers} at a time", flush=True)
    failed = in_processes(
        jobs, workers, lambda words, said: print(said.strip().splitlines()[-1], flush=True)
    )
    if failed:
        raise WorkbenchError(f"{len(failed)} of {len(jobs)} cells failed: {'; '.join(failed)}")


def tune_all(workers: int, work: Path) -> None:
    """Every method at every rate; what is known already is kept."""
    found = json.loads(TUNING.read_text())["runs"] if TUNING.is_file() else []
    known = {(row["method"], row["rate"]) for row in found}
    names = sorted({stage.method for arm in METHODS for stage in arm.stages})
    jobs = [
        ["--tune-one", name, rate, "--work", str(work)]
        for name in names
        for rate in RATES
        if (name, float(rate)) not in known
    ]

    def done(words: list[str], said: str) -> None:
        found.append(json.loads(said.strip().splitlines()[-1]))
        TUNING.parent.mkdir(parents=True, exist_ok=True)
        rows = sorted(found, key=lambda row: (row["method"], row["rate"]))
        write_atomic(
            TUNING,
            dumps({"split": "validation", "rates": choose(rows), "runs": rows}, indent=1) + "\n",
        )
        print(said.strip().splitlines()[-1], flush=True)

    failed = in_processes(jobs, workers, done)
    if failed:
        raise WorkbenchError("; ".join(failed))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="ARM",
        help=f"of {', '.join(dict.fromkeys(arm.name for arm in GRID))}",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="SIZE",
        help=f"of {', '.join(dict.fromkeys(arm.model for arm in GRID))}",
    )
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--out", type=Path, default=RECORDS, help="where the records go (default: data/runs)"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "runs" / "study",
        help="where the runs are while they are made",
    )
    parser.add_argument("--quick", action="store_true", help="three arms, four steps")
    parser.add_argument("--tune", action="store_true", help="find the learning rates first")


def main(args: argparse.Namespace) -> None:
    if args.workers < 1:
        raise WorkbenchError(f"a study needs 1 worker or more, not {args.workers}")
    if args.tune:
        tune_all(args.workers, args.work.resolve())
        return
    arms = QUICK if args.quick else GRID
    if args.quick and args.out == RECORDS:
        raise WorkbenchError(
            "a quick study is not to be mixed with the committed records: name a folder with --out"
        )
    unknown = set(args.only or ()) - {arm.name for arm in arms}
    if unknown:
        raise WorkbenchError(
            f"there is no arm {', '.join(sorted(unknown))}; there are "
            f"{', '.join(dict.fromkeys(arm.name for arm in arms))}"
        )
    arms = [
        arm
        for arm in arms
        if (not args.only or arm.name in args.only)
        and (not args.models or arm.model in args.models)
    ]
    if not arms:
        raise WorkbenchError(f"no arm of that name has the size {', '.join(args.models or ())}")
    study(
        arms,
        [0] if args.quick else args.seeds,
        args.workers,
        args.out.resolve(),
        args.work.resolve(),
        args.quick,
    )


def _worker() -> None:
    """One job of ``in_processes``: what it prints last is read by the parent."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.add_argument("--cell")
    parser.add_argument("--tune-one", nargs=2)
    args = parser.parse_args()
    if args.tune_one:
        print(dumps(tune(*args.tune_one, args.work)))
        return
    arm, seed = next(
        (arm, seed) for arm in GRID for seed in range(arm.seeds) if arm.cell(seed) == args.cell
    )
    record = run_cell(arm, seed, args.work, args.out, SMALL if args.quick else FULL)
    found = json.loads((record / "evaluation.json").read_text())
    print(
        f"{args.cell}: avg@{found['test']['samples']} {found['test']['avg']:.3f} "
        f"[{found['test']['low']:.3f}, {found['test']['high']:.3f}]  "
        f"{found['seconds']:.0f} s"
    )


if __name__ == "__main__":
    _worker()
