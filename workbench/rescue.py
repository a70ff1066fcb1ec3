"""Can a teacher complete a wrong path, and does its perplexity say so? The motivating experiment of SCOPE (arXiv 2604.10688).

Wrong completions are cut at a share of their tokens, the teacher goes on from there, and the task grades the whole. If teacher perplexity is a good
signal, paths in the lowest quartile are rescued most often, and the weights of ``workbench.methods.scope`` point the right way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from workbench.batch import rescore
from workbench.core import Group, Task, WorkbenchError, coordinates
from workbench.evaluate import bootstrap
from workbench.guide import Start, go_on
from workbench.methods.scope import perplexity
from workbench.policy import Policy


class Cell(NamedTuple):
    """One quartile of teacher perplexity (1: lowest) at one prefix ratio."""

    quartile: int
    ratio: float
    paths: int
    perplexity: float  # mean, of the whole wrong path under the teacher
    rescued: float  # share of the continuations that end correct
    low: float  # 95 % bootstrap interval over paths
    high: float


def quartiles(values: Sequence[float]) -> np.ndarray:
    """[n] 1 to 4 by rank, as even as n allows; equal values keep their order."""
    return 1 + np.argsort(np.argsort(values, kind="stable")) * 4 // len(values)


def rescue(teacher: Policy, task: Task, groups: Sequence[Group], ratios: Sequence[float] = (0.2, 0.4, 0.6, 0.8), samples: int = 4,
           seed: tuple[int | str, ...] = (0,)) -> list[Cell]:
    """``samples`` continuations by the teacher of every wrong rollout in ``groups`` at each ratio, by quartile of its perplexity.

    Raises WorkbenchError when there are fewer than four wrong rollouts.
    """
    paths = [(group.problem, r, j) for group in groups for j, r in enumerate(group.rollouts) if not r.verdict.correct]
    if len(paths) < 4:
        raise WorkbenchError(f"quartiles need four wrong rollouts or more, there are {len(paths)}")
    found = np.array([perplexity(logp) for logp, _ in rescore(teacher, [r for _, r, _ in paths])])
    quarter, rescued = quartiles(found), {}
    for ratio in ratios:
        starts = [Start(problem, r.completion_ids[: int(ratio * (len(r.completion_ids) - r.finished))],
                        [coordinates(*seed, problem.id, j, ratio, s) for s in range(samples)]) for problem, r, j in paths]
        rescued[ratio] = np.array([np.mean([r.verdict.correct for r in row]) for row in go_on(teacher, task, starts)])
    return [Cell(q, ratio, int((quarter == q).sum()), float(found[quarter == q].mean()), float(rescued[ratio][quarter == q].mean()),
                 *bootstrap(rescued[ratio][quarter == q])) for q in (1, 2, 3, 4) for ratio in ratios]
