"""The math task: records become problems, copies become one, splits are kept apart, and whatever is
wrong with a data set is one sentence.
"""

from __future__ import annotations

import gzip
import json
import sys
import types
from collections import Counter
from pathlib import Path

import pytest

from workbench.core import Task, WorkbenchError
from workbench.tasks import load_task
from workbench.tasks.base import SPLITS
from workbench.tasks.math import ASK, SETS, Math

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real records (../shared/data) are not here"
)


def written(folder: Path, records: list, name: str = "p.jsonl") -> str:
    (folder / name).write_text(
        "\n".join(json.dumps(record) for record in records), encoding="utf-8"
    )
    return str(folder / name)


def everything(task) -> list:
    return [
        problem
        for split in SPLITS
        for problem in task.problems(
            split, sum(p.meta["split"] == split for p in task._problems), 0
        )
    ]


ADD = [{"question": f"{i}+1?", "answer": i + 1} for i in range(60)]


def test_a_file_is_read_in_every_form(tmp_path):
    plain = load_task(f"math:{written(tmp_path, ADD)},max_new=77")
    assert (
        isinstance(plain, Task)
        and plain.max_new == 77
        and plain._problems[3].messages == ({"role": "user", "content": "3+1?" + ASK},)
    )
    lines_as_json = load_task(f"math:{written(tmp_path, ADD, 'lines.json')}")
    (tmp_path / "list.json").write_text(json.dumps(ADD, indent=1))
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress((tmp_path / "p.jsonl").read_bytes()))
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.Table.from_pylist([{**record, "answer": str(record["answer"])} for record in ADD]),
        tmp_path / "p.parquet",
    )
    for task in (
        lines_as_json,
        *(Math(str(tmp_path / name)) for name in ("list.json", "packed.jsonl.gz", "p.parquet")),
    ):
        assert [(p.messages, p.answer, p.meta) for p in task._problems] == [
            (p.messages, p.answer, p.meta) for p in plain._problems
        ]


def test_columns_by_name_prompts_as_they_are_and_every_trace_kept(tmp_path):
    record = {"task": "2+2?", "reward": {"truth": "4"}, "generations": ["so \\boxed{4}", "", "4"]}
    [made] = load_task(
        f"math:{written(tmp_path, [record])},question=task,answer=reward.truth,solution=generations"
    )._problems
    assert (made.answer, made.solutions) == ("4", ("so \\boxed{4}", "4"))
    verl = {
        "prompt": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "2+2? Answer: $Answer"},
        ],
        "reward_model": {"ground_truth": "4", "style": "rule"},
    }
    [made] = Math(written(tmp_path, [verl]))._problems
    assert made.answer == "4" and made.messages == tuple(verl["prompt"])
    [made] = Math(
        written(tmp_path, [{"problem": "2+2?", "solution": "it is \\boxed{4}"}])
    )._problems
    assert made.answer == "4" and made.solutions == ("it is \\boxed{4}",)
    [made] = Math(written(tmp_path, [{"question": "2+2?", "answer": "2+2=4\n#### 4"}]))._problems
    assert made.answer == "4" and made.solutions == ("2+2=4\n#### 4",)


def test_copies_are_one_problem_and_counted(tmp_path):
    copies = [
        {"problem": f"{i}+1?", "answer": str(i + 1), "solution": f"trace {j % 2}"}
        for i in range(3)
        for j in range(32)
    ]
    with pytest.warns(
        UserWarning, match="93 of the 96 records of .* ask a question again; 3 problems are left"
    ):
        task = Math(written(tmp_path, copies))
    assert [(p.meta["copies"], p.solutions) for p in task._problems] == [
        (32, ("trace 0", "trace 1"))
    ] * 3
    with pytest.raises(
        WorkbenchError,
        match=r"line 2 asks the question of .*line 1 and has another answer: '3', not '2'",
    ):
        Math(
            written(
                tmp_path, [{"problem": "1+1?", "answer": "2"}, {"problem": "1+1? ", "answer": "3"}]
            )
        )


