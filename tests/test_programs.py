"""The programs task: questions, right programs, grading by running, feedback, the first wrong line;
and the text that its organism is trained on.
"""

from random import Random

import pytest

from data.organism.build.common import tokenizer
from data.organism.build.programs import FIXED, KINDS, attempt, mixture, named, pool, slips
from workbench.core import WorkbenchError
from workbench.tasks import load_task
from workbench.tasks.arithmetic import split_of
from workbench.tasks.programs import (
    FEEDBACK_PHRASES,
    OPERATIONS,
    Programs,
    draw,
    inputs,
    parse,
    right_lines,
    value,
)

QUESTION = "add 3, at most 20, halve, at least 4"
RIGHT = "def f(x):\n    x=x+3\n    x=min(x,20)\n    x=x//2\n    x=max(x,4)\n    return x"
TASK = Programs()


def wrong(old: str, new: str) -> str:
    return RIGHT.replace(old, new)


def test_a_question_says_what_its_program_does():
    assert "\n".join(right_lines(QUESTION)) == RIGHT and TASK.problem(QUESTION).solutions == (
        RIGHT,
    )
    assert [value(QUESTION, x) for x in (0, 10, 100)] == [4, 6, 10]
    rng = Random(0)
    for _ in range(100):  # what is told in words is what the program computes
        question = draw(rng, rng.randint(1, 8))
        scope: dict = {}
        exec("\n".join(right_lines(question)), scope)
        assert [scope["f"](x) for x in range(-20, 60)] == [
            value(question, x) for x in range(-20, 60)
        ]
        assert (
            ", ".join(operation.words.format(n=n) for operation, n in parse(question)) == question
        )
    with pytest.raises(WorkbenchError, match="not an operation"):
        parse("add 3, sing")
    with pytest.raises(WorkbenchError, match="not an operation"):
        parse("halve 3")


def test_right_programs_pass_in_any_form():
    for text in (
        RIGHT,
        "f = lambda x: max(min(x + 3, 20) // 2, 4)",
        RIGHT.replace("\n", "\n\n") + "\n",
    ):
        verdict = TASK.grade(TASK.problem(QUESTION), text)
        assert (
            verdict.correct
            and verdict.reward == 1
            and verdict.feedback == ""
            and verdict.parts["passed"] == 1
        )


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        (wrong("x=x+3", "x=y+3"), "NameError: name 'y' is not defined\nLine 2 in f", 1),
        (wrong("min(x,20)", "min(x)"), "TypeError: 'int' object is not iterable\nLine 3 in f", 2),
        (
            wrong("min(x,20)", "min(x,20"),
            "SyntaxError: '(' was never closed (solution.py, line 3)",
            2,
        ),
        (wrong("x=max(x,4)", "x=max(x,9)"), "Wrong Answer\n\nInput\n", 4),
        ("def f(x):\n    while True: pass", "Time Limit Exceeded", 1),
        ("", "Runtime Error", 0),
        (RIGHT.rsplit("\n", 1)[0], "Wrong Answer", 5),
    ],
)
def test_wrong_programs_are_told_what_went_wrong_and_where_they_first_left_the_way(
    text, words, line
):
    problem = TASK.problem(QUESTION)
    verdict, error = TASK.grade(problem, text), TASK.first_error(problem, text)
    assert (
        not verdict.correct
        and verdict.reward == 0
        and words in verdict.feedback
        and error.index == line
    )


def test_hidden_inputs_decide_but_are_never_told():
    public, hidden = inputs(QUESTION)
    cheat = f"def f(x):\n    return { {x: value(QUESTION, x) for x in public} }[x]"
    verdict = TASK.grade(TASK.problem(QUESTION), cheat)
    assert not verdict.correct and verdict.feedback == "" and verdict.parts["passed"] == 3 / 7
    assert not set(public) & set(hidden) and inputs(QUESTION) == (public, hidden)


def test_problems_are_of_their_split_and_the_same_again():
    for split in ("train", "validation", "test"):
        found = TASK.problems(split, 20, 3)
        assert (
            len({p.id for p in found}) == 20
            and {split_of(p.id) for p in found} == {split}
            and found == TASK.problems(split, 20, 3)
        )
    assert load_task("programs:steps=2") == Programs(2)
    with pytest.raises(WorkbenchError, match=r"steps 1\.\.8"):
        Programs(9)
    with pytest.raises(WorkbenchError, match="the splits of programs"):
        TASK.problems("all", 1, 0)


# ---- what the organism is trained on


def test_each_slip_does_to_a_program_what_it_is_called_after():
    rng = Random(1)
    for operation in OPERATIONS:
        n = rng.randint(*operation.numbers)
        question = operation.words.format(n=n)
        for slip in slips(operation, n, rng):
            lines = right_lines(question)
            lines[1] = "    x=" + slip.code
            verdict = TASK.grade(TASK.problem(question), "\n".join(lines))
            # A number that is one off may change nothing on these inputs.
            assert slip.kind in KINDS and (
                slip.kind in verdict.feedback
                or (slip.kind == "Wrong Answer" and (verdict.correct or not verdict.feedback))
            )


def test_feedback_names_a_kind_and_a_line_and_care_is_taken_there():
    feedback = TASK.grade(TASK.problem(QUESTION), wrong("min(x,20)", "min(x)")).feedback
    assert named(feedback) == {"TypeError", 3}
    rng, question = Random(2), "at most 20, at most 19, at most 18"
    tried = [
        attempt(question, rng, 3.0, frozenset({"TypeError", 2})).split("\n") for _ in range(600)
    ]
    bare = sum("min(x)" in line for lines in tried for line in lines[1:4]) / 1800
    rates = [
        sum(lines[k] != right for lines in tried) / 600
        for k, right in ((1, "    x=min(x,20)"), (2, "    x=min(x,19)"))
    ]
    # at three times the usual rates a careless line slips about half of the time
    assert bare < 0.05 and rates[0] < 0.2 < 0.4 < rates[1]


def test_training_text_never_holds_a_held_out_question_and_its_words_are_single_tokens():
    rng, marked = Random(3), pool(0, 3)
    for _ in range(60):
        messages, reply, given = mixture(rng, marked)
        assert (
            split_of(messages[0]["content"].split("\n")[0]) == "train"
            and given == 0
            and reply.startswith("def f(x):")
        )
    tok = tokenizer(FIXED)
    assert all(len(tok(phrase)["input_ids"]) == 1 for phrase in FEEDBACK_PHRASES)
    text = TASK.grade(TASK.problem(QUESTION), wrong("x=x+3", "x=y+3")).feedback
    assert tok.decode(tok(text)["input_ids"]) == text
