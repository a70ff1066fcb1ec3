"""The grid: arms can be built, cells are made once, a killed cell goes on, a record is whole."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest

from workbench.app.cli import main
from workbench.core import WorkbenchError
from workbench.methods.grpo import GRPO
from workbench.model.learner import OptimConfig
from workbench.options import split_options, with_options
from workbench.paths import STUDY
from workbench.records import read_run
from workbench.studies import cell, grid, ledger, tuning
from workbench.studies.arms import BLOCKS, GRID, QUICK, Arm, Stage
from workbench.studies.cell import FULL, SMALL, run_cell
from workbench.studies.grid import missing
from workbench.studies.measure import Amounts
from workbench.tasks import load_task
from workbench.training.resume import sole_training
from workbench.training.run import TrainConfig

FEW = Amounts(problems=6, samples=2, reading=4, many=2, many_samples=4)
TINY = replace(SMALL, steps=2, eval_every=2, eval_problems=3, final=FEW)


def test_every_arm_is_a_method_with_options_that_it_has():
    for arm in GRID:
        load_task(arm.task)
        for stage in arm.stages:
            kind = cell.kind_of(stage)
            mine, optimizer, plan = split_options(
                stage.options, kind, OptimConfig, TrainConfig, fixed=("steps", "seed")
            )
            (
                with_options(kind, mine, arm.name),
                with_options(OptimConfig, optimizer, arm.name),
                with_options(TrainConfig, plan, arm.name),
            )
    cells = [arm.cell(seed) for arm in GRID for seed in range(arm.seeds)]
    assert len(cells) == len(set(cells))


def test_every_arm_of_the_plan_is_there_with_its_seeds():
    plan = (STUDY / "PLAN.md").read_text()
    rows = re.findall(r"^\| (1a|1b|1c|1d|2|3|4|5) \| (.*?) \| (\d+) \|", plan, re.M)
    assert [block for block, _, _ in rows] == [block for block in BLOCKS if block != "11"][:8]
    for block, named, seeds in rows:
        arms = [arm for arm in BLOCKS[block] if arm.name != "base"]
        assert {arm.seeds for arm in arms} == {int(seeds)}
        for arm in arms:
            assert arm.name.removesuffix("-tuned") in named, (block, arm.name)


def test_a_run_is_what_the_plan_says():
    arm = next(arm for arm in GRID if arm.name == "opd-1")
    method, optimizer, plan = cell._settings(arm, arm.stages[0], 3, FULL)
    assert (method.k, optimizer.lr, plan.steps, plan.prompts, plan.seed) == (1, 1e-4, 100, 64, 3)
    assert (plan.eval_every, plan.eval_problems, plan.eval_samples) == (10, 200, 1)
    long = next(arm for arm in GRID if arm.name == "sdpo-live")
    assert cell._settings(long, long.stages[0], 0, FULL)[2].steps == 300
    two = next(arm for arm in GRID if arm.name == "sft-then-rl")
    assert sum(cell._settings(two, stage, 0, FULL)[2].steps for stage in two.stages) == 100


def test_an_arm_with_a_rate_of_its_own_is_trained_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(cell, "TUNING", tmp_path / "tuning.json")
    common, tuned = (
        arm
        for arm in GRID
        if arm.stages and arm.stages[0].method == "scope" and arm.name in ("scope", "scope-tuned")
    )
    with pytest.raises(WorkbenchError, match="no rate of its own yet"):
        cell._settings(tuned, tuned.stages[0], 0, TINY)
    (tmp_path / "tuning.json").write_text(json.dumps({"rates": {"scope-tuned": 7e-5}, "runs": []}))
    small = replace(tuned, stages=(Stage("scope", ("prompts=2", "k=2")),), many=False)
    record = run_cell(small, 0, tmp_path / "work", tmp_path / "records", TINY)
    assert read_run(record).config["optimiser"]["lr"] == 7e-5
    assert cell._settings(common, common.stages[0], 0, TINY)[1].lr == TINY.lr


def test_a_tuned_arm_at_the_common_rate_is_not_run_twice(tmp_path, monkeypatch):
    arms = [arm for arm in GRID if arm.tuned]
    rates = {"scope-tuned": FULL.lr, "opd-1-tuned": 3e-4}
    monkeypatch.setattr(cell, "TUNING", tmp_path / "tuning.json")
    (tmp_path / "tuning.json").write_text(json.dumps({"rates": rates, "runs": []}))
    monkeypatch.setattr(grid, "tune_all", lambda *_: None)
    made = []
    monkeypatch.setattr(grid, "in_processes", lambda jobs, *_: made.extend(jobs) or [])
    grid.study(arms, [0, 1], 2, tmp_path / "records", tmp_path / "work", False)
    assert [words[1] for words in made] == ["opd-1-tuned-3m-seed0", "opd-1-tuned-3m-seed1"]


def test_seeds_come_first_and_what_is_there_is_not_made_again(tmp_path):
    arms = (Arm("a", seeds=2), Arm("b", seeds=1))
    assert [(arm.name, seed) for arm, seed in missing(arms, None, tmp_path)] == [
        ("a", 0),
        ("b", 0),
        ("a", 1),
    ]
    (tmp_path / "a-3m-seed0").mkdir()
    assert len(missing(arms, None, tmp_path)) == 3  # begun is not made
    (tmp_path / "a-3m-seed0" / "evaluation.json").write_text("{}")
    assert [(arm.name, seed) for arm, seed in missing(arms, None, tmp_path)] == [("b", 0), ("a", 1)]
    assert [(arm.name, seed) for arm, seed in missing(arms, [1], tmp_path)] == [("a", 1)]


def tried(**avgs):
    """Runs of scope-tuned: three seeds about each rate's accuracy, +-.01."""
    runs = []
    for rate, avg in avgs.items():
        for seed, off in zip(tuning.SEEDS, (-0.01, 0.0, 0.01)):
            row = {"arm": "scope-tuned", "rate": float(rate), "seed": seed, "avg": avg + off}
            runs.append(row)
    return tuning.by_rate(runs, "scope-tuned")


