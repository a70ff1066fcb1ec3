"""The task words: what is asked, what is held out, and what the checker knows of an attempt."""

import json
from fractions import Fraction
from random import Random

import pytest

from data.words.build import Lessons, slip
from workbench.core import WorkbenchError
from workbench.spans import split_steps
from workbench.tasks import load_task
from workbench.tasks.prompts import parse_synthesis
from workbench.tasks.stories import filled, stories, tell
from workbench.tasks.verify.equations import equations
from workbench.tasks.words import Words, solve

TASK = Words()
BOXES = (
    "There are 3 boxes with 4 pencils in each, so that makes 3*4=12 pencils.\n"
    "Tom takes out 5, so there are 12-5=7 pencils left.\n"
    "Answer: 7"
)


def boxes():
    story = next(each for each in stories("taught") if each.name == "boxes")
    words = {"n": "Tom", "m": "Anna", "t": "pencils", "u": "cups", "he": "he", "He": "He"}
    return TASK.problem(filled(story, (3, 4, 5), words))


# ---- equations, by hand


@pytest.mark.parametrize(
    "text",
    [
        "3 boxes * 4 pencils = 12 pencils",
        "$1,200 / 4 = $300",
        "30% of 160 = 48 emails",
        "10 / 4 = 2.5",
        "10 / 3 = 3.33",
        "12 = 3 x 4",
        "3 × 4 = 12",
        "160−48=112",
        "(3 + 4) * 2 = 14",
        "(so 3 + 4 = 7)",
        "p = 3 * 4 = 12",
        "5 - 8 = -3",
        "1/2 of 240 = $120",
        "<<72*0.25=18>>18",
        "701.4 / 1.05 = 668",
        "7 for a total of 27*7 = 189 minutes",
        "13÷1/2=26 minutes",
        "007 + 1 = 8",
        "1 + 2 x (3 + 4) = 15",
        "800/3=<<800/3=266.6666666666667>>266.67",
    ],
)
def test_an_equation_that_holds(text):
    (equation,) = equations(text)
    assert equation.wrong is None


@pytest.mark.parametrize(
    "text, side, value",
    [
        ("3*4=13", "3*4", 12),
        ("13 = 3 x 4 pencils", "3*4", 12),
        ("2 + 3 = 5 + 4 = 9", "2+3", 5),  # the abuse of = as "and then"
        ("10/3 = 3", "10/3", Fraction(10, 3)),
        ("10/3 = 3.34", "10/3", Fraction(10, 3)),
        ("$5 * 2 apples = $11", "5*2", 10),
        ("7-5/0=2", "7-5/0", None),
    ],
)
def test_an_equation_that_does_not_hold(text, side, value):
    (equation,) = equations(text)
    assert equation.wrong == (side, value)


@pytest.mark.parametrize(
    "text", ["x = 5", "Step 1: nothing", "7 = 7", "3+4 is 7", "1-2 days", "2(3+4) = 14", ""]
)
def test_what_is_no_equation(text):
    assert not equations(text)


@pytest.mark.parametrize(
    "text", ["1+" * 20000, "1 a a a " * 9000, "(" * 50000 + "1+1=2", "9" * 9999]
)
def test_hostile_text_takes_no_time(text, benchmark_seconds=2.0):
    import time

    began = time.perf_counter()
    assert [e.wrong for e in equations(text + "+1=2")] in (
        [],
        [None],
        [equations("1+1=3")[0].wrong],
    )
    assert time.perf_counter() - began < benchmark_seconds


# ---- what is asked


@pytest.mark.parametrize("style", ["plain", "turned"])
@pytest.mark.parametrize("kind", ["taught", "held"])
def test_every_solution_is_right(style, kind):
    task = Words(style=style, stories=kind)
    for split in ("train", "validation", "test"):
        for problem in task.problems(split, 60, 1):
            (text,) = problem.solutions
            assert TASK.grade(problem, text).correct
            assert TASK.first_error(problem, text) is None


