"""The study's statistics against scipy, hand arithmetic and simulated coverage."""

import numpy as np
import pytest
from scipy import stats

from workbench.evaluation.statistics import (
    paired,
    pooled_ratio,
    power,
    power_of_same,
    same,
    sooner,
)


def test_paired_is_scipys_test_and_measurement_bounds_it_from_below():
    values = np.random.default_rng(0).normal(0.02, 0.03, 10)
    effect = paired([np.array([value]) for value in values])
    assert effect.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    # three seeds that agree by luck: each measured with variance .01 / 50
    noisy = [mean + np.tile([-0.1, 0.1], 25) for mean in (0.019, 0.0191, 0.0192)]
    error = np.sqrt(0.1**2 * 50 / 49 / 50 / 3)
    assert paired(noisy).error == pytest.approx(error) and paired(noisy).p > 0.05


def test_same_is_the_90_percent_interval_inside_the_margin():
    for seed in range(40):
        values = np.random.default_rng(seed).normal(0.005, 0.02, 10)
        effect = paired([np.array([value]) for value in values])
        reach = stats.t.ppf(0.95, 9) * values.std(ddof=1) / np.sqrt(10)
        inside = abs(values.mean()) + reach < 0.02
        assert (same(effect, 0.02) < 0.05) == inside


def test_ratios_are_pooled_and_too_few_are_not_measured():
    a, b = np.array([[3, 10], [0, 0], [6, 20]]), np.array([[1, 10], [2, 10], [1, 20]])
    effect = pooled_ratio(a, b, 30)
    assert effect.mean == pytest.approx(9 / 30 - 4 / 40)
    left = np.array([6 / 20 - 3 / 30, 9 / 30 - 2 / 30, 3 / 10 - 3 / 20])
    jackknife = np.sqrt(2 * np.mean((left - left.mean()) ** 2))
    assert effect.error == pytest.approx(jackknife)
    assert (effect.above, effect.seeds) == (2, 3)  # .3 over .1 and .3 over .05; one has no ratio
    assert pooled_ratio(a, b, 31) is None
    assert pooled_ratio(np.array([[3, 40], [0, 0]]), np.array([[1, 40], [1, 40]]), 30) is None


def test_sooner_by_hand_and_who_never_gets_there():
    effect = sooner([20, 30], [100, 80], 0.5, 100)
    assert effect.mean == pytest.approx(((0.5 - 0.2) + (0.4 - 0.3)) / 2)
    assert sooner([np.inf, np.inf], [np.inf, 100], 0.5, 100).mean == pytest.approx(-0.5)
    assert sooner([np.inf, 90], [50, 60], 0.5, 100).mean < 0


def test_sooner_is_the_area_between_the_curves_of_those_who_are_not_there_yet():
    """The restricted mean is the area under the share of runs that are still under way."""
    rng = np.random.default_rng(3)
    for share in (0.5, 1.0):
        a, b = rng.exponential(60, 7), rng.exponential(90, 7)
        moments = np.arange(0, 100, 0.01) + 0.005
        under_way = [(times[:, None] > moments).mean() for times in (a, b)]
        effect = sooner(a, b, share, 100)
        assert effect.mean == pytest.approx(share * under_way[1] - under_way[0], abs=1e-3)


def test_sooner_says_so_of_what_is_sooner_and_of_nothing_else():
    rng = np.random.default_rng(4)
    told = {"sooner": 0, "as asked": 0, "later": 0}
    for _ in range(200):
        b = rng.uniform(40, 90, 10)
        for name, pace in (("sooner", 0.25), ("as asked", 0.5), ("later", 0.75)):
            effect = sooner(pace * b * rng.uniform(0.8, 1.2, 10), b, 0.5, 100)
            told[name] += effect.p < 0.05 and effect.mean > 0
    assert told["sooner"] > 190 and told["as asked"] < 12 and told["later"] == 0


def test_sooner_after_the_end_of_the_runs_nothing_is_seen():
    """A run that would have got there later counts as one that never does, and makes the other no
    more than the horizon sooner: the effect never says more than longer runs would.
    """
    for late in (100, 101, 500, np.inf):
        effect = sooner([20, 30], [late, 80], 1.0, 100)
        assert effect.mean == pytest.approx((0.8 + 0.5) / 2)
    longer = [sooner([20, 30], [500, 80], 1.0, horizon) for horizon in (100, 200, 500)]
    gained = [effect.mean * h for effect, h in zip(longer, (100, 200, 500))]
    assert gained == sorted(gained) and gained[0] < gained[-1]
    # swapped, with the whole of the other's time, it is the opposite
    there, back = sooner([20, 30], [60, 80], 1.0, 100), sooner([60, 80], [20, 30], 1.0, 100)
    assert there.mean == pytest.approx(-back.mean) and (there.low, back.high) == pytest.approx(
        (-back.high, -there.low)
    )


def test_power_is_what_simulation_counts():
    rng = np.random.default_rng(1)
    draws = rng.normal(0.02, 0.02, (4000, 10))
    told = (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()
    assert power(10, 0.02, 0.02) == pytest.approx(told, abs=0.025)
    assert power(10, 0.02, 0.0) == pytest.approx(0.05)
    assert power(10, 0.012, 0.05) == pytest.approx(1)  # far out, where scipy's tail is NaN
    equal = draws - 0.02
    reach = stats.t.ppf(0.95, 9) * equal.std(1, ddof=1) / np.sqrt(10)
    inside = (abs(equal.mean(1)) + reach < 0.02).mean()
    assert power_of_same(10, 0.02, 0.02) == pytest.approx(inside, abs=0.025)


def test_of_equals_one_in_twenty_is_called_different_or_fewer():
    rng = np.random.default_rng(2)
    noise = [[rng.normal(0, 0.3, 40) for _ in range(10)] for _ in range(400)]
    different = sum(paired(seeds).p < 0.05 for seeds in noise)
    assert 2 <= different <= 33
