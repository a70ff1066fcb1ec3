"""Test-time self-distillation: find one solution to one hard question.   arXiv 2601.20802 v2, section 5

    discovery@k = P(first success within k generations)      a generation is one attempt, a success
        one that the task grades as correct

The same number of generations, spent in three ways:

    sdpo         16 attempts a step, each distilled from its own feedback (SDPO, reverse KL), until
                 the first success. Weights, optimiser and EMA
                 teacher begin anew for every question and seed.
    best_of      independent attempts of the base policy
    multi_turn   one attempt a turn, after the question and the feedback on all attempts so far,
                 without the attempts; where that is too long for
                 the context, the oldest feedback leaves first

and a control:

    blind        sdpo with a teacher that reads only that the attempt was wrong: the same updates
                 without what the feedback tells

GRPO needs no run: until the first success its advantages are 0 and it learns nothing, so it *is*
best_of, attempt by attempt.

What the feedback gives away. "Step 3 should be 57-28=29" is a line of the solution, so on the
arithmetic task a program that keeps what it is told needs one attempt a line at most. Measured
there is whether a learner can put together what it hears, sdpo in its weights and multi-turn in its
context; it is no search. ``told`` in the record counts the different feedback texts heard. Feedback
that gives away less, such as that of a program's public tests, goes through the same code: only
``task.grade`` is asked, for the words and for the success.

Which questions. Those that the base policy solves with a probability below 3 %, but not never: at
least one success among the samples of the estimate. A question may owe that to luck, so its rate in
the record (``base``) leans upwards; the runs draw other random numbers and do not.

    python -m workbench.training.ttt --model data/organism/3m --task arithmetic:steps=6,largest=40
    --out data/test_time/organism.json

The record is written after every run. The same line goes on with a study that was killed, and with
more ``--questions`` adds to one.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tqdm.auto import tqdm

from workbench.core import Method, Problem, Task, Verdict, WorkbenchError, coordinates
from workbench.methods.sdpo import SDPO
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.model.policy import Policy
from workbench.records import dumps, environment, write_atomic
from workbench.rollouts.sampling import generate
from workbench.studies.discovery import SCHEMA_VERSION, curves, read_study, summary, verdict
from workbench.tasks import load_task
from workbench.training.update import update
from workbench.viz.page import plain_table

K = 16  # attempts in a step
# the paper's, at test time
OPTIONS = {"k": K, "a": 1.0, "top_k": 20, "demonstration": "none", "advantage_clip": 5.0}
METHODS = ("best_of", "multi_turn", "sdpo", "blind")
Seed = tuple[int | str, ...]


@dataclass(frozen=True)
class Blind(SDPO):
    """A control: the teacher reads the same word after every wrong attempt."""

    def shown(self, group, i):
        return "", "" if group.rollouts[i].verdict.correct else "Wrong."


# ---- how to spend generations on one question: each gives the verdicts of its attempts, in order


def learn(
    learner: Learner, task: Task, problem: Problem, method: Method, steps: int, seed: Seed
) -> list[Verdict]:
    """Attempt, update, and again, up to the first success.

    (The update on the batch with the success in it is made, and is of no use.)
    """
    verdicts: list[Verdict] = []
    for step in range(steps):
        record = update(method, learner, task, [problem], (*seed, step), step=step)
        verdicts += [rollout.verdict for rollout in record.groups[0].rollouts]
        if first_success(verdicts):
            break
    return verdicts[: first_success(verdicts)]


def independent(
    policy: Policy, task: Task, problem: Problem, steps: int, seed: Seed
) -> list[Verdict]:
    """All of ``steps`` batches of attempts, with the random numbers that ``learn`` draws: the two
    differ by the updates alone.
    """
    seeds = [[coordinates(*seed, step, problem.id, j) for j in range(K)] for step in range(steps)]
    made = generate(
        policy, [policy.prompt_ids(problem.messages)] * steps, seeds, max_new=task.max_new
    )
    return [task.grade(problem, policy.decode(sample.ids)) for batch in made for sample in batch]


def converse(
    policy: Policy, task: Task, problem: Problem, turns: int, seeds: Sequence[Seed]
) -> list[list[Verdict]]:
    """A conversation for each seed, side by side, each up to its first success."""
    talks: list[list[Verdict]] = [[] for _ in seeds]
    heard: list[list[str]] = [[] for _ in seeds]
    for turn in range(turns):
        going = [i for i, talk in enumerate(talks) if not first_success(talk[-1:])]
        for i in going:
            heard[i] = that_fits(policy, task, problem, heard[i])
        prompts = [turn_prompt(policy, task, problem, heard[i]) for i in going]
        made = generate(
            policy,
            prompts,
            [[coordinates(*seeds[i], "turn", turn, problem.id)] for i in going],
            max_new=task.max_new,
        )
        for i, [sample] in zip(going, made):
            talks[i].append(task.grade(problem, policy.decode(sample.ids)))
            heard[i].append(talks[i][-1].feedback)
    return talks


def turn_prompt(
    policy: Policy, task: Task, problem: Problem, feedback: Sequence[str]
) -> tuple[int, ...]:
    return policy.prompt_ids(task.reprompt(problem, feedback="\n".join(feedback)))


def that_fits(policy: Policy, task: Task, problem: Problem, feedback: list[str]) -> list[str]:
    """Without the oldest texts that leave no room for an attempt. The question is never cut."""
    while (
        feedback
        and len(turn_prompt(policy, task, problem, feedback)) + task.max_new > policy.context
    ):
        feedback = feedback[1:]
    return feedback


def first_success(verdicts: Sequence[Verdict]) -> int | None:
    """The number of the generation, from 1."""
    return next((n for n, v in enumerate(verdicts, 1) if v.correct), None)


# ---- the study


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
        if min(self.questions, self.seeds, self.candidates) < 1 or not 0 < self.below <= 1:
            raise WorkbenchError(
                "a study takes questions, seeds and candidates of 1 or more, and below "
                "between 0 and 1"
            )
        if any(n < K or n % K for n in (self.budget, self.samples)):
            raise WorkbenchError(
                f"budget and samples are multiples of the {K} attempts of a step, not "
                f"{self.budget} and {self.samples}"
            )
        if not self.methods or not set(self.methods) <= set(METHODS):
            raise WorkbenchError(
                f"the methods of a study are some of {', '.join(METHODS)}, not "
                f"{', '.join(self.methods) or 'none'}"
            )


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
    out, start = Path(out), snapshot(learner)
    record = _opened(
        out, {**more, **asdict(study), "options": OPTIONS, "optimiser": asdict(learner.settings)}
    )
    problems = _hard(learner.policy, task, study, record, out, progress)
    done = {(c["question"], c["method"], c["seed"]) for c in record["cells"]}
    with tqdm(
        total=len(problems) * study.seeds * len(study.methods),
        initial=len(done),
        disable=not progress,
        unit="run",
    ) as bar:
        for problem, method in itertools.product(problems, study.methods):
            together = (
                [range(study.seeds)]
                if method == "multi_turn"
                else [[i] for i in range(study.seeds)]
            )
            for seeds in together:
                if (problem.id, method, seeds[0]) not in done:
                    bar.set_description(f"{method}, {problem.id[:30]}")
                    learner.load_state(start)
                    verdicts = _spend(
                        method,
                        learner,
                        task,
                        problem,
                        study.budget,
                        [(study.seed, i) for i in seeds],
                    )
                    record["cells"] += [
                        _cell(problem, method, i, attempts) for i, attempts in zip(seeds, verdicts)
                    ]
                    write_atomic(out, dumps(record, indent=1))
                    bar.update(len(seeds))
    return record


def snapshot(learner: Learner) -> dict:
    """A copy of all that learning changes:

    ``learner.load_state`` of it is the learner as it is now, without reading the model again.
    """
    with learner.weights("teacher"):  # makes the EMA teacher, which belongs to it
        return copy.deepcopy(learner.state())


def _spend(
    method: str, learner: Learner, task: Task, problem: Problem, budget: int, seeds: Sequence[Seed]
) -> list[list[Verdict]]:
    """The attempts of a run for each seed."""
    if method == "multi_turn":
        return converse(learner.policy, task, problem, budget, seeds)
    [seed] = seeds
    if method == "best_of":
        return [independent(learner.policy, task, problem, budget // K, seed)]
    return [
        learn(
            learner,
            task,
            problem,
            {"sdpo": SDPO, "blind": Blind}[method](**OPTIONS),
            budget // K,
            seed,
        )
    ]


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
    known, chosen = {b["question"]: b for b in record["base"]}, []
    for problem in tqdm(
        task.problems(study.split, study.candidates, study.seed),
        "candidates",
        leave=False,
        disable=not progress,
        unit="question",
    ):
        if problem.id not in known:
            right = sum(
                v.correct
                for v in independent(
                    policy, task, problem, study.samples // K, (study.seed, "base")
                )
            )
            known[problem.id] = {
                "question": problem.id,
                "right": right,
                "hard": 0 < right < study.below * study.samples,
            }
            record["base"].append(known[problem.id])
            write_atomic(out, dumps(record, indent=1))
        if known[problem.id]["hard"]:
            chosen.append(problem)
        if len(chosen) == study.questions:
            return chosen
    raise WorkbenchError(
        f"only {len(chosen)} of {study.candidates} candidates are solved with a probability "
        f"above 0 and below {study.below:g}, "
        f"{study.questions} were wanted: take another dial of the task, or "
        "more candidates"
    )


def _opened(out: Path, settings: Mapping) -> dict:
    """The record in ``out``, or a new one."""
    settings = json.loads(dumps(settings))  # in JSON a tuple is a list
    if not out.exists():
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkbenchError(f"could not write {out}: {error.strerror or error}") from error
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
    if changed and not grown:
        raise WorkbenchError(
            f"{out} holds a study with other settings ({', '.join(changed)}): take the same "
            "ones, or name another file"
        )
    return record | {"config": settings}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="PATH_OR_HUB_ID")
    parser.add_argument(
        "--task",
        required=True,
        metavar="NAME",
        help="with its dials where the base policy nearly always fails",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the record, JSON")
    parser.add_argument("--lr", type=float, default=3e-4)
    for f in fields(Study):
        many = (
            {"nargs": "+", "choices": METHODS, "default": METHODS}
            if f.name == "methods"
            else {"type": type(f.default), "default": f.default}
        )
        parser.add_argument(f"--{f.name}", **many)
    args = parser.parse_args()
    try:
        study = Study(**{f.name: getattr(args, f.name) for f in fields(Study)})
        learner = Learner(
            load_policy(args.model), OptimConfig(lr=args.lr, weight_decay=0.01, ema=0.01)
        )
        record = run(
            learner, load_task(args.task), study, args.out, {"model": args.model, "task": args.task}
        )
    except WorkbenchError as error:
        parser.exit(2, f"workbench: {error}\n")
    found = curves(record)
    rows = summary(found, sorted({1, K, study.budget // 2, study.budget}))
    print(
        plain_table(list(rows[0]), [list(row.values()) for row in rows]),
        *(verdict(found, study.budget)),
        sep="\n",
    )


if __name__ == "__main__":
    main()
