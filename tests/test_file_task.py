"""Problem files: what is refused, and whether answers are graded as a person would; also on real
GSM8K rows where they are at hand.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workbench.core import Problem, WorkbenchError
from workbench.tasks import load_task
from workbench.tasks.math import Math
from workbench.tasks.verify import compare, final_answer

SHARED = Path(__file__).parents[2] / "shared" / "data"


def written(folder: Path, *lines) -> Path:
    path = folder / "problems.jsonl"
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines),
        encoding="utf-8",
    )
    return path


GOOD = {"question": "1+1?", "answer": 2}


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2 is not JSON"),
        ('"text"', 'line 2 needs a "question"'),
        ("[]", 'line 2 needs a "question"'),
        ({"answer": 1}, 'line 2 needs a "question"'),
        ({"question": " ", "answer": 1}, 'line 2 needs a "question"'),
        ({"question": 7, "answer": 1}, 'line 2 needs a "question"'),
        ({"question": "?"}, 'line 2 needs an "answer"'),
        ({"question": "?", "answer": ""}, 'line 2 needs an "answer"'),
        ({"question": "?", "answer": None}, 'line 2 needs an "answer"'),
        ({"question": "?", "answer": "so it is ####"}, "line 2 has no answer"),
        ({**GOOD, "split": "dev"}, "line 2 has the split 'dev'"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('{"answer": ' + "1" * 5000 + "}", "line 2 is not JSON"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    with pytest.raises(WorkbenchError, match=message) as caught:
        load_task(str(written(tmp_path, GOOD, line)))
    assert "problems.jsonl" in str(caught.value) and "\n" not in str(caught.value)


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(WorkbenchError, match="is empty"):
        load_task(str(written(tmp_path, "", "  ")))
    with pytest.raises(WorkbenchError, match=r"could not read .*none\.jsonl"):
        load_task(str(tmp_path / "none.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(WorkbenchError, match="could not read"):
        load_task(str(tmp_path / "folder.jsonl"))
    (tmp_path / "bytes.jsonl").write_bytes(b'{"question": "\xff", "answer": 1}\n')
    with pytest.raises(WorkbenchError, match="could not read"):
        load_task(str(tmp_path / "bytes.jsonl"))


def test_rows_are_read_as_written(tmp_path):
    path = written(
        tmp_path,
        {**GOOD, "split": "test"},
        "",
        {"question": "a\u2028b", "answer": "x", "solution": "because\nx", "split": "test"},
        {"question": "c", "answer": "2+3=<<2+3=5>>5\n#### 5", "split": "train"},
    )
    # a byte-order mark, and a raw U+2028 in a string
    path.write_bytes(b"\xef\xbb\xbf" + path.read_text().replace("\\u2028", "\u2028").encode())
    task = load_task(str(path))
    one, two, three = task._problems
    assert [p.id for p in task._problems] == ["problems:1", "problems:3", "problems:4"]
    assert (
        one.answer == "2"
        and one.solutions == ()
        and two.messages[0]["content"] == "a\u2028b"
        and two.solutions == ("because\nx",)
    )
    assert three.answer == "5" and three.solutions == ("2+3=<<2+3=5>>5\n#### 5",)
    assert {p.id for p in task.problems("test", 2, 0)} == {"problems:1", "problems:3"}
    with pytest.raises(WorkbenchError, match="2 problems in its test split, 3 wanted"):
        task.problems("test", 3, 0)


def test_splits_without_names_are_a_partition(tmp_path):
    task = load_task(
        str(written(tmp_path, *({"question": f"q{i}", "answer": i} for i in range(400))))
    )
    sizes = {
        split: sum(p.meta["split"] == split for p in task._problems)
        for split in ("train", "validation", "test")
    }
    assert sum(sizes.values()) == 400 and all(
        20 < sizes[name] < 60 for name in ("validation", "test")
    )
    assert (
        task.problems("train", 50, 1)
        == task.problems("train", 50, 1)
        != task.problems("train", 50, 2)
    )
    assert len({p.id for p in task.problems("train", 50, 1)}) == 50


@pytest.mark.parametrize(
    "text, answer",
    [
        ("#### 18", "18"),
        ("a\n#### 18\n", "18"),
        ("#### 1\n#### 2", "2"),
        (r"so \boxed{7} it is 9", "7"),
        (r"\boxed{1} no \boxed{2}", "2"),
        (r"\boxed{3}" + "\n#### 4", "3"),
        ("Answer 109", "109"),
        ("answer: 5", "5"),
        ("The answer is 1,200.", "1,200."),
        ("Final Answer: $5", "$5"),
        ("Answer: blue whale", "blue whale"),
        ("She makes 9 * 2 = $18 a day", "18"),
        ("x is -3", "-3"),
        ("half: 1/2", "1/2"),
        ("A: 26", "26"),
        ("To answer this, we add 3 and 4: 7", "7"),
        ("She answers 5 calls, so 12", "12"),
        ("no number here", ""),
        ("", ""),
        ("####", ""),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    "left, right, same",
    [
        ("18", "18.0", True),
        ("$1,200.50", "1200.5", True),
        ("1,234,567", "1234567", True),
        ("3/4", "0.75", True),
        (".5", "0.5", True),
        ("+7", "7", True),
        ("5.", "5", True),
        ("50%", "50", True),
        ("-$5", "-5", True),
        ("0.1", "1/10", True),
        ("Blue  Whale.", "blue whale", True),
        ("007", "7", True),
        ("18", "19", False),
        (".5", "5", False),
        ("5,12", "512", False),
        ("1/0", "0", False),
        ("-3", "3", False),
        ("1e3", "1001", False),
        ("3 4", "34", False),
        ("", "0", False),
        ("blue", "red", False),
        ("nan", "0", False),
    ],
)
def test_answers_compare_as_numbers_where_they_are_numbers(left, right, same):
    assert compare(left, right).same is same


@pytest.mark.parametrize(
    "answer",
    [
        "1e999999999",
        "9" * 100_000,
        "9" * 5000 + "/7",
        "1/" + "0" * 9,
        "1_000",
        "٣",
        "inf",
        "-",
        "." * 1000,
    ],
)
def test_hostile_answers_are_graded_and_never_raise(answer, tmp_path):
    task = load_task(str(written(tmp_path, GOOD)))
    verdict = task.grade(task._problems[0], f"#### {answer}")
    assert not verdict.correct and verdict.reward == 0 and verdict.feedback


def test_feedback_says_what_was_read(tmp_path):
    task = load_task(str(written(tmp_path, GOOD)))
    assert task.grade(task._problems[0], "#### 3").feedback == "Your final answer 3 is not right."
    assert task.grade(task._problems[0], "I do not know").feedback == "There is no final answer."
    right = task.grade(task._problems[0], "#### 2.0")
    assert right.correct and right.reward == 1.0 and right.feedback == ""


needs_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real GSM8K rows (../shared/data) are not here"
)


@needs_data
def test_gsm8k_solutions_are_graded_right_and_other_answers_wrong():
    task = load_task(str(SHARED / "gsm8k_test_200.jsonl"))
    assert len(task._problems) == 200
    for problem in task._problems:
        assert task.grade(problem, problem.solutions[0]).correct, problem
        assert not task.grade(problem, problem.solutions[0] + "1").correct


@needs_data
def test_gsm8k_human_labels_agree(tmp_path):
    rows = [
        json.loads(line)
        for line in (SHARED / "gsm8k_graded_solutions_150.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    ]
    task, differ, n = load_task(str(written(tmp_path, GOOD))), [], 0
    for row in rows:
        problem = Problem(
            "gsm8k",
            ({"role": "user", "content": row["question"]},),
            final_answer(row["ground_truth"]),
        )
        for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            n += 1
            if task.grade(problem, row[model]["solution"]).correct != row[model]["is_correct"]:
                differ.append(
                    (model, problem.answer, row[model]["is_correct"], row[model]["solution"][-60:])
                )
    assert n == 600 and not differ, differ


def test_half_of_a_surrogate_pair_is_refused_with_its_line(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "1+1", "answer": 2}\n{"question": "\\ud800", "answer": 2}\n')
    with pytest.raises(WorkbenchError, match="line 2 holds half of a surrogate pair"):
        load_task(str(path))


def test_a_file_alone_is_a_spelling_of_plain_mathematics(tmp_path):
    path = str(
        written(tmp_path, GOOD, GOOD, {"question": "2+2?", "answer": "four", "split": "test"})
    )
    assert load_task(path) == Math(path, plain=True, max_new=512)
    assert load_task(f"{path}:max_new=64") == load_task(f"math:{path},plain=true,max_new=64")
    # as recorded runs had it: the question is the whole prompt, and each line is a problem
    one, two, three = load_task(path)._problems
    assert one.messages == two.messages == ({"role": "user", "content": "1+1?"},)
    assert three.answer == "four" and three.meta == {"split": "test"}
    everywhere = load_task(f"math:{path},plain=true,split=all")
    assert len(everywhere.problems("train", 3, 0)) == len(everywhere.problems("test", 3, 0)) == 3
    assert (
        len({p.meta["split"] for p in load_task(f"math:{path},plain=true,split=hash")._problems})
        < 3
    )


@pytest.mark.parametrize(
    "name, message",
    [
        ("{}:max_new=0", "the task math takes max_new from 1"),
        ("{}:max_new=", "the task math: max_new= is not a whole number"),
        ("{}:min_new=4", "the task math has no option 'min_new'"),
        ("{}x", "there is no task"),
        ("math:{},plain=true,question=task", "takes plain=true with a file whose columns are"),
        ("math:gsm8k,plain=true", "takes plain=true with a file"),
    ],
)
def test_dials_of_a_file_that_are_refused(tmp_path, name, message):
    with pytest.raises(WorkbenchError, match=message):
        load_task(name.format(written(tmp_path, GOOD)))
