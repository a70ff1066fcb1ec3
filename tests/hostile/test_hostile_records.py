"""Every record in records.txt is refused in one sentence that names the file and the line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from workbench.core import WorkbenchError
from workbench.tasks import load_task

CASE = {"input": "1\n", "output": "2\n", "testtype": "stdin"}
PUBLISHED = {"type": "mcq-2-choices", "domain": "Chemistry", "details": {"level": "L3"}}
# a good record of each form, and how a task is made of a file of it
GOOD = {
    "plain": ({"question": "1+1?", "answer": 2}, "{}"),
    "math": ({"question": "1+1?", "answer": "2"}, "math:{}"),
    "mcq": ({"prompt": "Which?\n\nA: one\nB: two", "answer": "B"}, "mcq:{}"),
    "choices": (
        {
            "question": "Which?",
            "choices": {"text": ["one", "two"], "label": ["A", "B"]},
            "answerKey": "B",
            **PUBLISHED,
        },
        "mcq:{}",
    ),
    "tools": (
        {"prompt": "Tools ...", "answer": [{"Action": "f", "Action_Input": {"a": 1}}]},
        "tools:{}",
    ),
    "humaneval": (
        {
            "task_id": "first",
            "prompt": "def add_one(x):\n    'Add one.'\n",
            "entry_point": "add_one",
            "test": "def check(candidate):\n    assert candidate(1) == 2",
        },
        "code:{}",
    ),
    "livecodebench": (
        {
            "question_id": "first",
            "question_content": "Add one.",
            "public_test_cases": json.dumps([CASE]),
            "private_test_cases": "[]",
        },
        "code:{}",
    ),
}
IDS = {"humaneval": "task_id", "livecodebench": "question_id"}


class Hostile(NamedTuple):
    form: str
    name: str
    message: str
    change: str

    def line(self) -> str:
        if self.change.startswith("RAW "):
            return self.change[4:]
        record = dict(GOOD[self.form][0])
        if self.form in IDS:
            record[IDS[self.form]] = "second"
        for column, value in json.loads(self.change).items():
            if column.startswith("-"):
                del record[column[1:]]
            else:
                record[column] = value
        return json.dumps(record)


def hostile_records() -> list[Hostile]:
    text = Path(__file__).with_name("records.txt").read_text(encoding="utf-8")
    lines = text.split("\n\n", 3)[3].splitlines()
    return [Hostile(*(part.strip() for part in line.split("|", 3))) for line in lines]


RECORDS = hostile_records()


def loaded(folder: Path, form: str, *lines: str):
    path = folder / "p.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return load_task(GOOD[form][1].format(path))


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"{r.form}: {r.name}")
def test_it_is_refused(record, tmp_path):
    good = json.dumps(GOOD[record.form][0])
    with pytest.raises(WorkbenchError) as caught:
        loaded(tmp_path, record.form, good, record.line())
    sentence = str(caught.value)
    assert record.message in sentence and "p.jsonl, line 2" in sentence
    assert "\n" not in sentence and len(sentence) < 1000 and sentence.encode()


@pytest.mark.parametrize("form", GOOD)
def test_the_good_record_is_taken(form, tmp_path):
    """So that it is the change that is refused."""
    task = loaded(tmp_path, form, json.dumps(GOOD[form][0]))
    [problem] = [p for s in ("train", "validation", "test") for p in drawn(task, s)]
    assert problem.meta["split"] in ("train", "validation", "test")


@pytest.mark.parametrize("form", GOOD)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_that_a_record_names_is_its_split(form, split, tmp_path):
    task = loaded(tmp_path, form, json.dumps({**GOOD[form][0], "split": split}))
    assert [p.meta["split"] for p in drawn(task, split)] == [split]


def drawn(task, split: str) -> list:
    try:
        return task.problems(split, 1, 0)
    except WorkbenchError:
        return []


def test_there_are_enough():
    names = Counter((record.form, record.name) for record in RECORDS)
    assert len(RECORDS) >= 150 and set(names.values()) == {1}
    assert {record.form for record in RECORDS} == set(GOOD)
