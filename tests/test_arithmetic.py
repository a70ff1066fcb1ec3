"""The arithmetic task against Python's own arithmetic, against an independent reading of attempts,
and against hostile text.
"""

from __future__ import annotations

import subprocess
import sys
import time
from importlib import import_module
from itertools import pairwise
from random import Random

import pytest

from workbench.core import WorkbenchError
from workbench.tasks import TASKS, load_task, prompts
from workbench.tasks.arithmetic import (
    PHRASES,
    Arithmetic,
    check,
    draw,
    parse,
    solve,
    split_of,
)
from workbench.tasks.base import SPLITS, line_spans

CHAIN = "47+85-29+6"
RIGHT = ["47+85=132", "132-29=103", "103+6=109", "Answer 109"]


def graded(*lines: str):
    return check(CHAIN, "\n".join(lines))


# ---- solving


def test_solve_by_hand():
    assert solve(CHAIN) == "\n".join(RIGHT)


def test_solve_equals_python():
    rng = Random(0)
    for _ in range(500):
        expression = str(rng.randrange(100)) + "".join(
            rng.choice("+-") + str(rng.randrange(1000)) for _ in range(rng.randint(1, 12))
        )
        *written, answer = solve(expression).split("\n")
        assert answer == f"Answer {eval(expression)}"  # also where the running value is below zero
        assert len(written) == len(parse(expression)[1])
        for line in written:
            left, right = line.split("=")
            assert eval(left) == int(right)


@pytest.mark.parametrize(
    "text", ["", "7", "1+", "1*2", "1 + 2", "1+2\n", "--1+2", "\u0661+\u0662", "1+2; import os"]
)
def test_what_is_no_chain_is_refused(text):
    with pytest.raises(WorkbenchError, match="not a chain"):
        parse(text)


# ---- checking: without reflections the first error is the first line that is not the solution's


def first_difference(attempt: str, right: list[str]) -> int | None:
    lines = attempt.rstrip("\n").split("\n")
    return next(
        (i for i in range(max(len(lines), len(right))) if lines[i : i + 1] != right[i : i + 1]),
        None,
    )


def test_every_edit_of_a_solution_is_found_at_its_line():
    task, rng, seen = Arithmetic(), Random(1), 0
    for _ in range(12):
        problem = task.problem(draw(rng, 3, 99))
        right = problem.solutions[0].split("\n")
        text = problem.solutions[0]
        edits = {text[:i] + text[i + 1 :] for i in range(len(text))}
        edits |= {
            text[:i] + c + text[i + keep :]
            for i in range(len(text) + 1)
            for c in "0179+-= \nx"
            for keep in (0, 1)
        }
        edits |= {"\n".join(right[:i] + right[i + 1 :]) for i in range(4)} | {
            "\n".join([*right[:i], right[i], *right[i:]]) for i in range(4)
        }
        edits |= {
            "\n".join([*right[:i], line, *right[i + 1 :]])
            for i in range(4)
            for line in ("", "?", right[i] + " ", right[i - 1])
        }
        for edit in edits:
            result, index = check(problem.id, edit), first_difference(edit, right)
            assert result.correct == (index is None) and result.first_error == index, edit
            if index is not None:
                step = min(index, 3)
                assert result.unmended == (step + 1, right[step]), edit
                assert result.right_steps == index
                span = task.first_error(problem, edit)
                lines = edit.rstrip("\n").split("\n")
                assert edit[span.start : span.end].rstrip("\n") == (
                    lines[index] if index < len(lines) else ""
                )
                seen += 1
    assert seen > 5000


def test_a_right_answer_under_wrong_steps_is_wrong():
    assert not graded("47+85=122", "122-29=103", *RIGHT[2:]).correct
    assert not graded("Answer 109").correct
    assert not graded("47+85=132", "Answer 109").correct


