"""A committed run can be made again: its first steps, from its own configuration."""

from pathlib import Path

import pytest
from workbench.methods.grpo import GRPO
from workbench.policy import Learner, Optimiser, load_policy
from workbench.records import read_run
from workbench.tasks import load_task
from workbench.train import Plan, fit

ROOT = Path(__file__).parent.parent
STEPS = 2


def test_the_first_steps_of_a_committed_run_come_out_again(tmp_path):
    run = read_run(ROOT / "data" / "runs" / "grpo-3m-seed0")
    config = run.config
    plan = Plan(**{**config["plan"], "steps": STEPS, "eval_every": 0})
    learner = Learner(load_policy(ROOT / config["model"]), Optimiser(**config["optimiser"]), lora=config["lora"], seed=plan.seed)
    again = read_run(fit(GRPO(**config["options"]), learner, load_task(config["task"]), plan, tmp_path / "run", progress=False)).metrics
    recorded = run.metrics[:STEPS]
    # Sums in another order (threads, another processor) may flip the draw of a token now and then: a rollout or two of 128.
    for name, tolerance in {"correct": 2 / 128, "length": 0.2, "entropy": 3e-3, "contrast": 1 / 16, "grad_norm": 0.02}.items():
        assert list(again[name]) == pytest.approx(list(recorded[name]), abs=tolerance), name
