"""Rows in memory and rewards of one's own: what is taken, in which split it is, how it is graded,
and what is refused in one sentence.
"""

import json
import math
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.core import Task, Verdict, WorkbenchError
from workbench.tasks import load_task

ROWS = [{"question": f"{i} + 1 =", "answer": i + 1, "unit": "apples"} for i in range(80)]


def length(text):
    return -len(text)


def all_problems(task):
    return {p.id: p for split in ("train", "validation", "test") for p in _all(task, split)}


def _all(task, split):
    return [p for p in task._problems if p.meta["split"] == split]


def as_datasets(rows):
    return pytest.importorskip("datasets").Dataset.from_list(rows)


@pytest.mark.parametrize("form", [list, tuple, iter, as_datasets, pd.DataFrame])
@pytest.mark.parametrize("reward", [None, lambda text, answer: text == str(answer)])
def test_every_form_of_the_same_rows_is_the_same_task(form, reward):
    task, plain = load_task(form(ROWS), reward=reward), load_task(ROWS, reward=reward)
    assert isinstance(task, Task) and len(all_problems(task)) == 80
    assert task.problems("train", 20, 3) == plain.problems("train", 20, 3)
    assert task.problems("train", 1, 0)[0].answer.isdecimal()


def test_rows_without_a_reward_are_graded_as_a_file_of_them(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    in_memory, in_file = load_task(ROWS), load_task(f"math:{file}")
    problem = in_memory.problems("validation", 1, 0)[0]
    (twin,) = in_file.problems("validation", 1, 0)
    assert (problem.messages, problem.answer) == (twin.messages, twin.answer)
    assert in_memory.grade(problem, f"So \\boxed{{{problem.answer}}}").correct
    assert not in_memory.grade(problem, "\\boxed{-1}").correct
    plain = load_task(ROWS, plain=True, max_new=7)
    assert plain.max_new == 7 and plain.problems("train", 1, 0)[0].messages[0]["content"][-1] == "="


def test_splits_of_the_set_are_kept():
    sets = {"train": as_datasets(ROWS[:60]), "test": as_datasets(ROWS[60:])}
    for reward in (None, length):
        task = load_task(sets, reward=reward)
        assert len(_all(task, "test")) == 20
        assert len(_all(task, "train")) + len(_all(task, "validation")) == 60
        assert 0 < len(_all(task, "validation")) < 20
        rows = [{**row, "split": "test"} for row in ROWS]
        assert len(_all(load_task(rows, reward=reward), "test")) == 80
        assert len(_all(load_task(ROWS, reward=reward, split="all"), "all")) == 80


class Scorer:
    def __call__(self, completion, row):
        return completion == f"{row['answer']} {row['unit']}"


@pytest.mark.parametrize(
    "reward",
    [
        lambda text, answer, unit: text == f"{answer} {unit}",
        lambda answer, unit, text: text == f"{answer} {unit}",
        lambda what, row: what == f"{row['answer']} {row['unit']}",
        lambda completion, **columns: completion == f"{columns['answer']} {columns['unit']}",
        lambda words, unit, answer=None, limit=3: words == f"{answer} {unit}" and limit == 3,
        partial(lambda k, text, answer, unit: text == f"{answer} {unit}" and k == 1, 1),
        Scorer(),
    ],
)
def test_the_function_gets_what_it_asks_for_by_name(reward):
    task = load_task(ROWS, reward=reward)
    problem = task.problems("train", 5, 0)[4]
    assert task.grade(problem, f"{problem.answer} apples") == Verdict(1.0, True)
    wrong = task.grade(problem, f"{problem.answer} pears")
    assert (wrong.reward, wrong.correct) == (0.0, False) and wrong.feedback


@pytest.mark.parametrize(
    "value, reward, correct",
    [
        (True, 1.0, True),
        (False, 0.0, False),
        (0.5, 0.5, False),
        (-3, -3.0, False),
        (2, 2.0, True),
        (np.float32(0.25), 0.25, False),
        (np.bool_(True), 1.0, True),
        (np.array(1), 1.0, True),
        (torch.tensor(1.0), 1.0, True),
    ],
)
def test_numbers_of_every_kind_are_rewards(value, reward, correct):
    task = load_task(ROWS, reward=lambda text: value)
    verdict = task.grade(task.problems("train", 1, 0)[0], "x")
    assert (verdict.reward, verdict.correct) == (reward, correct)
    assert type(verdict.reward) is float and type(verdict.correct) is bool


def test_a_verdict_is_taken_as_it_is():
    mine = Verdict(0.3, False, "Look at the carry.")
    task = load_task(ROWS, reward=lambda text: mine)
    assert task.grade(task.problems("train", 1, 0)[0], "x") is mine


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, None, "1", [1.0], (1,), {}, 1j, np.array([1.0]), torch.zeros(1), object],
)
def test_what_is_no_finite_number_is_refused(value):
    task = load_task(ROWS, reward=lambda text: value)
    with pytest.raises(WorkbenchError, match=r"gave .* for row \d+ .*one finite number") as caught:
        task.grade(task.problems("train", 1, 0)[0], "x\ny")
    assert "\n" not in str(caught.value)


