"""A run watched as it is trained: stop() and patience end it, and what was made is kept."""

from __future__ import annotations

import signal
import sys

import pytest
import toys

from workbench.core import Group, Interrupted, Problem, Rollout, StepRecord, Verdict
from workbench.methods.grpo import GRPO
from workbench.model.learner import Learner, OptimConfig
from workbench.records import read_run
from workbench.training.run import TrainConfig, fit
from workbench.viz.live import LiveRun


@pytest.fixture(autouse=True)
def _interrupts():
    """As at a terminal: what starts tests in the background has them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


PLAN = TrainConfig(steps=6, prompts=2, eval_every=2, eval_problems=4, eval_samples=2)
TASK = toys.FirstCharacter(toys.HALF)


def record(step: int, average: float | None = None, groups=()) -> StepRecord:
    metrics = {"correct": 0.25, "generated": 100.0}
    return StepRecord(step, metrics | ({} if average is None else {"eval_avg": average}), groups)


def trained(out, writer, **more):
    learner = Learner(toys.tiny_policy(), OptimConfig(lr=1e-3))
    return fit(GRPO(k=2), learner, TASK, PLAN, out, writers=[writer], progress=False, **more)


class Stopper(LiveRun):
    """Somebody asks it to stop in the step ``at``."""

    at = 2

    def write(self, record):
        if record.step == self.at:
            self.stop()
        super().write(record)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    whole = read_run(trained(tmp_path / "whole", LiveRun(6)))
    with pytest.raises(Interrupted, match="3 of 6 steps"):
        trained(tmp_path / "run", Stopper(6))
    assert len(read_run(tmp_path / "run").metrics) == 3
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)  # in a notebook the run comes back
    with pytest.warns(UserWarning, match="goes on"):
        stopper = Stopper(6)
        stopper.at = 4
        assert trained(tmp_path / "run", stopper, resume=True) == tmp_path / "run"
    resumed = read_run(trained(tmp_path / "run", LiveRun(6), resume=True))
    assert resumed.metrics["correct"].tolist() == whole.metrics["correct"].tolist()


@pytest.mark.parametrize(
    "averages, patience, stopped_at",
    [
        ((0.1, 0.3, 0.2, 0.3, 0.4), 2, 3),  # as good is no better
        ((0.1, 0.3, 0.2, 0.31, 0.3), 2, None),
        ((0.3, 0.2, 0.1), 1, 1),
        ((0.3, 0.2, 0.1), 0, None),
        ((0.0, 0.0, 0.0), 2, 2),
    ],
)
def test_patience(averages, patience, stopped_at):
    live = LiveRun(100, stop_after=patience)
    for step, average in enumerate(averages):
        if step == stopped_at:
            with pytest.raises(KeyboardInterrupt):
                live.write(record(step, average))
            return
        live.write(record(step, average))
    assert stopped_at is None


def test_what_is_shown():
    live = LiveRun(10)
    rollout = Rollout((1,), (2,), (-1.0,), "<script>alert(1)</script>", Verdict(0.0, False))
    group = Group(Problem("q", ({"role": "user", "content": "<b>?"},), "1"), (rollout,))
    live.write(record(0, 0.125, (group,)))
    for step in range(1, 5):
        live.write(record(step))
    page = live.html(8.0)
    # 4 steps of 100 tokens in 8 seconds, 5 more to come
    for words in (
        "step 5 of 10",
        "correct 0.25",
        "50 tokens a second",
        "10 s left",
        "0.125 (step 0)",
    ):
        assert words in page
    assert "<script" not in page and "<b>?" not in page and "✗" in page
    assert page.count("<circle") == 1 and page.count(",") >= 5
