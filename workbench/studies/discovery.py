"""A test-time study: how many generations does one solution to one hard question take?

    workbench discover --model data/organism/3m --task arithmetic:steps=6,largest=40
                       --out data/test_time/organism.json

Each method of workbench/training/ttt.py runs at each question with several seeds. The record is
written after every run. The same line goes on with a study that was killed, and with more
``--questions`` adds to one.

Which questions. Those that the base policy solves with a probability below 3 %, but not never: at
least one success among the samples of the estimate. A question may owe that to luck, so its rate in
the record (``base``) leans upwards; the runs draw other random numbers and do not.

From the record alone, without a model, come curves, intervals, and the verdict in words:

    discovery@k = P(first success within k generations), from the cells (method, question, seed)

A run that does not succeed within the budget is a failure at every k up to it, and says nothing of
larger k: no curve goes beyond the budget. The ``best_of`` cells are independent attempts, so each
gives the unbiased pass@k of its question (metrics.py) instead of its one first success.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from workbench.core import Problem, Task, Verdict, WorkbenchError, refuse_if
from workbench.evaluation.metrics import pass_at_k
from workbench.evaluation.statistics import bootstrap_nested
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.model.policy import Policy
from workbench.options import add_flags
from workbench.records import dumps, environment, refuse_unwritable, write_atomic
from workbench.tasks import load_task
from workbench.training.ttt import (
    METHODS,
    OPTIONS,
    K,
    first_success,
    independent,
    snapshot,
    spend,
)
from workbench.viz.page import plain_table

SCHEMA_VERSION = 1
NAMES = {"sdpo": "SDPO", "best_of": "best-of-k", "multi_turn": "multi-turn", "blind": "SDPO, blind"}


@dataclass(frozen=True)
class Study:
    """How much of everything.

    ``budget`` and ``samples`` are multiples of the 16 attempts of a step.
    """

    questions: int = 10
    seeds: int = 5  # runs of each method at each question
    budget: int = 128  # generations of a run
    samples: int = 512  # attempts at a candidate, for its base rate
    below: float = 0.03  # the base rate of a hard question
    candidates: int = 120  # questions looked at, at most
    split: str = "test"
    seed: int = 0  # draws the candidates, and is among the coordinates of every attempt
    methods: tuple[str, ...] = METHODS

    def __post_init__(self):
        refuse_if(
            min(self.questions, self.seeds, self.candidates) < 1 or not 0 < self.below <= 1,
            "a study takes questions, seeds and candidates of 1 or more, and below between 0 and 1",
        )
        refuse_if(
            min(self.budget, self.samples) < K or self.budget % K or self.samples % K,
            f"budget and samples are multiples of the {K} attempts of a step, not "
            f"{self.budget} and {self.samples}",
        )
        refuse_if(
            not self.methods or not set(self.methods) <= set(METHODS),
            f"the methods of a study are some of {', '.join(METHODS)}, not "
            f"{', '.join(self.methods) or 'none'}",
        )


# ---- making the record


def run(
    learner: Learner,
    task: Task,
    study: Study,
    out: str | Path,
    more: Mapping = {},
    progress: bool = True,
) -> dict:
    """Do what is missing of the study in ``out``, and return its record.

    ``more``: other settings to record, such as the names of model and task.

    The learner comes as loaded, and is put back there before every run. Raises WorkbenchError if
    ``out`` holds a study with other settings.
    """
    out = Path(out)
    start = snapshot(learner)
    settings = {**more, **asdict(study), "options": OPTIONS, "optimiser": asdict(learner.settings)}
    record = _opened(out, settings)
    problems = _hard(learner.policy, task, study, record, out, progress)
    finished = {(c["question"], c["method"], c["seed"]) for c in record["cells"]}
    runs = len(problems) * study.seeds * len(study.methods)
    with tqdm(total=runs, initial=len(finished), disable=not progress, unit="run") as bar:
        for problem, method in itertools.product(problems, study.methods):
            for seeds in _side_by_side(method, study.seeds):
                if (problem.id, method, seeds[0]) in finished:
                    continue
                bar.set_description(f"{method}, {problem.id[:30]}")
                learner.load_state(start)
                where = [(study.seed, i) for i in seeds]
                attempts = spend(method, learner, task, problem, study.budget, where)
                for i, verdicts in zip(seeds, attempts):
                    record["cells"].append(_cell(problem, method, i, verdicts))
                write_atomic(out, dumps(record, indent=1))
                bar.update(len(seeds))
    return record


def _side_by_side(method: str, seeds: int) -> list[Sequence[int]]:
    """The seeds that run together: conversations do."""
    return [range(seeds)] if method == "multi_turn" else [[i] for i in range(seeds)]


def _cell(problem: Problem, method: str, seed: int, verdicts: Sequence[Verdict]) -> dict:
    return {
        "question": problem.id,
        "method": method,
        "seed": seed,
        "first": first_success(verdicts),
        "right": sum(v.correct for v in verdicts),
        "told": len({v.feedback for v in verdicts if not v.correct}),
    }


def _hard(
    policy: Policy, task: Task, study: Study, record: dict, out: Path, progress: bool
) -> list[Problem]:
    """The first candidates that are hard.

    Their rates, and those of the others that were looked at, are in the record.
    """
    rates = {rate["question"]: rate for rate in record["base"]}
    chosen = []
    candidates = task.problems(study.split, study.candidates, study.seed)
    for problem in tqdm(
        candidates, "candidates", leave=False, disable=not progress, unit="question"
    ):
        if problem.id not in rates:
            rates[problem.id] = _base_rate(policy, task, study, problem)
            record["base"].append(rates[problem.id])
            write_atomic(out, dumps(record, indent=1))
        if rates[problem.id]["hard"]:
            chosen.append(problem)
        if len(chosen) == study.questions:
            return chosen
    raise WorkbenchError(
        f"only {len(chosen)} of {study.candidates} candidates are solved with a probability "
        f"above 0 and below {study.below:g}, "
        f"{study.questions} were wanted: take another dial of the task, or "
        "more candidates"
    )


def _base_rate(policy: Policy, task: Task, study: Study, problem: Problem) -> dict:
    attempts = independent(policy, task, problem, study.samples // K, (study.seed, "base"))
    right = sum(verdict.correct for verdict in attempts)
    hard = 0 < right < study.below * study.samples
    return {"question": problem.id, "right": right, "hard": hard}


def _opened(out: Path, settings: Mapping) -> dict:
    """The record in ``out``, or a new one."""
    settings = json.loads(dumps(settings))  # in JSON a tuple is a list
    if not out.exists():
        refuse_unwritable(out)
        return {
            "schema_version": SCHEMA_VERSION,
            "config": settings,
            "environment": environment(),
            "base": [],
            "cells": [],
        }
    record = read_study(out)
    changed = [key for key in settings if record["config"].get(key) != settings[key]]
    # no run depends on another question
    grown = changed == ["questions"] and settings["questions"] > record["config"]["questions"]
    refuse_if(
        changed and not grown,
        f"{out} holds a study with other settings ({', '.join(changed)}): take the same "
        "ones, or name another file",
    )
    return record | {"config": settings}


# ---- reading it


def read_study(path: str | Path) -> dict:
    """Raises WorkbenchError when ``path`` is no record of a study."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        version = record["schema_version"]
        record["config"]["methods"], record["base"], record["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkbenchError(f"{path} is not the record of a test-time study") from error
    refuse_if(
        version != SCHEMA_VERSION,
        f"the study in {path} has schema version {version}, this package reads {SCHEMA_VERSION}",
    )
    return record


def reached(first: int | None, budget: int) -> np.ndarray:
    """[budget] 1.0 at k = 1, 2, ... if the first success was within k generations.

    ``first`` None: there was none within the budget.
    """
    return (np.arange(1, budget + 1) >= (np.inf if first is None else first)).astype(float)


def curves(record: Mapping) -> dict[str, np.ndarray]:
    """[questions, seeds, budget] discovery@k of each cell, by method.

    Raises WorkbenchError while cells are missing.
    """
    config = record["config"]
    questions = [rate["question"] for rate in record["base"] if rate["hard"]]
    cells = {(c["method"], c["question"], c["seed"]): c for c in record["cells"]}
    expected = set(itertools.product(config["methods"], questions, range(config["seeds"])))
    refuse_if(
        len(questions) < config["questions"] or not cells.keys() >= expected,
        f"the study is not finished: {len(cells)} cells are there; run its command again",
    )
    by_method = {}
    for method in config["methods"]:
        values = np.zeros((len(questions), config["seeds"], config["budget"]))
        for i, question in enumerate(questions):
            for seed in range(config["seeds"]):
                values[i, seed] = _discovery(cells[method, question, seed], config["budget"])
        by_method[method] = values
    return by_method


def _discovery(cell: Mapping, budget: int) -> Sequence[float]:
    """[budget] of one run, or of as many independent attempts."""
    if cell["method"] == "best_of":
        return [pass_at_k(budget, cell["right"], k) for k in range(1, budget + 1)]
    return reached(cell["first"], budget)


def summary(by_method: Mapping[str, np.ndarray], ks: Sequence[int]) -> list[dict[str, object]]:
    """A row a method: discovery@k with its 90 % interval."""
    rows = []
    for name, values in by_method.items():
        row: dict[str, object] = {"method": NAMES[name]}
        mean, low, high = bootstrap_nested(values)
        for k in ks:
            row[f"@{k}"] = f"{mean[k - 1]:.2f} [{low[k - 1]:.2f}, {high[k - 1]:.2f}]"
        rows.append(row)
    return rows


def verdict(by_method: Mapping[str, np.ndarray], k: int) -> list[str]:
    """A sentence for each method that SDPO is compared with, at k generations each.

    Paired cells, 90 % interval.
    """
    sentences = []
    for name, values in by_method.items():
        if name == "sdpo":
            continue
        differences = by_method["sdpo"][..., k - 1] - values[..., k - 1]
        mean, low, high = np.round(bootstrap_nested(differences), 2) + 0.0  # no -0.00
        outcome = "cannot be told apart from"
        if low > 0:
            outcome = "finds more than"
        elif high < 0:
            outcome = "finds less than"
        sentences.append(
            f"At {k} generations SDPO {outcome} {NAMES[name]}: difference {mean:+.2f} "
            f"[{low:+.2f}, {high:+.2f}]."
        )
    return sentences


# ---- workbench discover


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="PATH_OR_HUB_ID")
    parser.add_argument("--adapter", type=Path, help="a peft adapter to put on the model")
    parser.add_argument(
        "--task",
        required=True,
        metavar="NAME",
        help="with its dials where the base policy nearly always fails",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the record, JSON")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    amounts = asdict(Study())
    del amounts["methods"]
    add_flags(parser, lr=3e-4, **amounts)


def main(args: argparse.Namespace) -> None:
    study = Study(**{field.name: getattr(args, field.name) for field in fields(Study)})
    settings = OptimConfig(lr=args.lr, weight_decay=0.01, ema=0.01)
    learner = Learner(load_policy(args.model, adapter=args.adapter), settings)
    adapter = {"adapter": str(args.adapter)} if args.adapter else {}
    names = {"model": args.model, **adapter, "task": args.task}
    by_method = curves(run(learner, load_task(args.task), study, args.out, names))
    rows = summary(by_method, sorted({1, K, study.budget // 2, study.budget}))
    print(plain_table(list(rows[0]), [list(row.values()) for row in rows]))
    print(*verdict(by_method, study.budget), sep="\n")
