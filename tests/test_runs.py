"""Committed runs can be made again: their first steps, from their own configurations; and, as slow
tests, whole runs chosen at random.
"""

import json
from dataclasses import replace
from pathlib import Path
from random import SystemRandom

import pytest

from workbench.methods import from_record
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.paths import FIRST_STUDY, ORGANISM, RECORDS
from workbench.records import read_run
from workbench.studies import arms
from workbench.studies.cell import FULL, run_cell, train_stage
from workbench.tasks import load_task
from workbench.training.run import TrainConfig, collapse, fit

ROOT = Path(__file__).parent.parent
STEPS = 2


def recorded_runs() -> list[str]:
    """One committed record of each arm of one stage, its seed drawn anew each time."""
    of_arm: dict[str, list[str]] = {}
    for path in sorted(RECORDS.glob("*/evaluation.json")):
        arm = json.loads(path.read_text())["arm"]
        if len(arm["stages"]) == 1:
            of_arm.setdefault(arm["name"], []).append(path.parent.name)
    return [SystemRandom().choice(cells) for cells in of_arm.values()]


def test_the_first_steps_of_committed_runs_come_out_again(tmp_path):
    drawn = recorded_runs()
    if not drawn:
        pytest.skip("the study has left no record yet")
    for cell in SystemRandom().sample(drawn, min(4, len(drawn))):
        first_steps_come_out_again(cell, tmp_path / cell)


def first_steps_come_out_again(cell: str, folder: Path) -> None:
    run = read_run(RECORDS / cell)
    config = run.config
    plan = TrainConfig(**{**config["plan"], "steps": STEPS, "eval_every": 0})
    expert = load_policy(ROOT / config["teacher"]) if config["teacher"] else None
    learner = Learner(
        load_policy(ROOT / config["model"]),
        OptimConfig(**config["optimiser"]),
        lora=config["lora"],
        seed=plan.seed,
        expert=expert,
    )
    again = read_run(
        fit(
            from_record(config),
            learner,
            load_task(config["task"]),
            plan,
            folder,
            progress=False,
        )
    ).metrics
    recorded = run.metrics[:STEPS]
    # Sums in another order (threads, another processor) may flip the draw of a token now and then:
    # a rollout or two of 128.
    for name, tolerance in {
        "correct": 2 / 128,
        "length": 0.3,
        "entropy": 5e-3,
        "contrast": 1 / 16,
        "grad_norm": 0.05,
    }.items():
        if name not in recorded:  # nothing is sampled
            continue
        there = pytest.approx(list(recorded[name]), abs=tolerance, rel=0.02)
        assert list(again[name]) == there, (cell, name)


def test_the_first_steps_of_a_first_stage_come_out_again(tmp_path):
    """SFT before GRPO. (What begins with a cold start needs all of its lessons first: that is for
    the whole runs below.)
    """
    (arm,) = (arm for arm in arms.GRID if arm.name == "sft-then-rl")
    seed = SystemRandom().randrange(arm.seeds)
    scale = replace(FULL, steps=round(STEPS / arm.stages[0].share), eval_every=0)
    folder = train_stage(arm, arm.stages[0], seed, tmp_path / "run", scale, ORGANISM / arm.model)
    again, recorded = read_run(folder).metrics, read_run(RECORDS / arm.cell(seed)).metrics[:STEPS]
    assert len(again) == STEPS and list(recorded.step) == [0, 1]
    for name in ("loss", "nll", "grad_norm", "entropy"):
        assert list(again[name]) == pytest.approx(list(recorded[name]), rel=0.02), (seed, name)


@pytest.mark.parametrize("seed", range(3))
def test_grpo_makes_the_organism_better(seed):
    folder = ROOT / "data" / "check" / f"seed{seed}"
    config, before, after = (
        json.loads((folder / name).read_text())
        for name in ("config.json", "before.json", "after.json")
    )
    assert (config["method"], config["plan"]["steps"], config["plan"]["seed"], config["model"]) == (
        "GRPO",
        60,
        seed,
        "data/organism/3m",
    )
    assert (
        before["problems"] == after["problems"] == 400
        and before["samples"] == after["samples"] == 8
    )
    assert after["avg"] - before["avg"] >= 0.10 and after["low"] > before["high"]


def test_recorded_runs_that_lost_half_would_have_been_warned_of_and_hardly_another():
    warned, lost, well = set(), set(), set()
    bases = {
        "programs": "base-programmer",
        "arithmetic:largest=40,style=turned": "hard-base-3m",
        "arithmetic:largest=40": "hard-base-3m",
    }

    def right(folder):
        return json.loads((FIRST_STUDY / folder / "evaluation.json").read_text())["test"]["avg"]

    for folder in FIRST_STUDY.iterdir():
        if (folder / "metrics.jsonl").is_file():
            run = read_run(folder)
            lines, method = run.metrics.to_dict("records"), from_record(run.config)
            if any(collapse(lines[:n], method) for n in range(1, len(lines) + 1)):
                warned.add(folder.name)
            _, model, seed = folder.name.rsplit("-", 2)
            before, after = (
                right(f"{bases.get(run.config['task'], f'base-{model}')}-{seed}"),
                right(folder.name),
            )
            (lost if after < before / 2 else well).add(folder.name)
    # right once in twenty at its start: too seldom to tell
    assert len(lost) == 13 and lost - warned == {"hard-trapo-3m-seed2"}
    # they halved, and came back at least in part
    assert warned - lost == {"trapo-3m-seed0", "trapo-3m-seed1", "trapo-3m-seed2"}
    assert len(well) > 150


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_a_committed_run_comes_out_again_whole(number, tmp_path):
    """One chosen at random.

    On the same kind of machine the numbers are the same to the last digit; on another one a token
    drawn otherwise makes it another run of the same seed, and the outcome the same within the noise
    of that.
    """
    arm, seed = SystemRandom().choice(
        [
            (arm, seed)
            for arm in arms.GRID
            for seed in range(arm.seeds)
            if arm.stages and (RECORDS / arm.cell(seed) / "evaluation.json").is_file()
        ]
    )
    record = run_cell(arm, seed, tmp_path / "work", tmp_path / "records")
    again, recorded = (
        json.loads((folder / arm.cell(seed) / "evaluation.json").read_text())["test"]
        for folder in (tmp_path / "records", RECORDS)
    )
    print(f"{record.name}: {recorded['avg']} recorded, {again['avg']} again")
    assert again["avg"] == pytest.approx(recorded["avg"], abs=0.05), arm.cell(seed)
    assert again["length"] == pytest.approx(recorded["length"], rel=0.05), arm.cell(seed)