def test_the_smallest_rate_within_a_standard_error_of_the_best_is_chosen():
    # three seeds .01 apart: a standard error of .01 / sqrt 3 = .0058
    assert tuning.choose(tried(**{"3e-5": 0.5, "1e-4": 0.695, "3e-4": 0.7})) == 1e-4
    assert tuning.choose(tried(**{"3e-5": 0.5, "1e-4": 0.69, "3e-4": 0.7})) == 3e-4


def test_a_rate_is_tried_with_the_rate_its_seed_and_problems_of_the_validation_split(
    tmp_path, monkeypatch
):
    seen = {}

    def train(arm, stage, seed, out, scale, model):
        seen["trained"] = (cell._settings(arm, stage, seed, scale), model.name, out.name)
        return out

    def judge(policy, task, problems, samples, seed):
        seen["judged"] = (policy, [problem.id for problem in problems], samples, seed)
        return type("Result", (), {"avg": 0.4375})

    monkeypatch.setattr(tuning, "train_stage", train)
    monkeypatch.setattr(tuning, "evaluate", judge)
    monkeypatch.setattr(tuning, "load_policy", lambda folder: folder)
    line = tuning.tune("scope-tuned", 7e-4, 911, tmp_path)
    assert line == {"arm": "scope-tuned", "rate": 7e-4, "seed": 911, "avg": 0.4375}
    (_, optimizer, plan), model, folder = seen["trained"]
    assert (optimizer.lr, plan.steps, plan.seed, plan.eval_every) == (7e-4, 50, 911, 0)
    assert (model, folder) == ("3m", "tune-scope-tuned-0.0007-seed911")
    problems = load_task("arithmetic:largest=26").problems("validation", 400, 0)
    names = [problem.id for problem in problems]
    assert seen["judged"] == (tmp_path / folder / "model", names, 4, 911)


