"""One question seen by every method: the same attempts, each method's own additions, each method's
own numbers.
"""

from dataclasses import replace

import numpy as np
import pytest
import toys

from workbench.core import Group
from workbench.inspection.credit import (
    RealisedCredit,
    comparable_rollouts,
    credit_by_method,
    realised_credit,
)
from workbench.methods.grpo import GRPO
from workbench.methods.sdpo import SDPO
from workbench.methods.sft import SFT
from workbench.methods.trapo import TRAPO
from workbench.model.learner import FrozenLearner
from workbench.tasks import load_task
from workbench.viz.png import credit_columns

TASK = load_task("arithmetic:style=turned")
[PROBLEM] = TASK.problems("validation", 1, 0)
METHODS = {"SFT": SFT(), "GRPO": GRPO(k=4), "SDPO": SDPO(k=4), "TRAPO": TRAPO()}


@pytest.fixture(scope="module")
def found():
    return credit_by_method(FrozenLearner(toys.tiny_policy()), TASK, PROBLEM, METHODS, (0, 1))


def test_methods_that_let_the_policy_write_see_the_same_attempts(found):
    ids = {
        name: [r.completion_ids for r in way.group.rollouts if r.origin == "policy"]
        for name, way in found.items()
    }
    assert ids["GRPO"] == ids["SDPO"] == ids["TRAPO"] and not ids["SFT"]
    assert [r.origin for r in found["TRAPO"].group.rollouts] == ["policy"] * 4 + ["guided"] * 3 + [
        "expert"
    ]


def test_the_numbers_are_those_of_the_method_on_its_own_group(found):
    for name, way in found.items():
        again = realised_credit(FrozenLearner(toys.tiny_policy()), way.group, METHODS[name]).credit
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(way.credit, again))
    # a random model is never right: no contrast
    assert all((credit == 0).all() for credit in found["GRPO"].credit)
    assert any((credit != 0).any() for credit in found["TRAPO"].credit)


def test_few_are_picked_the_shared_ones_and_one_addition():
    right, wrong, other = (
        toys.rollout(4, reward, seed=seed) for reward, seed in ((1.0, 1), (0.0, 2), (0.0, 3))
    )
    bad, good = (
        replace(toys.rollout(5, reward, seed=4), origin="expert", borrowed=5)
        for reward in (0.0, 1.0)
    )

    def flat(*rollouts):
        numbers = tuple(np.full(len(r.completion_ids), 1.0) for r in rollouts)
        return RealisedCredit(Group(PROBLEM, rollouts), numbers, {})

    kept = comparable_rollouts(
        {"a": flat(other, right, wrong), "b": flat(wrong, right), "c": flat(right)}
    )
    assert [
        [r is x for r, x in zip(kept[name].group.rollouts, want)]
        for name, want in (("a", (right, wrong)), ("b", (right, wrong)), ("c", (right,)))
    ] == [[True, True], [True, True], [True]]
    assert comparable_rollouts({"a": flat(right, bad, good)})["a"].group.rollouts == (right, good)


def test_a_column_for_each_method_with_every_token(found):
    def decode(token):
        return toys.tiny_policy().tokenizer.decode([token])

    kept = comparable_rollouts({name: found[name] for name in ("SFT", "TRAPO")})
    narrow = credit_columns(
        {name: (way.group, way.credit) for name, way in kept.items()}, decode, width=12
    ).axes[0]
    for text in narrow.texts:  # a long line goes on below, and not into the next column
        if text.get_ha() == "center":
            middle, half = text.get_position()[0], len(text.get_text()) / 2
            assert (middle + half - 0.5) // 12 == (middle - half) // 12 or half > 5
    figure = credit_columns(
        {name: (way.group, way.credit) for name, way in kept.items()}, decode, notes={"SFT": ".30"}
    )
    words = [text.get_text() for text in figure.axes[0].texts]
    assert {"SFT", "TRAPO", "✓ expert", ".30"} <= set(words)
    assert len(words) >= sum(
        len(r.completion_ids) for way in kept.values() for r in way.group.rollouts
    )
