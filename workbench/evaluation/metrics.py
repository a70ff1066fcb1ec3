"""avg@k, unbiased pass@k, lengths, and intervals over problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb

import numpy as np

from workbench.core import Group, Problem, Task
from workbench.model.policy import Policy
from workbench.rollouts.sampling import sample_groups


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, from n samples:

    1 - C(n - c, k) / C(n, k) (arXiv 2107.03374, eq. 1).
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {n}")
    return 1 - comb(n - correct, k) / comb(n, k)


def pass_at_k_bootstrap(n: int, correct: int, k: int) -> float:
    """The chance that one of k draws *with replacement* from n samples is right:

    1 - (1 - c/n)^k. What bootstrapped pass@k (verl, and with it SCOPE's code) comes to when it is
    drawn often enough. Below the unbiased ``pass_at_k`` wherever 0 < c < n and k > 1: a draw may
    repeat.
    """
    if k < 1 or n < 1:
        raise ValueError(f"pass@{k} from {n} samples is not defined")
    return 1 - (1 - correct / n) ** k


def bootstrap(
    values: Sequence[float], draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean, resampling the values (problems, not samples: samples of one
    problem are not independent).
    """
    values = np.asarray(values, float)
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
    return tuple(float(q) for q in np.quantile(means, ((1 - level) / 2, (1 + level) / 2)))


@dataclass(frozen=True)
class Evaluation:
    """avg@k with a 95 % interval over problems, pass@k for k = 1, 2, 4, ...

    32 (unbiased, and as the bootstrap), mean length in tokens, share that ended by itself.
    """

    problems: int
    samples: int
    avg: float
    low: float
    high: float
    pass_at: dict[int, float]
    length: float
    finished: float
    per_problem: tuple[float, ...]
    bootstrap_pass_at: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Evaluation:
        right = [[r.verdict.correct for r in group.rollouts] for group in groups]
        n = len(right[0])
        rates = [sum(row) / n for row in right]
        ks = [k for k in (1, 2, 4, 8, 16, 32) if k <= n]
        rollouts = [r for group in groups for r in group.rollouts]
        return cls(
            len(groups),
            n,
            float(np.mean(rates)),
            *bootstrap(rates),
            {k: float(np.mean([pass_at_k(n, sum(row), k) for row in right])) for k in ks},
            float(np.mean([len(r.completion_ids) for r in rollouts])),
            float(np.mean([r.finished for r in rollouts])),
            tuple(rates),
            {k: float(np.mean([pass_at_k_bootstrap(n, sum(row), k) for row in right])) for k in ks},
        )

    def __str__(self) -> str:
        more = "  ".join(f"pass@{k} {value:.3f}" for k, value in self.pass_at.items() if k > 1)
        return (
            f"avg@{self.samples} {self.avg:.3f} [{self.low:.3f}, {self.high:.3f}]  {more}  "
            f"length {self.length:.1f} tokens  "
            f"finished {self.finished:.3f}  ({self.problems} problems x {self.samples} "
            "samples)"
        )


def evaluate(
    policy: Policy,
    task: Task,
    problems: Sequence[Problem],
    samples: int,
    seed: int,
    *,
    temperature: float = 1.0,
) -> Evaluation:
    """Sample and grade ``samples`` completions of each problem."""
    return Evaluation.of(
        sample_groups(policy, task, problems, samples, (seed, "evaluate"), temperature=temperature)
    )
