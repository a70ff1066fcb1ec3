"""With ``--no-execute`` no task that runs programs is made, and no program runs."""

from __future__ import annotations

import os

import pytest

from workbench.app.cli import main
from workbench.core import WorkbenchError
from workbench.tasks import load_task
from workbench.tasks.sandbox.outside import Call, Program, report, run

OFF = "WORKBENCH_NO_EXECUTE"
SENTENCE = r"runs programs that a model wrote, which --no-execute \(WORKBENCH_NO_EXECUTE\) forbids"


@pytest.mark.parametrize("task", ["programs", "programs:steps=2", "code:none.jsonl"])
def test_tasks_that_run_programs_are_refused(task, monkeypatch):
    monkeypatch.setenv(OFF, "1")
    with pytest.raises(WorkbenchError, match=f"{task.split(':')[0]} {SENTENCE}"):
        load_task(task)


def test_sets_whose_scorer_evaluates_answers_are_refused(monkeypatch):
    pytest.importorskip("reasoning_gym")
    load_task("gym:countdown")
    monkeypatch.setenv(OFF, "1")
    with pytest.raises(WorkbenchError, match="gym:countdown runs programs"):
        load_task("gym:countdown")
    assert load_task("gym:chain_sum").name == "gym"


def test_no_program_starts(monkeypatch):
    monkeypatch.setenv(OFF, "yes")
    for start in (Program("x = 1").start, lambda: run("x = 1", [Call()])):
        with pytest.raises(WorkbenchError, match=f"the sandbox {SENTENCE}"):
            start()
    assert report().startswith("[ no ] running programs: the sandbox runs")


@pytest.mark.parametrize("value", ["", "0"])
def test_it_is_off_unless_it_is_on(value, monkeypatch):
    monkeypatch.setenv(OFF, value)
    assert load_task("programs").name == "programs"


@pytest.mark.parametrize("command", ["eval --model none", "train grpo --model none --out OUT"])
def test_the_command_line(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(OFF, "")
    words = command.replace("OUT", str(tmp_path / "run")).split()
    assert main([*words, "--task", "programs", "--no-execute"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--no-execute" in said
    assert not (tmp_path / "run").exists() and os.environ[OFF] == ""