@pytest.mark.parametrize(
    "record, message",
    [
        (
            {"text": "?", "label": 1},
            r"line 2 has no question in question or problem or prompt; its columns are text, "
            r"label: write question=COLUMN",
        ),
        (
            {"question": "?", "label": 1},
            "line 2 has no answer in answer or .*; its columns are question, label: write "
            "answer=COLUMN",
        ),
        ({"question": 7, "answer": 1}, "line 2 has a question that is neither text nor a list"),
        ([1], "line 2 is not a record"),
        ({"question": "?", "answer": "so ####"}, "line 2 has no answer"),
        ({"question": "?", "answer": "}{"}, "line 2 has the answer '}{', which cannot be read"),
        ({"question": "\ud800", "answer": 1}, "line 2 holds half of a surrogate pair"),
    ],
)
def test_a_bad_record_is_named(tmp_path, record, message):
    with pytest.raises(WorkbenchError, match=message) as caught:
        load_task(f"math:{written(tmp_path, [ADD[0], record])}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, message",
    [
        ("math", "the task math needs gsm8k, math500"),
        ("math:nosuch", "not 'nosuch'"),
        ("math:gsm8k,split=x", "takes split=hash"),
        ("math:gsm8k,max_new=0", "max_new from 1"),
        ("math:gsm8k,rows=2", "the task math has no option 'rows'"),
        ("math:none.jsonl", "could not read the problem file none.jsonl"),
    ],
)
def test_a_bad_dial_is_one_sentence(name, message):
    with pytest.raises(WorkbenchError, match=message):
        load_task(name)


def test_splits_of_a_file(tmp_path):
    path = written(tmp_path, ADD)
    task = Math(path)
    assert set(Counter(p.meta["split"] for p in task._problems)) == set(SPLITS)
    assert (
        task.problems("train", 20, 1)
        == task.problems("train", 20, 1)
        != task.problems("train", 20, 2)
    )
    assert len(Math(path, split="validation").problems("validation", 60, 0)) == 60
    same = Math(path, split="all")
    assert {p.id for p in same.problems("train", 60, 0)} == {
        p.id for p in same.problems("test", 60, 0)
    }
    with pytest.raises(WorkbenchError, match="problems in its test split, 60 wanted"):
        task.problems("test", 60, 0)


def test_grading_and_the_other_prompts(tmp_path):
    task = Math(
        written(
            tmp_path, [{"problem": "Half?", "answer": "\\frac{1}{2}", "solution": "\\boxed{0.5}"}]
        )
    )
    [problem] = task._problems
    assert (
        task.grade(problem, "it is \\boxed{0.50}").correct
        and not task.grade(problem, "\\boxed{2}").correct
    )
    assert (
        task.grade(problem, "").feedback == "There is no final answer."
        and task.first_error(problem, "x") is None
    )
    assert (
        "0.5" in task.reprompt(problem, solution="0.5")[-1]["content"]
        and "wrong one" in task.synthesis(problem, "wrong one", "")[-1]["content"]
    )


# --- the hub, stood in for ------------------------------------------------------------------------


# the splits and the columns of the named sets, as published
PUBLISHED = {
    "gsm8k": (("train", "test"), ("question", "answer")),
    "math500": (("test",), ("problem", "solution", "answer", "subject", "level", "unique_id")),
    "aime24": (("train",), ("id", "problem", "solution", "answer", "url", "year")),
    "aime25": (("test",), ("problem", "answer", "id")),
    "hmmt25": (("train",), ("problem_idx", "problem", "answer", "problem_type")),
}


def hub(monkeypatch, result) -> list:
    """A module ``datasets`` whose load_dataset gives ``result``, or raises it; what it was asked
    for.
    """
    asked = []

    def load_dataset(*given):
        asked.append(given)
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


def published(name: str, i: int) -> dict:
    """A record with just the columns of the set."""
    values = {
        "question": f"{name} {i}?",
        "problem": f"{name} {i}?",
        "answer": f"it is\n#### {i}" if name == "gsm8k" else str(i),
        "solution": f"\\boxed{{{i}}}",
    }
    return {column: values.get(column, "x") for column in PUBLISHED[name][1]}


@pytest.mark.parametrize("name", SETS)
def test_the_named_sets(name, monkeypatch):
    hub_id, config = SETS[name]
    asked = hub(
        monkeypatch,
        {
            split: [published(name, 100 * j + i) for i in range(40)]
            for j, split in enumerate(PUBLISHED[name][0])
        },
    )
    task = load_task(f"math:{name}")
    assert asked == [(hub_id, config or None)] and all(
        p.answer.isdigit() and p.messages[0]["content"].endswith(ASK) for p in task._problems
    )
    found = Counter(p.meta["split"] for p in task._problems)
    if name == "gsm8k":
        assert (
            found["test"] == 40
            and found["train"] + found["validation"] == 40
            and found["validation"]
        )
        assert all(p.solutions for p in task._problems)
    else:
        assert found == {"test": 40}
        with pytest.raises(
            WorkbenchError, match=f"{name} is for measuring: .*split=all .*split=hash"
        ):
            task.problems("train", 4, 0)
        assert len(load_task(f"math:{name},split=all").problems("train", 40, 0)) == 40
        assert len({p.meta["split"] for p in Math(name, split="hash")._problems}) == 3