def test_held_out_problems_occur_in_no_training():
    """By the numbers of the story: another name makes no other problem."""
    lessons = Lessons()
    trained = [p for seed in range(60) for p in lessons.problems("train", 16, seed)]
    numbers = {(p.meta["story"], p.meta["steps"]) for p in trained}
    texts = {p.messages[-1]["content"] for p in trained}
    for split in ("validation", "test"):
        for problem in TASK.problems(split, 200, 0):
            assert (problem.meta["story"], problem.meta["steps"]) not in numbers
            assert problem.messages[-1]["content"] not in texts
    whole = {story.name for story in stories("held")}
    assert whole.isdisjoint(p.meta["story"] for p in trained)
    assert {p.meta["story"] for p in Words(stories="held").problems("test", 80, 0)} == whole


def test_the_same_seed_the_same_problems_and_all_different():
    one, again = TASK.problems("test", 200, 3), TASK.problems("test", 200, 3)
    assert one == again
    assert len({problem.id for problem in one}) == 200


def test_answers_are_small_whole_numbers():
    rng = Random(0)
    for story in (*stories("taught"), *stories("held")):
        told = [each for each in (tell(story, rng) for _ in range(400)) if each]
        assert len(told) > 20, story.name
        assert all(0 < value < 120 for each in told for *_, value in each.steps)


def test_dials():
    assert load_task("words:style=turned,max_new=64").max_new == 64
    for dials in ("style=odd", "stories=new", "max_new=0", "split=test"):
        with pytest.raises(WorkbenchError):
            load_task(f"words:{dials}")


# ---- the checker


@pytest.mark.parametrize(
    "old, new, line, feedback",
    [
        ("3*4=12", "3*4=13", 0, "Line 1 is wrong: 3*4 is 12."),
        ("12-5=7", "12-5=8", 1, "Line 2 is wrong: 12-5 is 7."),
        ("12-5=7", "12-6=6", 1, "Line 2 should say 12-5=7."),  # 6 is in no place
        ("3*4=12", "3+4=7", 0, "Line 1 should say 3*4=12."),  # it holds, and is not asked
        ("12-5=7", "4*3=12", 1, "Line 2 should say 12-5=7."),  # once more: it leads nowhere
        ("Answer: 7", "Answer: 9", 2, "Line 3 should say Answer: 7."),
        ("\nAnswer: 7", "", 2, "Line 3 should say 12-5=7."),  # it stopped before the answer
        ("Answer: 7", "Answer: " + "7" * 25, 2, "Line 3 should say 12-5=7."),  # nor is this one
        ("Answer: 7", "Answer:\n9", 4, "Line 5 should say Answer: 7."),
    ],
)
def test_first_error_and_what_is_said_of_it(old, new, line, feedback):
    text = BOXES.replace(old, new)
    if "3+4=7" in text:
        text = text.replace("12-5=7", "7-5=2").replace("Answer: 7", "Answer: 2")
    if "4*3" in text:
        text = text.replace("Answer: 7", "Answer: 12")
    problem = boxes()
    verdict, error = TASK.grade(problem, text), TASK.first_error(problem, text)
    assert not verdict.correct and verdict.reward == 0
    assert error.index == line
    steps = split_steps(text)
    assert (error.start, error.end) == (
        (steps[line].start, steps[line].end) if line < len(steps) else (len(text),) * 2
    )
    assert verdict.feedback == feedback


@pytest.mark.parametrize(
    "said",
    [
        "**Answer:** 7",
        "Answer: **7**",
        "The answer is **7**.",
        "**Answer**: 7",
        "#### **7**",
        "Answer:          7",
    ],
)
def test_an_answer_in_bold_letters_is_read(said):
    assert TASK.grade(boxes(), BOXES.replace("Answer: 7", said)).correct
    assert not TASK.grade(boxes(), BOXES.replace("Answer: 7", said.replace("7", "8"))).correct