def test_runs_that_end_together_are_all_kept(tmp_path, monkeypatch):
    """Six at a time, and each line is written while the others come in."""
    monkeypatch.setattr(tuning, "TUNING", tmp_path / "tuning.json")

    def one(words, **_):
        arm, rate, seed = words[4:7]
        avg = 0.7 if float(rate) == 1e-4 else 0.5  # no edge wins: the grid is all there is to try
        line = {"arm": arm, "rate": float(rate), "seed": int(seed), "avg": avg}
        return subprocess.CompletedProcess(words, 0, json.dumps(line) + "\n", "")

    monkeypatch.setattr(grid.subprocess, "run", one)
    grid.tune_all(6, tmp_path)
    record = json.loads((tmp_path / "tuning.json").read_text())
    cells = [(run["arm"], run["rate"], run["seed"]) for run in record["runs"]]
    assert sorted(cells) == sorted(itertools.product(tuning.TUNED, tuning.RATES, tuning.SEEDS))
    assert record["rates"] == dict.fromkeys(tuning.TUNED, 1e-4)


def test_the_grid_grows_beyond_an_edge_that_wins_and_a_rate_counts_with_all_its_seeds():
    inner = tried(**{"3e-5": 0.5, "1e-4": 0.7, "3e-4": 0.6})
    assert tuning.wanted(inner) == set(tuning.RATES)
    assert tuning.wanted(tried(**{"3e-5": 0.5, "1e-4": 0.6, "3e-4": 0.7})) == {
        *tuning.RATES,
        9e-4,
    }
    assert tuning.wanted(tried(**{"3e-5": 0.7, "1e-4": 0.6, "3e-4": 0.5})) == {
        *tuning.RATES,
        1e-5,
    }
    harmed = {f"{3e-4 / 3**n:.1g}": 0.1 + 0.1 * n for n in range(6)}
    assert tuning.wanted(tried(**harmed)) == set(map(float, harmed))  # not for ever
    one = [{"arm": "scope-tuned", "rate": 1e-4, "seed": 910, "avg": 0.9}]
    assert tuning.by_rate(one, "scope-tuned") == {}
    left = tuning.untried(one)
    assert len(left) == 2 * 3 * 3 - 1 and ("scope-tuned", 1e-4, 910) not in left


def test_two_stages_are_one_record_and_the_second_starts_from_the_first(tmp_path):
    arm = Arm(
        "both",
        (Stage("sft", ("prompts=2",), 0.5), Stage("grpo", ("prompts=2", "k=2"), 0.5)),
        task="arithmetic:style=turned",
    )
    record = run_cell(arm, 0, tmp_path / "work", tmp_path / "records", TINY)
    run = read_run(record)
    assert list(run.metrics.step) == [0, 1] and "nll" in run.metrics
    assert run.metrics.nll.notna().tolist() == [True, False]
    assert run.config["model"] == "model" and run.config["method"] == "GRPO"
    found = json.loads((record / "evaluation.json").read_text())
    assert (
        found["arm"]["name"] == "both"
        and len(found["counts"]) == 6
        and found["test"]["samples"] == 2
    )
    assert not list((tmp_path / "work").iterdir()) and not list((tmp_path / "records").glob(".*"))


def test_a_cold_start_comes_before_the_steps_and_its_tokens_are_counted(tmp_path):
    arm = Arm(
        "cold",
        (
            Stage("coldstart", ("problems=4", "epochs=1", "prompts=8", "lr=1e-5")),
            Stage("grpo", ("prompts=2", "k=2")),
        ),
    )
    metrics = read_run(run_cell(arm, 0, tmp_path / "work", tmp_path / "records", TINY)).metrics
    assert (
        metrics.step.tolist() == list(range(-int(metrics.nll.notna().sum()), 2))
        and metrics.step[0] < 0
    )
    before = metrics[metrics.step < 0]
    # rollouts of about 40 tokens, and what was made of them
    assert before.generated.sum() > 4 * 8 * 20 and before.generated.nunique() == 1
    # where one ends the other begins
    assert before.final_eval_avg.iloc[-1] == metrics[metrics.step == 0].eval_avg.item()