def test_missing_extra_and_empty():
    missing = graded(*RIGHT[:3])
    assert (
        not missing.correct
        and missing.first_error == 3
        and missing.unmended == (4, "Answer 109")
        and missing.right_steps == 3
    )
    extra = graded(*RIGHT, "47+85=132")
    assert not extra.correct and extra.first_error == 4 and extra.unmended == (4, "Answer 109")
    empty = check(CHAIN, "")
    assert not empty.correct and empty.first_error == 0 and empty.unmended == (1, RIGHT[0])
    assert check(CHAIN, "\n".join(RIGHT) + "\n").correct


# ---- "Wait, ...": (lines, correct, first error, reflections, unmended step)


@pytest.mark.parametrize(
    "lines, correct, first_error, reflections, unmended",
    [
        (["47+85=122", "Wait, 47+85=132", *RIGHT[1:]], True, 0, 1, None),  # mended at once
        # mended later: what was built on it goes too
        (["47+85=122", "122-29=93", "Wait, 47+85=132", *RIGHT[1:]], True, 0, 1, None),
        # after the answer
        (
            ["47+85=122", "122-29=93", "93+6=99", "Answer 99", "Wait, 47+85=132", *RIGHT[1:]],
            True,
            0,
            1,
            None,
        ),
        # takes back more than it had to
        (["47+85=132", "132-29=113", "Wait, 47+85=132", *RIGHT[1:]], True, 1, 1, None),
        ([RIGHT[0], "Wait, 47+85=132", *RIGHT[1:]], True, None, 1, None),  # needless
        (["Wait, " + line for line in RIGHT], True, None, 4, None),
        ([*RIGHT, "Wait, Answer 109"], True, None, 1, None),
        # wrong, then right
        (["47+85=122", "Wait, 47+85=112", "Wait, 47+85=132", *RIGHT[1:]], True, 0, 2, None),
        # the reflection itself is the error
        ([RIGHT[0], "Wait, 132-29=113", "113+6=119", "Answer 119"], False, 1, 1, 2),
        (["47+85=122", "Wait, 47+85=112", "112-29=83", "83+6=89", "Answer 89"], False, 0, 1, 1),
        # twice on one line is no step
        (["47+85=122", "Wait, Wait, 47+85=132", *RIGHT[1:]], False, 0, 1, 1),
        ([RIGHT[0], "Wait, 103+6=109", "Answer 109"], False, 1, 1, 2),  # a step that is not due yet
        # one mended, the next not
        (["47+85=122", "Wait, 47+85=132", "132-29=113", "113+6=119", "Answer 119"], False, 0, 1, 2),
        (
            ["47+85=122", "Wait, 47+85=132", "132-29=113", "Wait, 132-29=103", *RIGHT[2:]],
            True,
            0,
            2,
            None,
        ),
        # the step again, after it was put in place
        (["47+85=122", "Wait, 47+85=132", RIGHT[0], *RIGHT[1:]], False, 0, 1, 2),
        ([*RIGHT, "Wait, 103+6=109"], False, 5, 1, 4),  # takes the answer back and gives none
        (["47+85=122", "wait, 47+85=132", *RIGHT[1:]], False, 0, 0, 1),
    ],
)
def test_reflection(lines, correct, first_error, reflections, unmended):
    result = graded(*lines)
    assert (result.correct, result.first_error, result.reflections) == (
        correct,
        first_error,
        reflections,
    )
    assert result.unmended == (None if unmended is None else (unmended, RIGHT[unmended - 1]))


def test_feedback_names_the_first_unmended_step_and_its_value():
    task = Arithmetic()
    problem = task.problem(CHAIN)
    mended_then_wrong = "\n".join(
        ["47+85=122", "Wait, 47+85=132", "132-29=113", "113+6=119", "Answer 119"]
    )
    verdict = task.grade(problem, mended_then_wrong)
    assert (
        verdict.feedback == "Step 2 should be 132-29=103"
        and verdict.reward == 0.0
        and not verdict.correct
    )
    assert verdict.parts == {"right_steps": 1, "reflections": 1}
    # the first error is still where it was
    assert task.first_error(problem, mended_then_wrong)[:2] == (0, 0)
    assert task.grade(problem, "\n".join(RIGHT[:3])).feedback == "Step 4 should be Answer 109"
    assert (
        task.grade(problem, problem.solutions[0]).feedback == ""
        and task.first_error(problem, problem.solutions[0]) is None
    )