def test_a_function_that_fails_is_named_with_its_row():
    task = load_task(ROWS, reward=lambda text: 1 / 0)
    with pytest.raises(WorkbenchError, match=r"failed on row \d+: ZeroDivisionError") as caught:
        task.grade(task.problems("train", 1, 0)[0], "x")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("reward", [None, length])
@pytest.mark.parametrize(
    "rows, words",
    [
        ([], "no rows"),
        (iter(()), "no rows"),
        ({}, "no rows"),
        (3, "not int"),
        (None, "not NoneType"),
        ([3], "row 1 is 3"),
        (["abc"], "row 1 is 'abc'"),
        ([*ROWS, None], "row 81 is None"),
        ({"question": ["a"], "answer": ["b"]}, "question row 1 is 'a'"),
        ([{"answer": 1}], "row 1 has no question"),
        ([*ROWS, {"answer": 1}], "row 81 has no question"),
        ([{"question": " ", "answer": 1}], "row 1 has a question that is neither"),
        ([{"question": 7, "answer": 1}], "row 1 has a question that is neither"),
        ([{}], "row 1 "),
        ([{"question": "a\0", "answer": 1}], "NUL"),
        ([{"question": "\ud800", "answer": 1}], "surrogate"),
        ([{**ROWS[0], "split": "dev"}], "has the split 'dev'"),
    ],
)
def test_bad_rows_are_refused_at_once(rows, reward, words):
    with pytest.raises(WorkbenchError, match=words) as caught:
        load_task(rows if not hasattr(rows, "__next__") else iter(()), reward=reward)
    assert "\n" not in str(caught.value)


def test_an_answer_is_needed_only_where_it_grades():
    rows = [{"question": f"{i}?"} for i in range(40)]
    with pytest.raises(WorkbenchError, match="row 1 has no answer"):
        load_task(rows)
    with pytest.raises(WorkbenchError, match="neither text nor a number"):
        load_task(pd.DataFrame([*ROWS, *rows]))  # NaN, where pandas has no answer
    assert load_task(rows, reward=length).problems("train", 9, 0)[0].answer == ""


@pytest.mark.parametrize(
    "reward, words",
    [
        (3, "reward is a function, not 3"),
        ("len", "reward is a function"),
        (lambda text, answr: 1, "asks for 'answr', and row 1 has no such column"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_before_anything_is_loaded(reward, words):
    with pytest.raises(WorkbenchError, match=words):
        load_task(ROWS, reward=reward)


def test_a_column_that_one_row_lacks_is_found_before_training():
    rows = [*ROWS, {"question": "?", "unit": "pears"}]
    with pytest.raises(WorkbenchError, match="asks for 'answer', and row 81 has no such column"):
        load_task(rows, reward=lambda text, answer: 1)


def test_copies_are_one_problem_and_said():
    for reward in (None, length):
        with pytest.warns(UserWarning, match="80 of the 160"):
            task = load_task(ROWS + ROWS, reward=reward)
        assert len(task._problems) == 80
    with pytest.raises(WorkbenchError, match="another answer"):
        load_task([*ROWS, {**ROWS[0], "answer": 99}])
    other = [*ROWS, {**ROWS[0], "unit": "pears"}]  # for a function this is another row
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_task(other, reward=length)._problems) == 81


def test_solutions_go_along_for_the_methods_that_imitate():
    rows = [{"question": "1 + 1 =", "answer": 2, "solution": "1 + 1 is 2."}]
    for reward in (None, length):
        assert load_task(rows, reward=reward)._problems[0].solutions == ("1 + 1 is 2.",)


def test_a_file_with_a_reward(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name in (file, str(file)):
        task = load_task(name, reward=lambda text, unit: unit in text, max_new=9)
        problem = task.problems("train", 1, 0)[0]
        assert problem.messages[0]["content"].endswith("+ 1 =") and task.max_new == 9
        assert task.grade(problem, "two apples").correct
    with pytest.raises(WorkbenchError, match="could not read"):
        load_task(str(tmp_path / "none.jsonl"), reward=length)


def test_prompts_of_several_messages_and_columns_of_other_names():
    chat = [{"role": "system", "content": "Short."}, {"role": "user", "content": "Hi"}]
    (problem,) = load_task([{"prompt": chat}], reward=length)._problems
    assert [dict(m) for m in problem.messages] == chat
    array = pd.DataFrame([{"prompt": np.array(chat, object)}])  # as parquet files come
    assert load_task(array, reward=length)._problems[0].messages == problem.messages
    (problem,) = load_task([{"ask": "Hi", "gold": 3}], question="ask", answer="gold")._problems
    assert problem.answer == "3"


def test_dials_are_checked():
    with pytest.raises(WorkbenchError, match="no dial steps"):
        load_task(ROWS, steps=3)
    with pytest.raises(WorkbenchError, match="write dials into the name: arithmetic:steps="):
        load_task("arithmetic", steps=3)
    with pytest.raises(WorkbenchError, match="max_new from 1"):
        load_task(ROWS, max_new=0)