def test_a_cell_comes_out_again_and_a_killed_one_goes_on(tmp_path):
    arm = Arm("grpo", (Stage("grpo", ("prompts=2", "k=2", "checkpoint_every=1")),))
    whole = run_cell(arm, 0, tmp_path / "work", tmp_path / "one", TINY)
    half = cell.train_stage(
        arm,
        arm.stages[0],
        0,
        tmp_path / "again" / arm.cell(0),
        replace(TINY, steps=1),
        grid.ROOT / "data/organism/3m",
    )
    shutil.rmtree(half / "model")  # as if it had been killed after its first step
    again = run_cell(arm, 0, tmp_path / "again", tmp_path / "two", TINY)
    drop = ["seconds_sample", "seconds_train"]
    one, two = (
        read_run(whole).metrics.drop(columns=drop),
        read_run(again).metrics.drop(columns=drop),
    )
    assert one.loss.tolist() == two.loss.tolist() and one.correct.tolist() == two.correct.tolist()
    counts = [
        json.loads((folder / "evaluation.json").read_text())["counts"] for folder in (whole, again)
    ]
    assert counts[0] == counts[1]


@dataclass(frozen=True)
class Halved(GRPO):
    """Somebody's own method, defined outside of the package."""

    def credit(self, groups, learner):
        return [replace(credit, pg=credit.pg / 2) for credit in super().credit(groups, learner)]


def test_a_method_of_ones_own_goes_through_the_same_grid(tmp_path):
    options = ("prompts=2", "k=2")
    records = [
        run_cell(
            Arm(name, (Stage(method, options),)),
            0,
            tmp_path / "work",
            tmp_path / "records",
            TINY,
        )
        for name, method in (("halved", Halved), ("grpo", "grpo"))
    ]
    own, known = (read_run(record) for record in records)
    assert own.config["method"] == "Halved" and ledger.cells(tmp_path / "records").arm.tolist() == [
        "grpo",
        "halved",
    ]
    assert own.metrics.correct[0] == known.metrics.correct[0]


def test_a_failed_cell_is_named_and_the_others_are_made(tmp_path):
    done = []
    failed = grid.in_processes(
        [["--cell", "no-such-cell"], ["--help"]], 2, lambda words, said: done.append(words)
    )
    assert (
        done == [["--help"]] and len(failed) == 1 and failed[0].startswith("--cell no-such-cell:")
    )


def test_bad_input_is_one_sentence(tmp_path, capsys):
    assert (
        main(["study", "--only", "nothing"]) == 2
        and "there is no arm nothing" in capsys.readouterr().err
    )
    assert main(["study", "--workers", "0"]) == 2 and "1 worker or more" in capsys.readouterr().err
    assert (
        main(["study", "--blocks", "1b", "--only", "scope"]) == 2
        and "there is no arm scope; there are trapo" in capsys.readouterr().err
    )
    assert main(["study", "--blocks", "0"]) == 2 and "no block 0" in capsys.readouterr().err
    assert main(["study", "--quick"]) == 2 and "name a folder with --out" in capsys.readouterr().err


def test_a_second_study_in_one_folder_is_refused_in_a_sentence(tmp_path, capsys):
    folder = ["--out", str(tmp_path / "records"), "--work", str(tmp_path / "work")]
    with sole_training(tmp_path / "work"):
        assert main(["study", "--quick", *folder]) == 2
        assert main(["study", "--tune", *folder]) == 2
    said = capsys.readouterr().err
    assert said.count("another training is writing to") == 2 and "Traceback" not in said
    assert not (tmp_path / "records").exists() and not (tmp_path / "work").exists()


@pytest.mark.slow
def test_a_quick_study_from_the_command_line(tmp_path):
    words = [
        "study",
        "--quick",
        "--out",
        str(tmp_path / "records"),
        "--work",
        str(tmp_path / "work"),
    ]
    subprocess.run([sys.executable, "-m", "workbench", *words], check=True, cwd=grid.ROOT)
    assert {path.name for path in (tmp_path / "records").iterdir()} == {
        arm.cell(0) for arm in QUICK
    }
