"""Every interval and test: how far a number might move with other problems, seeds or attempts.

    bootstrap                the mean of independent values, such as problems
    bootstrap_formula        any formula of how often each problem counts
    bootstrap_difference     between the means of two independent sets
    bootstrap_nested         a mean over questions, each of which was run with several seeds
    wilson                   a success rate
    student                  a mean of few values that are about normal, such as seeds
    paired                   a difference of two arms over the seeds that both have
    same                     is a difference inside a margin (two one-sided tests)
    pooled_ratio             a difference of two ratios, each pooled over the seeds
    sooner                   a difference of times, some of which ended before anything happened
    power, power_of_same     how likely a number of seeds decides
    holm                     many tests at once

Resampling is seeded: the same values give the same interval, to the last digit. Samples of one
problem are not independent, so it is problems that are resampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


def bootstrap_formula(
    formula: Callable[[np.ndarray], np.ndarray], problems: int
) -> tuple[float, float, float]:
    """Value and 95 % percentile interval of a number of ``problems`` problems.

    ``formula`` takes [draws, problems], how often each of them counts, and gives [draws]. Draws
    for which it gives NaN are left out; an interval of none is NaN.
    """
    rng = np.random.default_rng(0)
    rows = rng.integers(0, problems, (DRAWS, problems))
    counts = np.apply_along_axis(np.bincount, 1, rows, minlength=problems)
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


@dataclass(frozen=True)
class Effect:
    """a - b, averaged over seeds.

    ``low``, ``high``, ``p``: Student's 95 % interval and two-sided p. ``error``: the standard error
    they rest on. ``problems``: how many numbers it is made of. ``above``: seeds whose mean is above
    0. Of one seed the interval is over its problems (bootstrap), says nothing of other runs, and p
    is NaN.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    problems: int
    above: int
    error: float = float("nan")

    def __str__(self) -> str:
        return (
            f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}], above 0 in {self.above} "
            f"of {self.seeds}"
        )


def paired(by_seed: Sequence[np.ndarray]) -> Effect:
    """From one array of differences for each seed, such as one a problem.

    The variance between the seeds' means holds that of measuring them, which the differences
    within a seed tell: where it came out smaller than that, it did so by luck, and the larger one
    counts. Of one number a seed nothing is known of its measurement.
    """
    means = np.array([differences.mean() for differences in by_seed])
    seeds = len(means)
    problems = sum(map(len, by_seed))
    if seeds == 1:
        low, high = bootstrap(by_seed[0])
        above = int(means[0] > 0)
        return Effect(float(means[0]), low, high, float("nan"), 1, problems, above)
    within = [d.var(ddof=1) / len(d) if len(d) > 1 else 0.0 for d in by_seed]
    variance = max(means.var(ddof=1), float(np.mean(within)))
    return _effect(means.mean(), float(np.sqrt(variance / seeds)), means, problems)


def _effect(mean: float, error: float, by_seed: np.ndarray, problems: int) -> Effect:
    seeds = len(by_seed)
    t = mean / error if error else float(mean != 0) * 1e9
    reach, p = student(t, seeds - 1)
    above = int((by_seed > 0).sum())
    low, high = mean - reach * error, mean + reach * error
    return Effect(float(mean), float(low), float(high), p, seeds, problems, above, float(error))


def same(effect: Effect, margin: float) -> float:
    """p of two one-sided tests that the difference lies inside -margin to margin.

    Below .05 where the 90 % interval does (Schuirmann 1987). NaN for one seed.
    """
    if not effect.error:
        return float(abs(effect.mean) >= margin)
    return float(stats.t.sf((margin - abs(effect.mean)) / effect.error, effect.seeds - 1))


def pooled_ratio(a: np.ndarray, b: np.ndarray, least: int) -> Effect | None:
    """The ratio of a minus that of b; a and b [seeds, 2] hold what is counted and out of how many.

    Pooled, because a ratio of each seed is none where nothing was counted; its error is the
    jackknife's, leaving out one seed of both at a time. None ("not measured") where either was
    counted out of fewer than ``least``, or only one seed has anything.
    """
    totals = a[:, 1].sum(), b[:, 1].sum()
    without = [a[:, 1].sum() - a[:, 1], b[:, 1].sum() - b[:, 1]]
    if min(totals) < least or min(map(np.min, without)) <= 0:
        return None

    def ratio(counts: np.ndarray) -> tuple[float, np.ndarray]:
        whole = counts.sum(0)
        left = whole - counts
        return whole[0] / whole[1], left[:, 0] / left[:, 1]

    (mean_a, left_a), (mean_b, left_b) = ratio(a), ratio(b)
    mean, left = mean_a - mean_b, left_a - left_b
    error = np.sqrt((len(a) - 1) * np.mean((left - left.mean()) ** 2))
    signs = a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1]  # those of the seeds' own differences
    return _effect(mean, error, signs, int(sum(totals)))


def sooner(a: Sequence[float], b: Sequence[float], share: float, horizon: float) -> Effect:
    """How much earlier a gets there than after ``share`` of b's time, in shares of ``horizon``.

    a, b: one time a seed, infinite where it never did within ``horizon``, which ends all runs: the
    only censoring there is. So the restricted mean needs no model of it, keeps the pairs, and does
    not suppose that one's rate is a multiple of the other's, as a log-rank test does. A run that
    never got there counts as one that did at the horizon: where neither does the difference is
    share - 1, below 0.
    """
    first, second = (np.minimum(np.asarray(times, float), horizon) / horizon for times in (a, b))
    return paired([np.array([value]) for value in share * second - first])


def power(seeds: int, spread: float, effect: float, level: float = 0.05) -> float:
    """The chance that a paired t-test tells a true ``effect`` from 0; ``spread``: the standard
    deviation of the seeds' differences.
    """
    edge = stats.t.ppf(1 - level / 2, seeds - 1)
    away = effect / spread * np.sqrt(seeds)
    below = np.nan_to_num(stats.nct.cdf(-edge, seeds - 1, away))  # scipy: NaN far out in the tail
    return float(stats.nct.sf(edge, seeds - 1, away) + below)


def power_of_same(seeds: int, spread: float, margin: float, level: float = 0.05) -> float:
    """The chance that ``same`` says so of two arms that are equal, by simulation (20,000)."""
    rng = np.random.default_rng(0)
    means = rng.normal(0, spread / np.sqrt(seeds), 20_000)
    errors = spread * np.sqrt(rng.chisquare(seeds - 1, 20_000) / (seeds - 1) / seeds)
    reach = stats.t.ppf(1 - level, seeds - 1)
    return float((np.abs(means) + reach * errors < margin).mean())


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
