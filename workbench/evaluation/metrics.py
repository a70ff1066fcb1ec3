"""avg@k, unbiased pass@k and lengths, with intervals over problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import comb

import numpy as np

from workbench.core import Group, Problem, Task
from workbench.evaluation.statistics import bootstrap
from workbench.model.policy import Policy
from workbench.rollouts.sampling import sample_groups


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that one of k samples is right, estimated without bias from n samples.

    1 - C(n - c, k) / C(n, k), c of them correct (arXiv 2107.03374, eq. 1). Raises ValueError unless
    1 <= k <= n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {n}")
    return 1 - comb(n - correct, k) / comb(n, k)


def pass_at_k_bootstrap(n: int, correct: int, k: int) -> float:
    """The chance that one of k draws *with replacement* from n samples is right.

    1 - (1 - c/n)^k, c of them correct. What bootstrapped pass@k (verl, and with it SCOPE's code)
    comes to when it is drawn often enough. Below the unbiased ``pass_at_k`` wherever 0 < c < n and
    k > 1: a draw may repeat.
    """
    return 1 - (1 - correct / n) ** k


@dataclass(frozen=True)
class Evaluation:
    """What was measured on held-out problems, ``samples`` completions each.

    ``avg``: share of right ones, with its 95 % interval over problems, ``low`` to ``high``.
    ``pass_at``: k -> pass@k for k = 1, 2, 4, ... 32, unbiased; ``bootstrap_pass_at``: drawn with
    replacement. ``length``: mean, in tokens. ``finished``: share that ended by itself.
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
        samples = len(groups[0].rollouts)
        right, lengths, finished = [], [], []
        for group in groups:
            right.append(sum(rollout.verdict.correct for rollout in group.rollouts))
            for rollout in group.rollouts:
                lengths.append(len(rollout.completion_ids))
                finished.append(rollout.finished)
        rates = [count / samples for count in right]
        low, high = bootstrap(rates)
        ks = [k for k in (1, 2, 4, 8, 16, 32) if k <= samples]

        def mean_over_problems(estimate: Callable[[int, int, int], float]) -> dict[int, float]:
            return {k: float(np.mean([estimate(samples, c, k) for c in right])) for k in ks}

        return cls(
            problems=len(groups),
            samples=samples,
            avg=float(np.mean(rates)),
            low=low,
            high=high,
            pass_at=mean_over_problems(pass_at_k),
            length=float(np.mean(lengths)),
            finished=float(np.mean(finished)),
            per_problem=tuple(rates),
            bootstrap_pass_at=mean_over_problems(pass_at_k_bootstrap),
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
    top_p: float = 1.0,
) -> Evaluation:
    """Sample and grade ``samples`` completions of each problem.

    ``temperature`` and ``top_p`` as in ``rollouts.sampling.generate``.
    """
    how = {"temperature": temperature, "top_p": top_p}
    return Evaluation.of(sample_groups(policy, task, problems, samples, (seed, "evaluate"), **how))
