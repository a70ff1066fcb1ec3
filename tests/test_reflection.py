"""DSR, ERR, spoiling and recovery, on attempts written by hand: the expected numbers are counted in
the comments.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import toys

from workbench.core import Group, Rollout, Verdict, WorkbenchError
from workbench.evaluation.reflection import (
    Judgement,
    Rate,
    boundary,
    by_checker,
    by_words,
    compare,
    measure,
    plant,
    recover,
    recovery,
)
from workbench.tasks.arithmetic import Arithmetic

TASK = Arithmetic()
QUESTION = TASK.problem("17+5-9+8-3")
RIGHT = QUESTION.solutions[0]
ATTEMPTS = {
    "direct": RIGHT,
    "wrong": "17+5=22\n22-9=12\n12+8=20\n20-3=17\nAnswer 17",
    "mended": "17+5=22\n22-9=12\nWait, 22-9=13\n13+8=21\n21-3=18\nAnswer 18",
    "mended late": "17+5=22\n22-9=12\n12+8=20\nWait, 22-9=13\n13+8=21\n21-3=18\nAnswer 18",
    "not mended": "17+5=22\n22-9=12\nWait, 22-9=14\n14+8=22\n22-3=19\nAnswer 19",
    "mended, then wrong again": "17+5=22\n22-9=12\nWait, 22-9=13\n13+8=20\n20-3=17\nAnswer 17",
    "needless": "17+5=22\nWait, 17+5=22\n22-9=13\n13+8=21\n21-3=18\nAnswer 18",
    "spoiled": "17+5=22\n22-9=13\nWait, 22-9=12\n12+8=20\n20-3=17\nAnswer 17",
}


def made(text, problem=QUESTION) -> Rollout:
    return Rollout((1,), (2,), (-1.0,), text, TASK.grade(problem, text))


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("direct", (False, False, False)),
        ("wrong", (False, False, False)),
        ("mended", (True, True, False)),
        ("mended late", (True, True, False)),
        ("not mended", (True, False, False)),
        ("mended, then wrong again", (True, False, False)),
        ("needless", (True, False, True)),
        ("spoiled", (True, False, True)),
    ],
)
def test_the_checker_judges_exactly(name, wanted):
    assert by_checker(TASK)(QUESTION, made(ATTEMPTS[name])) == Judgement(*wanted)


def test_rates_by_hand():
    """Of the eight attempts: right are direct, mended, mended late, needless (4), direct without a
    reflection 1. Reflect: all but direct and wrong (6); effective 2 of them; needless 2, of which 1
    ends wrong.
    """
    found = measure(
        [Group(QUESTION, tuple(made(text) for text in ATTEMPTS.values()))], by_checker(TASK)
    )
    values = {name: (rate.value, rate.n) for name, rate in found.items()}
    assert values == {
        "right": (4 / 8, 8),
        "first_pass": (1 / 8, 8),
        "dsr": (1 / 4, 4),
        "reflects": (6 / 8, 8),
        "err": (2 / 6, 6),
        "needless": (2 / 6, 6),
        "spoils": (1 / 2, 2),
    }


def test_nothing_to_count_is_not_zero():
    found = measure([Group(QUESTION, (made(ATTEMPTS["wrong"]),))], by_checker(TASK))
    assert (
        math.isnan(found["dsr"].value)
        and math.isnan(found["err"].value)
        and str(found["err"]) == "none"
        and found["reflects"].value == 0
    )


def test_boundary_problems_are_sometimes_right_for_every_model():
    def group(name, *right):
        return Group(
            replace(QUESTION, id=name),
            tuple(Rollout((1,), (2,), (0.0,), "", Verdict(float(r), r)) for r in right),
        )

    first = [
        group("a", True, False),
        group("b", True, False),
        group("c", True, True),
        group("d", False, True),
    ]
    second = [
        group("a", False, True),
        group("b", False, False),
        group("c", True, False),
        group("d", True, False),
    ]
    assert boundary(first) == {"a", "b", "d"} and boundary(first, second) == {"a", "d"}
    kept = measure(first, by_words, boundary(first, second))
    assert kept["first_pass"].n == 4 and kept["first_pass"].value == 0.5


def test_the_interval_resamples_problems():
    """Two problems, all right and none right: the share is 1/2, and a resample has 0, 1/2 or 1."""
    rate = Rate.of([8, 0], [8, 8])
    assert (rate.value, rate.low, rate.high, rate.n) == (0.5, 0.0, 1.0, 16)
    many = Rate.of([1, 0] * 200, [1] * 400)  # sd of the mean .025
    assert many.low == pytest.approx(0.451, abs=0.02) and many.high == pytest.approx(
        0.549, abs=0.02
    )


@pytest.mark.parametrize(
    "text, reflects",
    [
        ("Wait, that is wrong.", True),
        ("Let me double-check this.", True),
        ("I made a mistake here", True),
        ("The waiter awaits.", False),
        ("It is 4.", False),
    ],
)
def test_judging_by_words(text, reflects):
    right, wrong = (
        Rollout((1,), (2,), (0.0,), text, Verdict(float(ok), ok)) for ok in (True, False)
    )
    assert by_words(QUESTION, right) == Judgement(reflects, reflects) and by_words(
        QUESTION, wrong
    ) == Judgement(reflects, False)


def test_a_judge_of_ones_own():
    found = measure(
        [Group(QUESTION, (made(RIGHT), made(RIGHT)))],
        lambda problem, rollout: Judgement(True, True, True),
    )
    assert (found["err"].value, found["dsr"].value, found["spoils"].value) == (1, 0, 0)


def test_planted_beginnings_hold_the_mistake_and_end_with_its_line(tiny_policy):
    right, wrong = made(RIGHT), made(ATTEMPTS["wrong"])
    missing = made("17+5=22\n22-9=13")  # wrong only because it stops: there is no mistake to plant
    other = TASK.problem("1+2+3+4+5")
    at_the_end = made("1+2=3\n3+3=6\n6+4=10\n10+5=15\nAnswer 16", other)
    planted = plant(
        tiny_policy,
        TASK,
        [
            Group(QUESTION, (right, missing, wrong, wrong)),
            Group(other, (at_the_end,)),
            Group(QUESTION, (right,)),
        ],
    )
    assert [tiny_policy.decode(p.ids) for p in planted] == [
        "17+5=22\n22-9=12\n",
        "1+2=3\n3+3=6\n6+4=10\n10+5=15\nAnswer 16\n",
    ]
    with pytest.raises(WorkbenchError, match="first error"):
        plant(tiny_policy, TASK, [Group(QUESTION, (right,))])


def test_recovery_continues_the_planted_beginning(tiny_policy):
    planted = plant(tiny_policy, TASK, [Group(QUESTION, (made(ATTEMPTS["wrong"]),))])
    [group] = recover(tiny_policy, TASK, planted, 3, 0)
    assert len({r.completion_ids for r in group.rollouts}) == 3
    for r in group.rollouts:
        assert r.completion_ids[: r.borrowed] == planted[0].ids and r.borrowed == len(
            planted[0].ids
        ) < len(r.completion_ids)
        assert r.prompt_ids == tiny_policy.prompt_ids(QUESTION.messages) and r.text.startswith(
            "17+5=22\n22-9=12\n"
        )
        assert math.isnan(r.logprobs[0]) and r.logprobs[r.borrowed] < 0 and r.origin == "guided"
    half = Group(QUESTION, (made(ATTEMPTS["mended"]), made(ATTEMPTS["wrong"])))
    assert recovery([group]).value == 0 and recovery([half, group]).value == pytest.approx(1 / 5)


def test_models_are_compared_on_the_same_problems_and_beginnings(tiny_policy, monkeypatch):
    from workbench.evaluation import reflection

    texts = {"a": [RIGHT, ATTEMPTS["wrong"]], "b": [ATTEMPTS["mended"], ATTEMPTS["not mended"]]}
    other = toys.tiny_policy(1)
    names = {id(tiny_policy): "a", id(other): "b"}
    monkeypatch.setattr(
        reflection,
        "sample_groups",
        lambda policy, *_: [Group(QUESTION, tuple(made(t) for t in texts[names[id(policy)]]))],
    )
    found = compare({"a": tiny_policy, "b": other}, TASK, [QUESTION], 2, 0)
    assert (found["a"]["dsr"].value, found["b"]["dsr"].value, found["b"]["err"].value) == (
        1,
        0,
        0.5,
    )
    assert math.isnan(found["a"]["err"].value) and found["b"]["recovery"].n == 2


def test_every_model_recovers_from_the_first_ones_mistake_and_from_no_other(
    tiny_policy, monkeypatch
):
    """Each model has a mistake of its own; what all are given is the first one's."""
    from workbench.evaluation import reflection

    mistakes = {"a": ATTEMPTS["wrong"], "b": "17+5=21\n21-9=12\n12+8=20\n20-3=17\nAnswer 17"}
    policies = {"a": tiny_policy, "b": toys.tiny_policy(1)}
    wrong = {
        policy: Group(QUESTION, (made(mistakes[name]), made(RIGHT)))
        for name, policy in policies.items()
    }
    given = []

    def watched(policy, task, planted, samples, seed):
        given.append([policy.decode(beginning.ids) for beginning in planted])
        return recover(policy, task, planted, samples, seed)

    monkeypatch.setattr(reflection, "sample_groups", lambda policy, *_: [wrong[policy]])
    monkeypatch.setattr(reflection, "recover", watched)
    compare(policies, TASK, [QUESTION], 2, 0)
    assert given == [["17+5=22\n22-9=12\n"]] * 2
    given.clear()
    compare(dict(reversed(policies.items())), TASK, [QUESTION], 2, 0)
    assert given == [["17+5=21\n"]] * 2


def test_a_task_that_checks_no_steps_needs_a_judge():
    with pytest.raises(WorkbenchError, match="judge"):
        by_checker(toys.FirstCharacter())
