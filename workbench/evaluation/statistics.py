"""Every interval and test: how far a number might move with other problems, seeds or attempts.

    bootstrap                the mean of independent values, such as problems
    bootstrap_ratio          a ratio of two sums over problems
    bootstrap_formula        any formula of how often each problem counts
    bootstrap_difference     between the means of two independent sets
    bootstrap_nested         a mean over questions, each of which was run with several seeds
    wilson                   a success rate
    student                  a mean of few values that are about normal, such as seeds
    holm                     many tests at once

Resampling is seeded: the same values give the same interval, to the last digit. Samples of one
problem are not independent, so it is problems that are resampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

DRAWS = 2000  # resamples
EDGES = (0.025, 0.975)  # of a 95 % interval


def bootstrap(
    values: Sequence[float], draws: int = DRAWS, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean, resampling the values."""
    means = _resampled_means(np.asarray(values, float), np.random.default_rng(seed), draws)
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def bootstrap_ratio(upper: np.ndarray, lower: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of sum(upper) / sum(lower), both [problems], resampling problems.

    Resamples in which the lower sum is 0 have no ratio, and are left out.
    """
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(lower), (DRAWS, len(lower)))
    below = lower[rows].sum(1)
    counted = below > 0
    low, high = np.quantile(upper[rows].sum(1)[counted] / below[counted], EDGES)
    return float(low), float(high)


def bootstrap_formula(
    formula: Callable[[np.ndarray], np.ndarray], problems: int
) -> tuple[float, float, float]:
    """Value and 95 % percentile interval of a number of ``problems`` problems.

    ``formula`` takes [draws, problems], how often each of them counts, and gives [draws]. Draws
    for which it gives NaN are left out; an interval of none is NaN.
    """
    rng = np.random.default_rng(0)
    rows = rng.integers(0, problems, (DRAWS, problems))
    counts = (rows[..., None] == np.arange(problems)).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        value, draws = formula(np.ones((1, problems)))[0], formula(counts.astype(float))
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, EDGES) if len(draws) else (np.nan, np.nan)
    return float(value), float(low), float(high)


def bootstrap_difference(
    one: np.ndarray, other: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """95 % percentile interval of mean(one) - mean(other), resampling each set by itself."""
    means = _resampled_means(one, rng) - _resampled_means(other, rng)
    low, high = np.quantile(means, EDGES)
    return float(low), float(high)


def _resampled_means(
    values: np.ndarray, rng: np.random.Generator, draws: int = DRAWS
) -> np.ndarray:
    """[draws] from [n] values."""
    return values[rng.integers(0, len(values), (draws, len(values)))].mean(1)


def bootstrap_nested(values: np.ndarray, level: float = 0.9) -> np.ndarray:
    """[3, ...] mean, low and high of [questions, seeds, ...].

    A percentile bootstrap over the questions and, within each, over its seeds.

    Runs at one question are alike, so drawing all cells as if they were independent would make the
    interval too narrow. Equal shapes, equal draws: the interval of a difference of two methods is
    that of paired cells.
    """
    questions, seeds = values.shape[:2]
    rng = np.random.default_rng(0)
    drawn_questions = rng.integers(questions, size=(DRAWS, questions, 1))
    drawn_seeds = rng.integers(seeds, size=(DRAWS, questions, seeds))
    weights = np.zeros((DRAWS, questions, seeds))
    places = (np.arange(DRAWS)[:, None, None], drawn_questions, drawn_seeds)
    np.add.at(weights, places, 1 / (questions * seeds))
    means = np.tensordot(weights, values, 2)
    edges = np.quantile(means, ((1 - level) / 2, (1 + level) / 2), axis=0)
    return np.stack([values.mean((0, 1)), *edges])


def wilson(successes: int, samples: int) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of a success rate. Never empty, also at 0 and n successes."""
    interval = stats.binomtest(successes, samples).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def student(t: float, freedom: int) -> tuple[float, float]:
    """Of Student's distribution the t that 5 % exceed in absolute value, and the share over |t|."""
    return float(stats.t.ppf(0.975, freedom)), float(2 * stats.t.sf(abs(t), freedom))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction of several p.

    From the smallest up each is multiplied by the number of comparisons that are not yet decided;
    none falls below the one before.
    """
    corrected = [0.0] * len(ps)
    largest = 0.0
    for rank, place in enumerate(np.argsort(ps)):  # NaN comes last
        largest = max(largest, min(1.0, ps[place] * (len(ps) - rank)))
        corrected[place] = largest
    return corrected