def test_a_right_answer_under_a_wrong_equation_is_wrong_and_says_so():
    verdict = TASK.grade(boxes(), BOXES.replace("12-5=7", "12-5=8"))
    assert not verdict.correct and verdict.parts["answer"] == 1


def test_wait_takes_back_what_was_wrong():
    mended = BOXES.replace(
        "Tom takes out 5, so there are 12-5=7",
        "Tom takes out 5, so there are 12-5=8 pencils left.\n"
        "Wait, Tom takes out 5, so there are 12-5=7",
    )
    problem = boxes()
    assert TASK.grade(problem, mended).correct
    assert TASK.first_error(problem, mended).index == 1
    assert not TASK.grade(problem, mended.replace("Wait, ", "")).correct
    worse = mended + "\nWait, 12-5=6.\nAnswer: 6"
    assert not TASK.grade(problem, worse).correct


def test_other_words_and_another_order_are_right():
    problem = boxes()
    assert TASK.grade(
        problem, "In all 3 × 4 pencils = 12 pencils. Minus five: 12 - 5 = 7.\n#### 7"
    ).correct
    assert TASK.grade(problem, "The answer is 7.").correct
    assert TASK.grade(problem, "4*3 - 5 = 7, so \\boxed{7}").correct
    for text in ("", "7", "\n\n", "Answer: seven", "Answer: -7", "Answer: 7 " + "9" * 5000 + "=1"):
        assert TASK.grade(problem, text).correct is text.startswith("Answer: 7 ")


PIECES = (
    *("0", "7", "3.5", "1,200", "9" * 30, "٣", "½", "７", "\x00", "\ud800", "\u202e", "$", "%"),
    *("+", "-", "*", "/0", "×", "=", "(", ")", " of ", "so ", "Wait", "Step 1:", " ", "\n", "."),
    *("Answer:", "The answer is", "#### ", "\\boxed{", "}", "12-5=7", "3*4=12 pencils"),
)


def test_whatever_a_model_writes_is_graded():
    """A 4-bit model wrote an answer of more digits than are read, and its run broke off."""
    rng, problem = Random(0), boxes()
    for _ in range(3000):
        written = "".join(rng.choices(PIECES, k=rng.randint(1, 9)))
        text = BOXES[: rng.randint(0, len(BOXES))] + written
        verdict, error = TASK.grade(problem, text), TASK.first_error(problem, text)
        assert verdict.correct == (verdict.reward == 1) == (verdict.feedback == "")
        assert verdict.correct or 0 <= error.start <= error.end <= len(text)
    assert TASK.grade(problem, BOXES.replace("Answer: 7", "Answer: ٣\nAnswer: 7")).correct


def test_slips_are_found_where_they_were_planted():
    rng = Random(1)
    for told in TASK.told("train", 100, 5):
        slipped, problem = slip(told, rng), TASK.problem(told)
        changed = [i for i, (a, b) in enumerate(zip(told.steps, slipped.steps)) if a[3] != b[3]]
        text = solve(slipped)
        assert TASK.first_error(problem, text).index == changed[0]
        assert not TASK.grade(problem, text).correct


def test_lessons_end_right_and_reconstructions_mend_once():
    kinds = set()
    for problem in Lessons().problems("train", 120, 7):
        parsed = parse_synthesis(problem.solutions[0])
        kinds.add((bool(parsed), len(problem.messages[-1]["content"]) > 250))
        check = TASK.check(problem, parsed[1] if parsed else problem.solutions[0])
        assert check.correct and check.reflections == bool(parsed)
        assert (check.first_error is not None) == bool(parsed)
    assert len(kinds) >= 2


def test_records_name_the_committed_arms():
    from data.words.run import ARMS, RECORDS

    cells = {arm.cell(seed) for arm in ARMS for seed in range(arm.seeds)}
    records = list(RECORDS.glob("*/evaluation.json"))
    assert records
    for record in records:
        assert record.parent.name in cells
        assert json.loads(record.read_text())["test"]["problems"] == 200