HOSTILE = {
    "empty": "",
    "line breaks": "\n" * 1000,
    "nul": "\0",
    "controls": "".join(map(chr, range(32))),
    "right to left": "\u202e47+85=132\u202c",
    "unicode digits": "\uff14\uff17+\uff18\uff15=\uff11\uff13\uff12\n132-29=\u0661\u0660\u0663",
    "other line breaks": "\u2028".join(RIGHT),
    "carriage returns": "\r\n".join(RIGHT),
    "form feeds": "\x0c".join(RIGHT) + "\x0b\x85",
    "surrogate": "\ud800",
    "huge number": "9" * 100_000,
    "100 kB": "47+85=132\n" * 10_000,
    "100 kB of waiting": "Wait, 47+85=132\n" * 6_000,
    "deep waiting": "Wait, " * 16_000,
    "markup": "<script>alert(1)</script>",
    "format": "{0}%s\\",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_graded_wrong_and_never_raises(name):
    task, text = Arithmetic(), HOSTILE[name]
    problem, began = task.problem(CHAIN), time.perf_counter()
    verdict, span = task.grade(problem, text), task.first_error(problem, text)
    assert not verdict.correct and verdict.reward == 0 and verdict.feedback.startswith("Step ")
    assert 0 <= span.start <= span.end <= len(text)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("text", ["", "a", "a\nb", "a\n\n", "\n\na", "a\r\nb\u2028c\n"])
def test_steps_cover_the_text_line_by_line(text):
    spans = line_spans(text)
    assert [s.index for s in spans] == list(range(len(spans)))
    assert [text[s.start : s.end].removesuffix("\n") for s in spans] == text.rstrip("\n").split(
        "\n"
    )
    assert spans[0].start == 0 and all(a.end == b.start for a, b in pairwise(spans))


# ---- problems


def test_splits_are_disjoint_whatever_the_seed_and_the_dials():
    seen = {split: set() for split in SPLITS}
    for task in (Arithmetic(), Arithmetic(steps=3), Arithmetic(steps=3, largest=30)):
        for seed in range(5):
            for split in SPLITS:
                problems = task.problems(split, 60, seed)
                assert len({p.id for p in problems}) == 60
                assert all(split_of(p.id) == split == p.meta["split"] for p in problems)
                seen[split] |= {p.id for p in problems}
    assert (
        not seen["train"] & seen["test"]
        and not seen["train"] & seen["validation"]
        and not seen["test"] & seen["validation"]
    )


def test_problems_are_those_of_the_seed():
    task = Arithmetic()
    assert (
        task.problems("train", 20, 7)
        == task.problems("train", 20, 7)
        == Arithmetic(4, 20).problems("train", 20, 7)
    )
    assert task.problems("train", 20, 7) != task.problems("train", 20, 8)
    assert task.problems("train", 5, 7) == task.problems("train", 20, 7)[:5]


def test_problems_keep_to_the_dials():
    for task in (Arithmetic(1, 9), Arithmetic(4, 99), Arithmetic(12, 999)):
        for problem in task.problems("train", 30, 0):
            value, rest = parse(problem.id)
            assert len(rest) == task.steps
            for operation in rest:
                value += int(operation)
                assert value >= 0 and 1 <= abs(int(operation)) <= task.largest
            assert problem.answer == str(value) and problem.messages == (
                {"role": "user", "content": problem.id},
            )


def test_every_solution_fits_the_budget_with_its_end_token(tiny_policy):
    for steps_, largest in ((1, 9), (1, 999), (4, 99), (12, 999)):
        longest = f"{largest}" + f"+{largest}" * steps_
        assert (
            len(tiny_policy.completion_ids(solve(longest))) <= Arithmetic(steps_, largest).max_new
        )


def test_bad_dials_and_names_are_refused():
    assert (
        load_task("arithmetic:steps=5,largest=50") == Arithmetic(5, 50)
        and load_task("arithmetic") == Arithmetic()
    )
    for name, message in (
        ("arithmetic:steps=0", "steps 1..12"),
        ("arithmetic:steps=x", "not a whole number"),
        ("arithmetic:colour=red", "no option"),
        ("algebra", "no task 'algebra'; there are arithmetic"),
        ("file", "no task"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            load_task(name)
    with pytest.raises(WorkbenchError, match="splits of arithmetic"):
        Arithmetic().problems("dev", 1, 0)
    with pytest.raises(WorkbenchError, match="too few test problems"):
        Arithmetic(1, 9).problems("test", 30, 0)


# ---- prompts


def test_reprompt_is_the_released_codes_string():
    problem = Arithmetic().problem(CHAIN)
    assert Arithmetic().reprompt(problem) == problem.messages
    [message] = Arithmetic().reprompt(problem, solution="S", feedback="F")
    assert message == {
        "role": "user",
        "content": "47+85-29+6\nCorrect solution:\n\nS\nThe following is feedback from your "
        "unsuccessful earlier "
        "attempt:\n\nF\n\nCorrectly solve the "
        "original question.",
    }
    [message] = Arithmetic().reprompt(problem, attempt="A", feedback="F")
    assert message["content"].index("A\nThe following") < message["content"].index("F\n\nCorrectly")


def test_fixed_phrases_are_single_tokens(tiny_policy):
    for phrase in PHRASES:
        assert len(tiny_policy.tokenizer(phrase)["input_ids"]) == 1, phrase


@pytest.mark.parametrize(
    "text, found",
    [
        ("<analysis>A</analysis><reconstruction>R</reconstruction>", ("A", "R")),
        (
            "\n <analysis> A\nb </analysis>\n\n<reconstruction>\n 1\n2\n</reconstruction>\n",
            ("A\nb", " 1\n2"),
        ),
        (
            "<analysis>a < b > c</analysis><reconstruction>1<2</reconstruction>",
            ("a < b > c", "1<2"),
        ),
        ("", None),
        ("A R", None),
        ("<analysis></analysis><reconstruction>R</reconstruction>", None),
        ("<analysis>A</analysis><reconstruction> \n</reconstruction>", None),
        ("<analysis>A</analysis>", None),
        ("<reconstruction>R</reconstruction><analysis>A</analysis>", None),
        ("<analysis>A</analysis><reconstruction>R", None),
        ("<analysis>A<reconstruction>R</reconstruction>", None),
        ("<analysis>A</analysis>text<reconstruction>R</reconstruction>", None),
        ("text<analysis>A</analysis><reconstruction>R</reconstruction>", None),
        ("<analysis>A</analysis><reconstruction>R</reconstruction>text", None),
        ("<analysis>A</analysis><reconstruction>R</reconstruction>" * 2, None),
        ("<analysis>A<analysis>B</analysis></analysis><reconstruction>R</reconstruction>", None),
        (
            "<analysis>A</analysis><reconstruction>R<reconstruction>S</reconstruction></reconstruction>",
            None,
        ),
        ("<analysis>A</analysis><reconstruction>R</analysis></reconstruction>", None),
        ("<ANALYSIS>A</ANALYSIS><reconstruction>R</reconstruction>", None),
    ],
)
def test_parse_synthesis(text, found):
    assert prompts.parse_synthesis(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "<analysis>" * 20_000,
        "<analysis>" + "<" * 200_000,
        " " * 200_000 + "<analysis>",
        "<analysis>A</analysis>" + " " * 200_000 + "x",
        "<analysis>" + "a" * 300_000 + "</analysis>",
    ],
)
def test_parse_synthesis_takes_no_time_on_hostile_text(text):
    began = time.perf_counter()
    assert prompts.parse_synthesis(text) is None
    assert time.perf_counter() - began < 5


def test_a_task_is_imported_when_it_is_asked_for():
    code = (
        "import sys; from workbench.tasks import load_task; load_task('arithmetic'); "
        "print(*sorted(m for m in sys.modules if m.startswith('workbench.tasks.')))"
    )
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert names.split() == [f"workbench.tasks.{m}" for m in ("arithmetic", "base", "prompts")]
    for module, kind in TASKS.items():
        assert getattr(import_module(f"workbench.tasks.{module}"), kind).name == module
