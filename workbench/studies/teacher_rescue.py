"""Can a teacher complete a wrong path, and does its perplexity say so?

The motivating experiment of SCOPE (arXiv 2604.10688).

    workbench rescue --model data/organism/3m --teacher data/organism/teacher
                     --out data/study/rescue.json

Wrong completions are cut at a share of their tokens, the teacher goes on from there, and the task
grades the whole. If teacher perplexity is a good signal, paths in the lowest quartile are rescued
most often, and the weights of ``workbench.methods.scope`` point the right way. (The script that the
authors released asks for the opposite order: there a low perplexity would be a teacher that
believes the mistake.)

A task that knows the first wrong step of a path tells two things apart that the paper cannot: the
teacher mends a mistake that it was given, or it was not given the mistake and makes none of its
own. A path with a late mistake is less surprising and is cut before it more often, so perplexity
can be related to rescue without any power to mend.

Differs from the released script: cut after that share of the tokens, not at the line break before
it; temperature 1, not 0.6; one attempt a problem in the command above, so that the paths are
independent and the intervals say what they seem to.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from workbench.core import Group, Problem, Task, WorkbenchError, coordinates, refuse_if
from workbench.evaluation.statistics import bootstrap, bootstrap_difference
from workbench.methods.scope import perplexity
from workbench.model.batch import rescore
from workbench.model.loading import load_policy
from workbench.model.policy import Policy
from workbench.options import add_flags
from workbench.records import dumps, refuse_unwritable, write_atomic
from workbench.rollouts.prefixes import Prefix, continue_from
from workbench.rollouts.sampling import sample_groups
from workbench.spans import Spans
from workbench.tasks import load_task

RATIOS = (0.2, 0.4, 0.6, 0.8)


class Cell(NamedTuple):
    """One quartile of teacher perplexity (1: lowest) at one prefix ratio."""

    quartile: int
    ratio: float
    paths: int
    perplexity: float  # median, of the whole wrong path under the teacher
    rescued: float  # share of the continuations that end correct
    low: float  # 95 % bootstrap interval over paths
    high: float


class Gap(NamedTuple):
    """Rescued in the lowest quartile minus rescued in the highest, at one prefix ratio.

    Above 0: perplexity says whom the teacher can help.
    """

    ratio: float
    paths: int
    mean: float
    low: float  # 95 % bootstrap interval over paths
    high: float


@dataclass(frozen=True)
class Paths:
    """n wrong paths, cut at R ratios."""

    ratios: tuple[float, ...]
    perplexity: np.ndarray  # [n] the teacher's, of the whole path
    rescued: np.ndarray  # [n, R] share of the teacher's continuations that end correct
    # [n] the share of the path at which its first wrong step ends; NaN where the task does not know
    mistake: np.ndarray

    def cells(self) -> list[Cell]:
        quarter = quartiles(self.perplexity)
        cells = []
        for number in (1, 2, 3, 4):
            among = quarter == number
            paths = int(among.sum())
            median = float(np.median(self.perplexity[among]))
            for ratio, rescued in zip(self.ratios, self.rescued[among].T):
                mean = float(rescued.mean())
                cells.append(Cell(number, ratio, paths, median, mean, *bootstrap(rescued)))
        return cells

    def gaps(self, mistake: Literal["any", "given", "ahead"] = "any") -> list[Gap]:
        """One for each ratio.

        Of all paths; of those whose first mistake the teacher was given, which it must mend; or
        of those where it was still ahead. The quartiles are theirs; a ratio with fewer than eight
        of them has no gap.
        """
        gaps = []
        rng = np.random.default_rng(0)
        for ratio, rescued in zip(self.ratios, self.rescued.T):
            among = {
                "any": np.full(len(rescued), True),
                "given": self.mistake <= ratio,
                "ahead": self.mistake > ratio,
            }[mistake]
            paths = int(among.sum())
            if paths < 8:
                continue
            quarter = quartiles(self.perplexity[among])
            sure = rescued[among][quarter == 1]
            unsure = rescued[among][quarter == 4]
            interval = bootstrap_difference(sure, unsure, rng)
            gaps.append(Gap(ratio, paths, float(sure.mean() - unsure.mean()), *interval))
        return gaps


def quartiles(values: Sequence[float]) -> np.ndarray:
    """[n] 1 to 4 by rank, as even as n allows; equal values keep their order."""
    return 1 + np.argsort(np.argsort(values, kind="stable")) * 4 // len(values)


def teacher_prefix_completion(
    teacher: Policy,
    task: Task,
    groups: Sequence[Group],
    ratios: Sequence[float] = RATIOS,
    samples: int = 4,
    seed: tuple[int | str, ...] = (0,),
) -> Paths:
    """``samples`` continuations by the teacher of every wrong rollout in ``groups`` at each ratio.

    Raises WorkbenchError when there are fewer than four wrong rollouts.
    """
    wrong = []
    for group in groups:
        for j, rollout in enumerate(group.rollouts):
            if not rollout.verdict.correct:
                wrong.append((group.problem, rollout, j))
    refuse_if(len(wrong) < 4, f"quartiles need four wrong rollouts or more, there are {len(wrong)}")
    rescued = []
    for ratio in ratios:
        prefixes = []
        for problem, rollout, j in wrong:
            written = len(rollout.completion_ids) - rollout.finished
            seeds = [coordinates(*seed, problem.id, j, ratio, s) for s in range(samples)]
            prefixes.append(Prefix(problem, rollout.completion_ids[: int(ratio * written)], seeds))
        continued = continue_from(teacher, task, prefixes)
        rescued.append([np.mean([r.verdict.correct for r in rollouts]) for rollouts in continued])
    scores = rescore(teacher, [rollout for _, rollout, _ in wrong])
    perplexities, mistakes = [], []
    for (problem, rollout, _), (logp, _) in zip(wrong, scores):
        perplexities.append(perplexity(logp))
        mistakes.append(first_mistake(task, problem, Spans(rollout, teacher.decode)))
    return Paths(tuple(ratios), np.array(perplexities), np.array(rescued).T, np.array(mistakes))


def first_mistake(task: Task, problem: Problem, layout: Spans) -> float:
    """The share of a path's tokens after which its first wrong step stands there whole; NaN where
    the task does not know it.
    """
    wrong = task.first_error(problem, layout.text)
    if wrong is None:
        return float("nan")
    return (
        layout.tokens_through(wrong.index) / layout.written
        if wrong.index < len(layout.steps)
        else 1.0
    )


# ---- the record


def record(paths: Paths, asked: dict) -> str:
    """JSON: what was asked for, and the numbers of every path, from which cells and gaps follow."""
    numbers = {
        name: getattr(paths, name).round(4).tolist()
        for name in ("perplexity", "mistake", "rescued")
    }
    return dumps(asked | {"ratios": paths.ratios} | numbers) + "\n"


def read_record(path: Path) -> Paths:
    """Raises WorkbenchError when the file is missing or no record of this module."""
    try:
        row = json.loads(Path(path).read_text(encoding="utf-8"))
        return Paths(
            tuple(row["ratios"]),
            *(np.array(row[name], float) for name in ("perplexity", "rescued", "mistake")),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkbenchError(f"{path} holds no record of a rescue experiment") from error


# ---- workbench rescue


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="PATH_OR_HUB_ID", help="whose wrong attempts"
    )
    parser.add_argument("--adapter", type=Path, help="a peft adapter to put on the model")
    parser.add_argument("--teacher", required=True, metavar="PATH_OR_HUB_ID")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    add_flags(
        parser,
        task="arithmetic",
        problems=(600, "held-out problems, one attempt each"),
        samples=(4, "continuations of each path at each ratio"),
        seed=0,
    )


ASKED = ("model", "teacher", "task", "problems", "samples", "seed")


def main(args: argparse.Namespace) -> None:
    refuse_unwritable(args.out)
    task = load_task(args.task)
    student = load_policy(args.model, adapter=args.adapter)
    teacher = load_policy(args.teacher)
    where = (args.seed, "rescue")
    problems = task.problems("test", args.problems, args.seed)
    groups = sample_groups(student, task, problems, 1, where)
    paths = teacher_prefix_completion(teacher, task, groups, samples=args.samples, seed=where)
    asked = {name: getattr(args, name) for name in ASKED}
    if args.adapter:
        asked["adapter"] = str(args.adapter)
    write_atomic(args.out, record(paths, asked))
    for cell in paths.cells():
        print(
            f"quartile {cell.quartile}, {cell.ratio:.0%} given: {cell.rescued:.3f} "
            f"[{cell.low:.3f}, {cell.high:.3f}]  "
            f"({cell.paths} paths, perplexity {cell.perplexity:.3f})"
        )
    for mistake in ("any", "given", "ahead"):
        for gap in paths.gaps(mistake):
            print(
                f"lowest - highest, mistake {mistake:5}, {gap.ratio:.0%} given: "
                f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]  ({gap.paths} paths)"
            )
