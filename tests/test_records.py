"""A run directory: what is written is read back, whatever the text, and no kill or full disk leaves
half a file.
"""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import toys

from workbench import records
from workbench.app.compare import table
from workbench.core import (
    Group,
    Problem,
    Rollout,
    StepRecord,
    Verdict,
    WorkbenchError,
    refuse_on,
)
from workbench.records import (
    RunWriter,
    dumps,
    group_from_dict,
    group_to_dict,
    read_run,
    replace_folder,
    write_atomic,
)

# Everything that ends a line somewhere, quotes, markup, and characters of two to four bytes.
TEXT = 'a\nb\r\n\u2028\u2029\x85\x0c\x1c\0"\\ <script>é漢🙂</script> \u202e'


def hostile_group() -> Group:
    problem = Problem(
        "p/1",
        ({"role": "user", "content": TEXT},),
        "1",
        ("s", TEXT),
        {"split": "train", "steps": 3, "note": None},
    )
    one = Rollout(
        (1, 2),
        (3, 4, 5),
        (math.nan, math.nan, -0.1),
        TEXT,
        Verdict(0.5, False, TEXT, {"right_steps": 1.0}),
        "guided",
        2,
        False,
    )
    return Group(problem, (one, toys.rollout(2, 1.0)))


def same(a: Group, b: Group) -> bool:
    """NaN is not equal to itself: compared as text."""
    return repr(a) == repr(b)


def record(step: int, **metrics) -> StepRecord:
    return StepRecord(
        step, {"loss": 0.1 * step, **metrics}, (hostile_group(),), (((0.0, 1.5, -2.0), (1.0, 1.0)),)
    )


def test_groups_survive_json():
    group = hostile_group()
    assert same(group_from_dict(json.loads(records.dumps(group_to_dict(group)))), group)


@pytest.mark.parametrize("kind", [float, np.float64, np.float32, np.float16])
def test_no_number_is_null_whoever_holds_it(kind):
    values = {"nan": kind("nan"), "row": (kind("inf"), kind(0.5)), "count": np.int64(3)}
    assert json.loads(dumps(values)) == {"nan": None, "row": [None, 0.5], "count": 3}


def test_a_run_is_read_as_it_was_written(tmp_path):
    writer = RunWriter(tmp_path / "run", {"method": "GRPO", "model": TEXT})
    for step in range(3):
        writer.write(
            record(step, odd=math.inf if step == 1 else np.float32(0.5), count=np.int64(step))
        )
    run = read_run(tmp_path / "run")
    assert (
        run.config["model"] == TEXT
        and run.config["schema_version"] == records.SCHEMA_VERSION
        and run.env["versions"]["torch"]
    )
    assert run.metrics["step"].tolist() == [0, 1, 2] and run.metrics["loss"].tolist() == [
        0.0,
        0.1,
        0.2,
    ]
    assert run.metrics["odd"].isna().tolist() == [False, True, False]  # JSON has no infinity
    assert [step for step, _, _ in run.groups] == [0, 1, 2] and same(
        run.groups[2][1], hostile_group()
    )
    assert run.groups[0][2] == [[0.0, 1.5, -2.0], [1.0, 1.0]]
    import pandas as pd

    assert pd.read_json(tmp_path / "run" / "metrics.jsonl", lines=True)[
        "loss"
    ].tolist() == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize("name", ["metrics.jsonl", "groups.jsonl"])
def test_a_torn_last_line_is_forgotten_wherever_it_is_torn(tmp_path, name):
    writer = RunWriter(tmp_path, {})
    for step in range(3):
        writer.write(record(step))
    whole = (tmp_path / name).read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(start, len(whole) - 1):  # also in the middle of a character
        (tmp_path / name).write_bytes(whole[:cut])
        assert len(records._lines(tmp_path / name)) == 2
    RunWriter(tmp_path, {}, start_step=2).write(record(2))
    assert (tmp_path / name).read_bytes() == whole