def test_any_hub_id(monkeypatch):
    asked = hub(
        monkeypatch,
        {
            "train": [{"problem": "a?", "answer": "1"}, {"problem": "b?", "answer": "2"}],
            "test": [{"problem": "b?", "answer": "2"}],
        },
    )
    with pytest.warns(UserWarning, match="1 of the 3"):
        task = load_task("math:owner/name,config=main")
    assert asked == [("owner/name", "main")]
    # what is in both is not trained on
    assert {p.messages[0]["content"][:2]: p.meta["split"] for p in task._problems}["b?"] == "test"
    hub(monkeypatch, {"train": ADD, "extra": ADD[:3]})
    with pytest.warns(UserWarning):
        assert {p.meta["split"] for p in Math("owner/other")._problems} == set(SPLITS)


class DatasetNotFoundError(FileNotFoundError):
    """As in ``datasets``."""


class OfflineModeIsEnabled(ConnectionError):
    """As in ``huggingface_hub``."""


@pytest.mark.parametrize(
    "error, message",
    [
        (
            DatasetNotFoundError("Dataset 'o/n' doesn't exist on the Hub or cannot be accessed."),
            "there is no data set o/n on the hub, or it is private",
        ),
        (
            DatasetNotFoundError("Dataset 'o/n' is a gated dataset on the Hub."),
            "o/n is gated: ask for access",
        ),
        (OfflineModeIsEnabled("x"), "o/n is not in this machine's cache, and HF_HUB_OFFLINE"),
        (ConnectionError("no route"), "the hub could not be reached"),
        (
            ValueError("Config name is missing.\nPlease pick one among ['main']"),
            r"o/n could not be read from the hub: Config name is missing\.$",
        ),
        (RuntimeError(), "RuntimeError$"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(error, message, monkeypatch):
    hub(monkeypatch, error)
    with pytest.raises(WorkbenchError, match=message) as caught:
        load_task("math:o/n")
    assert "\n" not in str(caught.value)


def test_without_datasets_or_network(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        WorkbenchError,
        match=r"openai/gsm8k is read from the hub by datasets, which is not installed \(pip "
        r"install -e '.\[data\]'\)",
    ):
        load_task("math:gsm8k")
    # huggingface_hub itself, offline
    with pytest.raises(WorkbenchError, match=r"test6\.jsonl is not in this machine's cache"):
        load_task("code:livecodebench_v6")


def test_the_real_datasets_offline():
    pytest.importorskip("datasets")
    with pytest.raises(
        WorkbenchError,
        match="owner/of-nothing is not in this machine's cache, and HF_HUB_OFFLINE keeps",
    ):
        load_task("math:owner/of-nothing")


# --- real records ---------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize(
    "file, n", [("gsm8k_test_200.jsonl", 200), ("math500_100.jsonl", 100), ("aime24.jsonl", 30)]
)
def test_real_records(file, n):
    task = load_task(f"math:{SHARED / file},split=test")
    problems = task.problems("test", n, 0)
    assert len({p.messages[0]["content"] for p in problems}) == n and all(
        p.messages[0]["content"].count("\\boxed{}") == 1 for p in problems
    )
    assert all(task.grade(p, p.solutions[0]).correct for p in problems if p.solutions)
    assert all(
        task.grade(p, f"\\boxed{{{p.answer}}}").correct
        and not task.grade(p, f"\\boxed{{{p.answer}+1}}").correct
        for p in problems[:30]
    )


@needs_data
@pytest.mark.parametrize(
    "file, name", [("gsm8k_test_200.jsonl", "gsm8k"), ("math500_100.jsonl", "math500")]
)
def test_the_columns_are_those_of_real_records(file, name):
    assert (
        tuple(json.loads((SHARED / file).read_text(encoding="utf-8").splitlines()[0]))
        == PUBLISHED[name][1]
    )
