"""Tool calls: right when the multiset of actions and the merged arguments are the answer's, and
never for another reason.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workbench.core import Task, WorkbenchError
from workbench.tasks import load_task
from workbench.tasks.tools import calls, expected

REAL = Path(__file__).parents[2] / "shared" / "data" / "tooluse_30.jsonl"
ANSWER = [
    {"Action": "find", "Action_Input": '{"color": "wild", "page": 1}'},
    {"Action": "find", "Action_Input": {"page": 2}},
    {"Action": "save", "Action_Input": '{"to": {"folder": "a}b"}}'},
]
RECORD = {
    "prompt": "Tools ... Question: ?",
    "system": None,
    "answer": json.dumps(ANSWER),
    "kind": "tooluse",
}


def written(folder: Path, *records) -> str:
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, records)))
    return str(folder / "p.jsonl")


def attempt(answer: list[dict]) -> str:
    return "\n".join(
        f"Thought: hm\nAction: {call['Action']}\nAction Input: "
        + (
            call["Action_Input"]
            if isinstance(call["Action_Input"], str)
            else json.dumps(call["Action_Input"])
        )
        for call in answer
    )


def test_an_attempt_is_read():
    found = calls(attempt(ANSWER))
    assert found == expected(RECORD["answer"])
    # a later page replaces the first
    assert found.actions == {"find": 2, "save": 1} and found.inputs == {
        "color": "wild",
        "page": 2,
        "to": {"folder": "a}b"},
    }
    assert calls('Action: f\nAction Input: {broken}\nAction Input: {"a": 1} {"b": 2}').inputs == {
        "a": 1
    }
    for name in ("get-facts", "api.v2.find", "get_facts", "files/read", "ns:get"):
        for form in (name, f"`{name}`", f"**{name}**", f"{name}.", f"{name}, then", f"{name} - so"):
            assert calls(f"Action: {form}\nAction Input: {{}}").actions == {name: 1}
    assert not calls("<think>Action: f\nAction Input: {}").actions
    assert calls("Action Input: [1]").inputs == {} and not calls("Action Input: {}").actions


@pytest.mark.parametrize(
    "change, right",
    [
        (lambda a: a[::-1], False),  # the pages come in another order, so page 1 is left
        (lambda a: [a[0], a[2], a[1]], True),
        (lambda a: a[:2], False),
        (lambda a: [*a, a[1]], False),
        (lambda a: [{**a[0], "Action": "Find"}, *a[1:]], False),
        (
            lambda a: [
                {"Action": "find", "Action_Input": '{"page": 2, "color": "wild"}'},
                {"Action": "save", "Action_Input": "{}"},
                # which call has which argument is not looked at
                {"Action": "find", "Action_Input": {"to": {"folder": "a}b"}}},
            ],
            True,
        ),
    ],
)
def test_the_rule(tmp_path, change, right):
    task = load_task(f"tools:{written(tmp_path, RECORD)}")
    [problem] = task._problems
    assert task.grade(problem, attempt(change(ANSWER))).correct is right


@pytest.mark.parametrize(
    "due, given, same",
    [
        ("1", "1", True),
        ("1", "1.0", True),
        ("1.0", "1", True),
        ("2.5", "2.50", True),
        ("1e3", "1000", True),
        ("0", "-0.0", True),
        ("9007199254740993", "9007199254740992.0", False),
        ("1", "true", False),
        ("true", "1", False),
        ("true", "1.0", False),
        ("false", "0", False),
        ("true", "true", True),
        ("true", "false", False),
        ("true", '"true"', False),
        ("1", '"1"', False),
        ("null", "0", False),
        ("null", "false", False),
        ("null", '""', False),
        ("null", "null", True),
        ("[]", "{}", False),
        ("[1, true]", "[1, 1]", False),
        ("[1, 2]", "[2, 1]", False),
        ('{"b": [true], "c": 1}', '{"c": 1.0, "b": [true]}', True),
        ('{"b": [true]}', '{"b": [1]}', False),
        ('{"b": {"c": 0}}', '{"b": {"c": false}}', False),
        ("1", "NaN", False),
        ("1", "Infinity", False),
        ('"é"', '"\\u00e9"', True),
    ],
)
def test_values_are_equal_as_json_is(tmp_path, due, given, same):
    answer = [{"Action": "f", "Action_Input": f'{{"a": {due}}}'}]
    task = load_task(f"tools:{written(tmp_path, {**RECORD, 'answer': answer})}")
    text = f'Action: f\nAction Input: {{"a": {given}}}'
    assert task.grade(task._problems[0], text).correct is same


def test_null_is_not_nothing(tmp_path):
    answer = [{"Action": "f", "Action_Input": {"a": None}}]
    task = load_task(f"tools:{written(tmp_path, {**RECORD, 'answer': answer})}")
    for inputs, right in (("{}", False), ('{"a": null}', True), ('{"a": null, "b": null}', False)):
        verdict = task.grade(task._problems[0], f"Action: f\nAction Input: {inputs}")
        assert verdict.correct is right


def test_feedback_does_not_give_the_answer_away(tmp_path):
    task = load_task(f"tools:{written(tmp_path, RECORD)},max_new=9")
    [problem] = task._problems
    assert (
        isinstance(task, Task)
        and task.max_new == 9
        and [m["role"] for m in problem.messages] == ["user"]
    )
    assert task.grade(problem, attempt(ANSWER)).parts == {"actions": 1.0, "inputs": 1.0}
    wrong = task.grade(problem, 'Action: look\nAction Input: {"color": "red"}')
    assert (
        wrong.feedback
        == (
            "These are not the right calls: look. This is not the right action input: "
            '{"color": "red"}.'
        )
        and wrong.reward == 0
    )
    half = task.grade(problem, attempt([*ANSWER[:2], {"Action": "save", "Action_Input": "{}"}]))
    assert half.parts == {"actions": 1.0, "inputs": 0.0} and "calls" not in half.feedback
    assert (
        task.grade(problem, "").feedback
        == "There is no line that begins with Action: and names a tool."
    )


@pytest.mark.parametrize(
    "text",
    [
        "Action Input: {" * 20_000,
        "Action: " * 50_000,
        'Action Input: {"a": ' * 20_000,
        "Action: f\nAction Input: " + '{"a":' * 50_000,
        "\x00",
        'Action: f\nAction Input: {"\ud800": 1}',
        'Action Input: {"a": ' + "1" * 90_000 + "}",
        "x" * 3_000_000,
    ],
)
def test_hostile_text_is_graded_wrong_soon(tmp_path, text):
    task = load_task(f"tools:{written(tmp_path, RECORD)}")
    verdict = task.grade(task._problems[0], text)
    assert not verdict.correct and verdict.feedback.encode() and len(verdict.feedback) < 1200


@pytest.mark.parametrize(
    "record, message",
    [
        ({"prompt": "?"}, "line 2 needs a prompt and an answer; its columns are prompt"),
        ([], "line 2 needs a prompt"),
        *(
            ({"prompt": "?", "answer": answer}, "line 2 has an answer that is no JSON list")
            for answer in (
                "x",
                "[]",
                "{}",
                [{"Action": "f"}],
                [{"Action": "f", "Action_Input": "{"}],
                [{"Action": "f", "Action_Input": "[1]"}],
                7,
            )
        ),
    ],
)
def test_a_bad_record_is_named(tmp_path, record, message):
    with pytest.raises(WorkbenchError, match=message):
        load_task(f"tools:{written(tmp_path, RECORD, record)}")


def test_bad_dials():
    for name, message in (
        ("tools", "needs a file"),
        ("tools:x.jsonl,split=hash", "takes split=train"),
        ("tools:x.jsonl,max_new=0", "max_new from 1"),
        ("tools:x.jsonl", "could not read"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            load_task(name)


@pytest.mark.skipif(
    not REAL.exists(), reason=f"the real records are not at {REAL.name} beside this checkout"
)
def test_real_records():
    task = load_task(f"tools:{REAL},split=test")
    problems = task.problems("test", 30, 0)
    answers = {p.id: json.loads(p.answer) for p in problems}
    assert any(len(answer) > 1 for answer in answers.values()) and any(
        "{" in call["Action_Input"][1:] for answer in answers.values() for call in answer
    )
    for p in problems:
        answer = answers[p.id]
        assert (
            task.grade(p, attempt(answer)).correct
            and not task.grade(p, attempt(answer + answer[:1])).correct
        )
        assert not task.grade(p, attempt([{**answer[0], "Action": "other"}, *answer[1:]])).correct
