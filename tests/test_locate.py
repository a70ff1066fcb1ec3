"""Locators on hand-made groups whose failure point is known, on recorded groups without a model,
and on hostile text.
"""

from __future__ import annotations

import numpy as np
import pytest
from test_spans import layout

from data.organism.build.common import tokenizer
from workbench.core import Group, Inspection, Rollout, WorkbenchError
from workbench.inspection.locators import (
    BEST,
    Chance,
    Divergence,
    SteepestDrop,
    SustainedNegative,
    Truth,
    locate,
)
from workbench.spans import shared_steps
from workbench.tasks.arithmetic import Arithmetic

TASK = Arithmetic(steps=3)
PROBLEM = TASK.problem("47+85-29+6")
RIGHT = PROBLEM.solutions[0]  # 47+85=132, 132-29=103, 103+6=109, Answer 109
WRONG = "47+85=132\n132-29=113\n113+6=119\nAnswer 119"
TOKENIZER = tokenizer()


def decode(ids) -> str:
    return TOKENIZER.decode([i for i in ids if i != TOKENIZER.eos_token_id])


def rollout(text: str, finished: bool = True) -> Rollout:
    made = layout(text, finished).rollout
    return Rollout(
        made.prompt_ids,
        made.completion_ids,
        made.logprobs,
        text,
        TASK.grade(PROBLEM, text),
        finished=finished,
    )


def group(*texts: str) -> Group:
    return Group(PROBLEM, tuple(rollout(text) for text in texts))


def with_delta(*deltas, text: str = WRONG) -> Inspection:
    """Delta 0 but for the given (token, value) pairs."""
    made = rollout(text)
    delta = np.zeros(len(made.completion_ids))
    for token, value in deltas:
        delta[token] = value
    return Inspection(
        Group(PROBLEM, (made,)),
        {"delta": (delta,)},
        first_errors=(TASK.first_error(PROBLEM, text),),
    )


def only(inspection, locator):
    return locate(inspection, decode, [locator])[0][locator.name]


def test_truth_is_the_checkers():
    [truth] = only(with_delta(), Truth()).candidates
    assert (truth.step, truth.token) == (1, 10) and decode(
        rollout(WRONG).completion_ids[truth.token :]
    ).startswith("132-29=113")
    # stopped too early: the end-of-turn token is the mistake
    [missing] = only(with_delta(text="47+85=132\n132-29=103"), Truth()).candidates
    assert (missing.step, missing.token) == (
        2,
        len(rollout("47+85=132\n132-29=103").completion_ids) - 1,
    )
    unknown = Inspection(group(WRONG), {}, first_errors=(None,))
    assert only(unknown, Truth()).candidates == ()


def test_steepest_drop_is_a_fall_and_not_a_level():
    found = only(with_delta((3, -1.0), (4, -1.5), (17, -2.0), (32, -0.2)), SteepestDrop())
    assert [(c.step, c.token, c.score) for c in found.candidates] == [
        (1, 17, 2.0),
        (0, 3, 1.0),
        (3, 32, pytest.approx(0.2)),
    ]
    assert found.cost == 0
    # before the first token Delta counts as 0
    assert only(with_delta((0, -1.0)), SteepestDrop()).candidates[0].token == 0
    assert only(with_delta(), SteepestDrop()).candidates == ()
    assert (
        len(
            only(
                with_delta((3, -1.0), (17, -2.0), (25, -1.0), (30, -1.0)), SteepestDrop()
            ).candidates
        )
        == BEST
    )


def test_sustained_negative_by_hand():
    method = SustainedNegative(drift=0.1, alarm=1.0)
    # One blip of 0.5 decays before the alarm; from token 20 on, 0.4 - 0.1 a token reach 1.2 at the
    # fourth.
    found = only(with_delta((3, -0.5), *((t, -0.4) for t in range(20, 24))), method)
    [point] = found.candidates
    assert point.token == 20 and point.score == pytest.approx(1.2)
    # 0.9: no alarm
    assert only(with_delta(*((t, -0.4) for t in range(20, 23))), method).candidates == ()
    # the first alarm, not the loudest
    assert only(with_delta((7, -1.1), (20, -9.0)), method).candidates[0].token == 7
    assert only(with_delta((7, -1.1), (20, -9.0)), method).candidates[0].score == pytest.approx(1.0)
    # a token that the teacher prefers takes it back
    assert only(with_delta((5, -0.9), (6, 2.0), (7, -0.9)), method).candidates == ()


