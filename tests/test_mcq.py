"""Multiple choice: the letter is read as the authors' grader reads it, both forms of records give
the same problem.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from workbench.core import Task, WorkbenchError
from workbench.tasks import load_task
from workbench.tasks.mcq import SYSTEM, Mcq, letter

REAL = Path(__file__).parents[2] / "shared" / "data" / "sciknoweval_chemistry_40.jsonl"
PREPARED = {
    "prompt": "Which?\n\nA: one\nB: two\nPlease reason step by step.",
    "system": SYSTEM,
    "answer": "B",
    "kind": "mcq",
    "tests": "-",
}
PUBLISHED = {
    "question": "Which?",
    "choices": {"text": ["one", "two"], "label": ["A", "B"]},
    "answerKey": "B",
    "type": "mcq-2-choices",
    "domain": "Chemistry",
    "details": {"level": "L3", "task": "t"},
    "answer": "",
    "prompt": {"default": "x"},
}


def written(folder: Path, *records) -> str:
    # JSON lines under the name .json, as the prepared files are
    (folder / "p.json").write_text("\n".join(map(json.dumps, records)))
    return str(folder / "p.json")


@pytest.mark.parametrize(
    "text, found",
    [
        ("<reasoning>\nA\n</reasoning>\n<answer>\nB\n</answer>", "B"),
        ("<answer>A</answer> no <answer>C</answer>", "C"),
        ("<answer>D", "D"),
        ("B", "B"),
        ("<answer>(B)</answer>", "B"),
        ("<answer>**B**.</answer>", "B"),
        ("<answer>B: two</answer>", ""),
        ("<answer>A or B</answer>", ""),
        ("<answer>b</answer>", ""),
        ("I think B", ""),
        ("", ""),
        ("<answer></answer>", ""),
        ("<answer>" * 50_000, ""),
        ("<answer>\x00", ""),
        ("A" * 1_000_000, ""),
        ("<answer>\ud800", ""),
    ],
)
def test_the_letter(text, found):
    assert letter(text) == found


def test_prepared_and_published_records_are_the_same_problem(tmp_path, monkeypatch):
    task = load_task(f"mcq:{written(tmp_path, PREPARED)},max_new=9")
    assert isinstance(task, Task) and task.max_new == 9
    others = [
        {**PUBLISHED, "domain": "Physics", "question": "Other?"},
        {**PUBLISHED, "details": {"level": "L2"}},
        {**PUBLISHED, "type": "open-ended-qa"},
    ]
    asked = []
    fake = types.SimpleNamespace(
        load_dataset=lambda *given: asked.append(given) or {"test": [PUBLISHED, *others]}
    )
    monkeypatch.setitem(sys.modules, "datasets", fake)
    hub = load_task("mcq:sciknoweval,domain=Chemistry")
    assert asked == [("hicai-zju/SciKnowEval", None)]
    [one], [two] = task._problems, hub._problems
    assert (one.messages, one.answer, one.meta) == (
        two.messages,
        two.answer,
        two.meta,
    ) and one.messages[0] == {"role": "system", "content": SYSTEM}
    assert len(Mcq("sciknoweval")._problems) == 2
    with pytest.raises(
        WorkbenchError, match="no multiple-choice questions of level L3 and domain Music"
    ):
        load_task("mcq:sciknoweval,domain=Music")
    split = one.meta["split"]
    assert (
        task.problems(split, 1, 0) == [one]
        and Mcq(written(tmp_path, PREPARED), split="test").problems("test", 1, 0)[0].answer == "B"
    )


def test_grading(tmp_path):
    task = load_task(f"mcq:{written(tmp_path, PREPARED)}")
    [problem] = task._problems
    assert task.grade(problem, "<answer>\nB\n</answer>").correct
    assert task.grade(problem, "<answer>A</answer>").feedback == "Your answer A is not right."
    assert task.grade(problem, "well").feedback == "There is no letter in <answer>...</answer>."
    assert (
        task.first_error(problem, "x") is None
        and "so B" in task.reprompt(problem, solution="so B")[-1]["content"]
    )


@pytest.mark.parametrize(
    "record, message",
    [
        (
            {"prompt": "?", "answer": "AB"},
            "line 2 needs a prompt .* one letter; its columns are prompt, answer",
        ),
        ({"answer": "A"}, "line 2 needs a prompt"),
        ({"prompt": "?", "answer": 1}, "line 2 needs a prompt"),
        ([], "line 2 needs a prompt .* none"),
        ({**PUBLISHED, "choices": "A"}, "line 2 needs a question, choices"),
        (
            {**PUBLISHED, "choices": {"text": ["x"], "label": []}},
            "line 2 needs a question, choices",
        ),
    ],
)
def test_a_bad_record_is_named(tmp_path, record, message):
    with pytest.raises(WorkbenchError, match=message):
        load_task(f"mcq:{written(tmp_path, PREPARED, record)}")


def test_bad_dials(tmp_path):
    for name, message in (
        ("mcq", "needs sciknoweval, a file or a hub id"),
        ("mcq:x.jsonl,split=hash", "takes split=train"),
        ("mcq:x.jsonl,max_new=0", "max_new from 1"),
        ("mcq:x.jsonl", "could not read"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            load_task(name)


@pytest.mark.skipif(
    not REAL.exists(), reason=f"the real records are not at {REAL.name} beside this checkout"
)
def test_real_records():
    task = load_task(f"mcq:{REAL},split=test")
    problems = task.problems("test", 40, 0)
    assert {p.messages[0]["content"] for p in problems} == {SYSTEM}  # ours is theirs to the letter
    assert {p.answer for p in problems} == set("ABCD")
    for p in problems:
        assert [
            task.grade(p, f"<reasoning>\n...\n</reasoning>\n<answer>\n{letter}\n</answer>").correct
            for letter in "ABCD"
        ] == [p.answer == x for x in "ABCD"]
