"""TensorBoard, trackio and W&B through one writer: what each is told, also by a resumed run; the
packages themselves where they are installed, without a network.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from workbench.app.cli import main
from workbench.core import StepRecord, WorkbenchError
from workbench.exchange.trackers import Tracker


def told(tracker: Tracker, *steps: int) -> None:
    for step in steps:
        tracker.write(StepRecord(step, {"reward": step / 2, "correct": float("nan")}, (), ()))
    tracker.end()


@pytest.fixture
def out(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"method": "GRPO", "plan": {"steps": 3}}')
    return tmp_path / "run"


class Run:
    """A stand-in for a run of W&B's or trackio's, or a SummaryWriter."""

    def __init__(self, *place, **about):
        self.place, self.about, self.lines, self.ended = place, about, [], 0

    def log(self, metrics, step):
        self.lines.append((step, metrics["reward"]))

    def add_scalar(self, name, value, step):
        self.lines += [(step, value)] * (name == "reward")

    def flush(self):
        pass

    def finish(self):
        self.ended += 1

    close = finish


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_run_goes_on_under_its_name(out, monkeypatch, name):
    runs = []

    def begun(*place, **about):
        runs.append(Run(*place, **about))
        return runs[-1]

    fake = SimpleNamespace(init=begun, SummaryWriter=begun)
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, module, fake)
    for steps in ((0, 1, 2), (2, 3), (0,)):  # resumed from step 2; made again from the start
        told(Tracker(name, out), *steps)
    assert [run.lines for run in runs] == [[(0, 0), (1, 0.5), (2, 1)], [(2, 1), (3, 1.5)], [(0, 0)]]
    assert [run.ended for run in runs] == [1, 1, 1]
    if name == "tensorboard":
        assert [run.about["purge_step"] for run in runs] == [0, 2, 0]
        assert {run.place for run in runs} == {(str(out / "tensorboard"),)}
        return
    first, second, third = (run.about["name"] for run in runs)
    assert first == second != third and first.startswith("run-")
    assert runs[0].about["config"]["method"] == "GRPO" and runs[1].about["resume"] == "allow"
    assert name == "trackio" or [run.about["id"] for run in runs] == [first, second, third]


def test_nothing_is_opened_before_there_is_a_run(out, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: pytest.fail()))
    Tracker("wandb", out).end()


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_what_is_absent_is_said_in_a_sentence_before_anything_is_loaded(
    tmp_path, monkeypatch, capsys, name
):
    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None
    )
    words = ["train", "grpo", "--model", "nowhere", "--log", name, "--out", str(tmp_path / "r")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said == f"workbench: {name} is not installed: pip install {name}\n"
    assert not list(tmp_path.iterdir())


def test_an_unknown_name():
    with pytest.raises(WorkbenchError, match="no tracker 'mlflow'; there are tensorboard, trackio"):
        Tracker("mlflow", "out")


# ---- the packages themselves


def test_tensorboard_reads_it_back(out):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told(Tracker("tensorboard", out), 0, 1, 2)
    told(Tracker("tensorboard", out), 2, 3)
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward")] == [
        (0, 0),
        (1, 0.5),
        (2, 1),
        (3, 1.5),
    ]


def test_trackio_reads_it_back(out, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    told(Tracker("trackio", out), 0, 1, 2)
    told(Tracker("trackio", out), 2, 3)
    [run] = SQLiteStorage.get_runs("workbench")
    lines = SQLiteStorage.get_logs("workbench", run)
    rewards = {line["step"]: line["reward"] for line in lines if "reward" in line}
    assert rewards == {0: 0, 1: 0.5, 2: 1, 3: 1.5}
    assert run == (out / "trackio.txt").read_text()


def test_wandb_writes_its_files_offline(out, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    told(Tracker("wandb", out), 0, 1)
    [file] = (out / "wandb").glob("offline-run-*/*.wandb")
    assert (out / "wandb.txt").read_text() in file.name and file.stat().st_size > 0