def test_divergence_from_the_nearest_correct_sibling():
    # the second is wrong: not a sibling to be compared with
    found = only(group(WRONG, "Wait\nAnswer 109", RIGHT), Divergence())
    [point] = found.candidates
    # 132-29=1|1|3: tokens are characters so far
    assert (point.step, point.score) == (1, 1) and WRONG[point.token :][:2] == "13"
    assert point.token == WRONG.index("113\n") + 1
    roundabout = "47+85=122\nWait, " + RIGHT
    found = only(group(WRONG, roundabout, RIGHT), Divergence())
    assert [(c.step, c.score) for c in found.candidates] == [(1, 1), (0, 0)]  # the nearest first
    assert only(group(WRONG), Divergence()).candidates == ()
    early = locate(group("47+85=132\n132-29=103", RIGHT), decode, [Divergence()])[0][
        "divergence"
    ].candidates[0]
    assert early.step == 2 and early.token == len("47+85=132\n132-29=103")  # the end-of-turn token


def test_steps_are_compared_by_their_numbers():
    own = ["She has 16 - 3 = <<16-3=13>>13 eggs.\n", "A: 13"]
    # a number is missing
    assert shared_steps(own, ["16-3 is <<16-3=13>> 13 eggs left\n", "A: 12"]) == 0
    assert shared_steps(own, ["So 16 -  3 = <<16-3=13>>13\n", "A: 12"]) == 1
    assert shared_steps(["First, think.\n", "1"], ["first,  THINK.\n", "1"]) == 2
    assert shared_steps([], ["1"]) == 0


def test_chance_hits_one_step_in_as_many_as_there_are():
    found = [
        locate(Inspection(group(WRONG), {}), decode, [Chance(seed)])[0]["chance"].candidates[0]
        for seed in range(400)
    ]
    steps = np.bincount([c.step for c in found], minlength=4) / 400
    assert len(steps) == 4 and np.abs(steps - 0.25).max() < 0.07  # three standard errors
    assert all(c.token == [0, 10, 21, 31][c.step] for c in found)


def test_which_rollouts_are_located():
    whole = group(WRONG, RIGHT, WRONG)
    assert list(locate(whole, decode, [Divergence()])) == [0, 2]
    assert list(locate(whole, decode, [Divergence()], rollouts=[1])) == [1]
    assert locate(group(RIGHT), decode, [Divergence()]) == {}


@pytest.mark.parametrize("locator", [SteepestDrop(), SustainedNegative(), Truth()])
def test_what_is_missing_is_said_in_one_sentence(locator):
    with pytest.raises(
        WorkbenchError, match=f"'{locator.name}' needs the .*inspect_group"
    ) as caught:
        locate(group(WRONG, RIGHT), decode, [locator])
    assert "\n" not in str(caught.value)


def test_without_a_teacher_there_is_no_answer():
    silent = Inspection(group(WRONG), {"delta": (np.full(40, np.nan),)})
    assert (
        only(silent, SteepestDrop()).candidates
        == only(silent, SustainedNegative()).candidates
        == ()
    )


@pytest.mark.parametrize(
    "text", ["", "\n\n", "</style><script>alert(1)</script>", "9" * 3000, "\n" * 500]
)
def test_hostile_text(text):
    found = locate(group(text, RIGHT), decode, [Divergence(), Chance()])[0]
    for finding in found.values():
        for candidate in finding.candidates:
            assert 0 <= candidate.token < len(rollout(text).completion_ids)
    assert only(with_delta(text=text), Truth()).candidates


def test_a_recorded_group_needs_no_model(tmp_path):
    from workbench.core import StepRecord
    from workbench.records import RunWriter, read_run

    whole = group(WRONG, RIGHT)
    RunWriter(tmp_path / "run", {}).write(StepRecord(0, {}, (whole,), (((), ()),)))
    [(_, recorded, _)] = read_run(tmp_path / "run").groups
    assert locate(recorded, decode, [Divergence()]) == locate(whole, decode, [Divergence()])
