"""Locators on hand-made groups whose failure point is known, on recorded groups without a model,
and on hostile text.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_spans import layout

from data.organism.build.common import tokenizer
from workbench.core import Group, Inspection, Rollout, Verdict, WorkbenchError
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


WORDED = "There are 3 boxes of 4, so that makes 3*4=12 pencils.\nTom takes 5, so 12-5=8 are left.\n"
OTHER_WORDS = (
    "In the boxes there are 3 x 4 = 12 pencils.\nWithout 5 of them: 12 - 5 = 7.\nAnswer: 7"
)


def test_free_text_diverges_at_a_result_and_not_at_its_wording():
    [point] = only(group(WORDED + "Answer: 8", RIGHT), Divergence()).candidates
    assert point.step == 0  # RIGHT is of another problem: it never has 12
    with_right = Group(PROBLEM, (rollout(WORDED + "Answer: 8"), right_in_words(OTHER_WORDS)))
    [point] = only(with_right, Divergence()).candidates
    assert (point.step, point.score) == (1, 1)
    assert decode(with_right.rollouts[0].completion_ids[point.token :]).startswith("12-5=8")
    right_steps = WORDED.replace("=8", "=7") + "Answer: 8"  # only the answer is not what they say
    with_right = Group(PROBLEM, (rollout(right_steps), right_in_words(OTHER_WORDS)))
    assert [c.step for c in only(with_right, Divergence()).candidates] == [2]


def test_one_line_is_read_by_its_sentences():
    one_line = WORDED.replace("\n", " ") + "Answer: 8"
    with_right = Group(PROBLEM, (rollout(one_line), right_in_words(OTHER_WORDS)))
    assert [c.step for c in only(with_right, Divergence()).candidates] == [1]


def right_in_words(text: str) -> Rollout:
    made = rollout(text)
    return replace(made, verdict=Verdict(1.0, True))


def test_right_siblings_are_the_baseline_of_a_cusum_in_free_text():
    wrong, right = rollout(WORDED + "Answer: 8"), right_in_words(OTHER_WORDS)
    style = np.full(len(right.completion_ids), -0.2)  # the teacher would have worded it otherwise
    delta = np.zeros(len(wrong.completion_ids))
    delta[:10], delta[60] = -0.2, -20.0
    inspection = Inspection(Group(PROBLEM, (wrong, right, right)), {"delta": (delta, style, style)})
    alone = Inspection(Group(PROBLEM, (wrong,)), {"delta": (delta,)})
    assert only(alone, SustainedNegative()).candidates[0].token == 0
    assert only(inspection, SustainedNegative()).candidates[0].token == 60
    sums = Inspection(
        Group(PROBLEM, (rollout(WRONG), right, right)),
        {"delta": (np.full(len(rollout(WRONG).completion_ids), -0.2), style, style)},
    )
    assert only(sums, SustainedNegative()).candidates[0].token == 0  # sums have no wording


def test_a_locator_says_where_it_was_not_validated():
    prose = "She was the older one, so she went first."
    for text, validated in ((WRONG, True), (WORDED, True), (prose, False), ("", False)):
        inspection = with_delta((0, -3.0), text=text)
        for locator in (Divergence(), SteepestDrop(), SustainedNegative(), Chance()):
            assert (only(inspection, locator).note == "") is validated
        assert only(inspection, Truth()).note == ""


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
