"""Estimators against enumeration and against simulation."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import toys

from workbench.evaluation.metrics import Evaluation, evaluate, pass_at_k, pass_at_k_bootstrap
from workbench.evaluation.statistics import bootstrap


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_all_subsets_with_a_right_one(n):
    for correct in range(n + 1):
        samples = [True] * correct + [False] * (n - correct)
        for k in range(1, n + 1):
            subsets = list(combinations(samples, k))
            assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_is_unbiased():
    """Its expectation over n samples that are right with probability p is 1 - (1 - p)^k, which a
    plug-in estimate is not.
    """
    from math import comb

    n, p, k = 8, 0.3, 4
    chance = [comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    assert sum(w * pass_at_k(n, c, k) for c, w in enumerate(chance)) == pytest.approx(
        1 - (1 - p) ** k
    )
    assert sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(chance)) < 1 - (1 - p) ** k - 0.02


def test_pass_at_more_than_there_are_is_refused():
    for k in (0, 5):
        with pytest.raises(ValueError, match="needs at least"):
            pass_at_k(4, 2, k)


def test_bootstrapped_pass_at_k_is_drawing_with_replacement():
    rng = np.random.default_rng(0)
    for n, correct, k in ((4, 1, 2), (8, 3, 4), (32, 1, 32), (5, 2, 8)):
        drawn = (rng.integers(0, n, (40_000, k)) < correct).any(1).mean()
        assert pass_at_k_bootstrap(n, correct, k) == pytest.approx(drawn, abs=0.012)
        if k <= n:
            # here (1/32, k = 32): .638 and 1
            assert pass_at_k_bootstrap(n, correct, k) < pass_at_k(n, correct, k)
    assert [pass_at_k_bootstrap(4, c, 3) for c in (0, 4)] == [0, 1] and pass_at_k_bootstrap(
        4, 1, 1
    ) == pass_at_k(4, 1, 1)


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        low, high = bootstrap(rng.binomial(8, 0.4, 60) / 8, draws=400)
        covered += low <= 0.4 <= high
    assert 0.90 <= covered / 300 <= 0.985


def test_bootstrap_is_deterministic_and_narrows():
    values = np.arange(40) % 2
    assert bootstrap(values) == bootstrap(list(values))
    rates = np.random.default_rng(0).random(40)
    assert bootstrap(rates) == bootstrap(rates) != bootstrap(rates, seed=1)
    low, high = bootstrap(values)
    assert low < 0.5 < high and (high - low) / 2 == pytest.approx(1.96 * 0.5 / 40**0.5, rel=0.15)
    narrow = bootstrap(np.arange(4000) % 2)
    assert narrow[1] - narrow[0] < (high - low) / 8
    assert bootstrap([0.25] * 5) == (0.25, 0.25)


def test_evaluation_by_hand():
    # 3 of 4, 0 of 4, 4 of 4. avg 7/12; pass@2: 1 - C(1,2)/C(4,2) = 1, 0, 1; pass@1 = avg; pass@4:
    # 1, 0, 1
    groups = [toys.group([1, 2, 3, 4], row) for row in ([1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1])]
    result = Evaluation.of(groups)
    assert (result.problems, result.samples, result.per_problem) == (3, 4, (0.75, 0.0, 1.0))
    assert result.avg == pytest.approx(7 / 12) and result.low <= result.avg <= result.high
    assert result.pass_at == pytest.approx({1: 7 / 12, 2: 2 / 3, 4: 2 / 3})
    assert result.bootstrap_pass_at == pytest.approx(
        {1: 7 / 12, 2: (15 / 16 + 1) / 3, 4: (255 / 256 + 1) / 3}
    )
    assert result.length == 2.5 and result.finished == 1.0
    assert (
        "avg@4 0.583" in str(result)
        and "pass@4 0.667" in str(result)
        and "3 problems x 4 samples" in str(result)
    )


def test_evaluate_measures_the_chance_of_the_right_token(tiny_policy):
    """A task whose success rate can be read off the model: the chance that the first token is one
    of half of the characters.
    """
    import torch

    task = toys.FirstCharacter(toys.HALF)
    [problem] = task.problems("test", 1, 0)
    with torch.no_grad():
        logits = tiny_policy.model(
            input_ids=torch.tensor([tiny_policy.prompt_ids(problem.messages)])
        ).logits[0, -1]
    # by what a token decodes to: a phrase is one token, and may begin with one of the characters
    ids = [
        i
        for i in range(logits.numel())
        if i < len(tiny_policy.tokenizer) and tiny_policy.decode((i,))[:1] in tuple(toys.HALF)
    ]
    chance = float(logits.softmax(-1)[ids].sum())
    first = evaluate(tiny_policy, task, [problem], 1000, 0)
    assert first.avg == pytest.approx(chance, abs=4 * (chance * (1 - chance) / 1000) ** 0.5)
    assert (
        first
        == evaluate(tiny_policy, task, [problem], 1000, 0)
        != evaluate(tiny_policy, task, [problem], 1000, 1)
    )


def test_passes_go_up_to_32():
    assert list(Evaluation.of([toys.group([1] * 32, [1] + [0] * 31)]).pass_at) == [
        1,
        2,
        4,
        8,
        16,
        32,
    ]