def test_a_line_broken_in_the_middle_is_named(tmp_path):
    writer = RunWriter(tmp_path, {})
    writer.write(record(0))
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(WorkbenchError, match=r"metrics.jsonl, line 2 is not JSON"):
        read_run(tmp_path)


def test_going_on_forgets_what_came_after_the_checkpoint(tmp_path):
    writer = RunWriter(tmp_path, {"plan": {"steps": 3}})
    for step in range(3):
        writer.write(record(step))
    RunWriter(tmp_path, {"plan": {"steps": 9}}, start_step=1).write(record(1, again=1.0))
    run = read_run(tmp_path)
    assert run.metrics["step"].tolist() == [0, 1] and [step for step, _, _ in run.groups] == [0, 1]
    assert run.metrics["again"].tolist()[1] == 1.0 and run.config["plan"]["steps"] == 9


def test_write_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")

    def half(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(WorkbenchError, match=r"could not write .*file: No space left on device"):
        write_atomic(path, "new and longer")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_one_sentence(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is not here")
    writer = RunWriter(tmp_path, {})
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(WorkbenchError, match=r"could not write .*metrics.jsonl: No space left"):
        writer.write(record(0))


def test_an_error_of_the_kinds_becomes_the_sentence_and_no_other_does():
    full = OSError(errno.ENOSPC, "No space left", "a/file")
    ours, other = WorkbenchError("said already"), KeyError("k")
    for error, why, says in (
        (full, True, "no file: No space left"),
        (ValueError("first\nsecond"), True, "no file: first"),
        (ValueError(), True, "no file: ValueError"),
        (full, False, "no file"),
        (ours, True, "said already"),
    ):
        with (
            pytest.raises(WorkbenchError) as refusal,
            refuse_on((OSError, ValueError), "no file", why),
        ):
            raise error
        assert str(refusal.value) == says
        assert error is ours or refusal.value.__cause__ is error
    with pytest.raises(KeyError) as raised, refuse_on(OSError, "no file"):
        raise other
    assert raised.value is other


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(WorkbenchError, match=r"could not write to .*file"):
            RunWriter(folder, {})
    with pytest.raises(WorkbenchError, match=r"could not write .*file/x"):
        write_atomic(tmp_path / "file" / "x", "text")

    def refused(self, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "write_bytes", refused)
    with pytest.raises(WorkbenchError, match=r"could not write .*: Read-only file system"):
        RunWriter(tmp_path / "new", {})


def test_other_schemas_and_no_run_are_refused(tmp_path):
    with pytest.raises(WorkbenchError, match="there is no run in"):
        read_run(tmp_path)
    RunWriter(tmp_path, {})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "schema_version": records.SCHEMA_VERSION + 1})
    )
    with pytest.raises(
        WorkbenchError,
        match=f"schema version {records.SCHEMA_VERSION + 1}, this package reads "
        f"{records.SCHEMA_VERSION}",
    ):
        read_run(tmp_path)


def test_replace_folder_leaves_nothing_of_the_older_one(tmp_path):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text(name)
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [p.name for p in (tmp_path / "old").iterdir()] == ["new.txt"] and not (
        tmp_path / "new"
    ).exists()


@pytest.mark.parametrize(
    "name, text",
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("env.json", ""),
        ("metrics.jsonl", "[1]\n"),
        ("metrics.jsonl", '{"step":0}\n'),
        ("groups.jsonl", '{"x":1}\n'),
    ],
)
def test_a_damaged_run_is_one_sentence(tmp_path, name, text):
    writer = RunWriter(tmp_path, {"method": "GRPO", "plan": {}})
    writer.write(StepRecord(0, {"correct": 0.5, "length": 3.0}))
    read_run(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(WorkbenchError, match=r"damaged|is not JSON"):
        table([tmp_path])


def test_what_is_no_ordinary_file_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(WorkbenchError, match="no ordinary file"):
        write_atomic(tmp_path / "folder", "text")
