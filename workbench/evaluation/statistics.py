"""Every interval and test: how far a number might move with other problems, seeds or attempts.

    bootstrap                the mean of independent values, such as problems
    bootstrap_ratio          a ratio of two sums over problems
    bootstrap_difference     between the means of two independent sets
    bootstrap_nested         a mean over questions, each of which was run with several seeds
    wilson                   a success rate
    student                  a mean of few values that are about normal, such as seeds
    holm                     many tests at once

Resampling is seeded: the same values give the same interval, to the last digit. Samples of one
problem are not independent, so it is problems that are resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

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


def wilson(successes: int, samples: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of a success rate p from n samples.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). Never empty, also at 0 and n
    successes.
    """
    p = successes / samples
    scale = 1 + z * z / samples
    center = p + z * z / (2 * samples)
    half = z * sqrt(p * (1 - p) / samples + z * z / (4 * samples * samples))
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)


def student(t: float, freedom: int) -> tuple[float, float]:
    """Of Student's distribution the t that 5 % exceed in absolute value, and the share over ``t``.

    With t = sqrt(freedom) tan(angle) the density is cos(angle)^(freedom - 1), integrated here by
    trapezoids: right to six digits.
    """
    angle = np.linspace(0, np.pi / 2, 200_001)
    density = np.cos(angle) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    above = 1 - below / (2 * density.sum() - density[0] - density[-1])
    edge = np.interp(-0.05, -above, angle)
    share = np.interp(np.arctan(abs(t) / np.sqrt(freedom)), angle, above)
    return float(np.sqrt(freedom) * np.tan(edge)), float(share)


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
