"""A run watched as it is trained: stop() and patience end it, and what was made is kept."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import toys
from test_browser import MOUNT, browser, lab, wait  # noqa: F401  (a fixture)

from workbench.core import Group, Interrupted, Problem, Rollout, StepRecord, Verdict, WorkbenchError
from workbench.methods.grpo import GRPO
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.records import read_run
from workbench.training import run
from workbench.training.run import TrainConfig, fit
from workbench.viz import live
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


def trained(out, writer, plan=PLAN, **more):
    learner = Learner(toys.tiny_policy(), OptimConfig(lr=1e-3))
    return fit(GRPO(k=2), learner, TASK, plan, out, writers=[writer], progress=False, **more)


class Stopper(LiveRun):
    """Somebody asks it to stop in the step ``at``."""

    at = 2

    def write(self, record):
        if record.step == self.at:
            self.stop()
        super().write(record)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    whole = read_run(trained(tmp_path / "whole", LiveRun()))
    with pytest.raises(Interrupted, match="3 of 6 steps"):
        trained(tmp_path / "run", Stopper())
    assert len(read_run(tmp_path / "run").metrics) == 3
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)  # in a notebook the run comes back
    with pytest.warns(UserWarning, match="goes on"):
        stopper = Stopper()
        stopper.at = 4
        assert trained(tmp_path / "run", stopper, resume=True) == tmp_path / "run"
    assert (tmp_path / "run" / "model").is_dir(), "with the policy so far"
    resumed = read_run(trained(tmp_path / "run", LiveRun(), resume=True))
    assert resumed.metrics["correct"].tolist() == whole.metrics["correct"].tolist()


def test_what_is_shown():
    shown = LiveRun()
    shown.begin(TrainConfig(steps=10))
    rollout = Rollout((1,), (2,), (-1.0,), "<script>alert(1)</script>", Verdict(0.0, False))
    group = Group(Problem("q", ({"role": "user", "content": "<b>?"},), "1"), (rollout,))
    shown.write(record(0, 0.125, (group,)))
    for step in range(1, 5):
        shown.write(record(step))
    page = shown.html(4, 8.0)
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
    assert page.count("<circle") == 1 and page.count("<polyline") == 1


# ---- patience ------------------------------------------------------------------------------------


@pytest.fixture
def averages(monkeypatch):
    """``averages(0.1, 0.3)``: what the evaluations find, one every second step."""
    real, now = run._step, []

    def step(*arguments):
        now[:] = arguments[-1:]
        return real(*arguments)

    def script(*values: float):
        monkeypatch.setattr(run, "_step", step)
        monkeypatch.setattr(
            run, "evaluate_now", lambda learner, exams: {"eval_avg": values[(now[0] + 1) // 2]}
        )

    return script


@pytest.mark.parametrize(
    "values, patience, made",
    [
        ((0.1, 0.3, 0.2, 0.3, 0.4, 0.4), 2, 7),  # as good is no better
        ((0.1, 0.3, 0.2, 0.31, 0.3, 0.4), 2, 10),
        ((0.3, 0.2, 0.1, 0.1, 0.1, 0.1), 1, 3),
        ((0.3, 0.2, 0.1, 0.1, 0.1, 0.1), 0, 10),
        ((0.0, 0.0, 0.0, 0.0, 0.0, 0.0), 2, 5),
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.4), 1, 10),  # after the last step there is nothing to stop
    ],
)
def test_patience(tmp_path, averages, recwarn, values, patience, made):
    averages(*values)
    plan = replace(PLAN, steps=10, stop_after=patience)
    shown = LiveRun()
    out = trained(tmp_path / "run", shown, plan)
    lines = read_run(out)
    assert len(lines.metrics) == made and (out / "model").is_dir()
    said = [str(w.message) for w in recwarn if "evaluations in a row" in str(w.message)]
    assert len(said) == (made < 10) and lines.config["plan"]["stop_after"] == patience
    if said:
        assert f"no better than {max(values[:2]):.3g}: {patience}." in said[0]
        assert said[0][:20] in shown.warning


@pytest.mark.filterwarnings("ignore:stopped")
@pytest.mark.parametrize("killed", [1, 3, 4])
def test_a_run_out_of_patience_is_the_same_if_it_was_killed_meanwhile(tmp_path, averages, killed):
    averages(0.1, 0.3, 0.2, 0.3, 0.4, 0.5)
    plan = replace(PLAN, steps=10, stop_after=2, checkpoint_every=2)
    whole = trained(tmp_path / "whole", LiveRun(), plan)
    stopper = Stopper()
    stopper.at = killed
    with pytest.raises(Interrupted):
        trained(tmp_path / "run", stopper, plan)
    for _ in range(2):  # resumed once more it makes no further step
        out = trained(tmp_path / "run", LiveRun(), plan, resume=True)
        pair = [read_run(folder).metrics for folder in (out, whole)]
        timeless = [m[[c for c in m if not c.startswith("seconds")]] for m in pair]
        assert timeless[0].equals(timeless[1])
        assert (out / "groups.jsonl").read_text() == (whole / "groups.jsonl").read_text()
    policies = [load_policy(folder / "model").model.state_dict() for folder in (whole, out)]
    assert all(bool((a == b).all()) for a, b in zip(*map(dict.values, policies)))
    patient = trained(tmp_path / "run", LiveRun(), replace(plan, stop_after=0), resume=True)
    assert len(read_run(patient).metrics) == 10


# ---- in a real JupyterLab ------------------------------------------------------------------------

TRAIN = """
import sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from test_live import *
class Slow(LiveRun):
    def write(self, record):
        super().write(record)
        time.sleep(0.3)
plan = TrainConfig(steps=1000, prompts=2, eval_every=2, eval_problems=4, eval_samples=2)
out = trained({out!r}, Slow(), plan)
print("back with", len(read_run(out).metrics), "steps,", (out / "model").is_dir())
"""


@pytest.mark.browser
def test_the_stop_button_in_jupyterlab_leaves_a_run_that_resumes(browser, tmp_path):  # noqa: F811
    """The cell is running when the button is pressed; cells that wait behind it run."""
    pytest.importorskip("jupyterlab")
    tests = Path(__file__).parent
    code = TRAIN.format(root=str(tests.parent), tests=str(tests), out=str(tmp_path / "run"))
    after = f"open({str(tmp_path / 'after')!r}, 'w').write('yes')"
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(text) for text in (code, after)],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
    )
    nbformat.write(notebook, tmp_path / "train.ipynb")
    with lab(tmp_path, tmp_path / "train.ipynb") as address:
        page = browser.new_page(viewport={"width": 1200, "height": 1400})
        try:
            with page.expect_websocket(lambda socket: "/channels" in socket.url, timeout=90_000):
                page.goto(address)  # before that a run asks for a kernel
            page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(
                timeout=90_000
            )
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_text("Run All Cells", exact=True).click()
            metrics = tmp_path / "run" / "metrics.jsonl"
            best = tmp_path / "run" / "best"
            wait(lambda: len(metrics.read_text().splitlines()) > 4 and best.is_dir(), 120)
            output = page.locator(".jp-OutputArea-output")
            assert output.get_by_text("tokens a second").is_visible()
            assert output.get_by_text("The newest group.").is_visible()
            page.locator("button.wb-stop").click()
            output.get_by_text("back with").wait_for(timeout=60_000)
            shown = "\n".join(output.all_text_contents())
            assert "Traceback" not in shown and "the run goes on from there" in shown
            wait((tmp_path / "after").exists, 20)
            assert page.locator("button.wb-stop").count() == 0, "nothing is left to stop"
        finally:
            page.screenshot(path=tmp_path / "live.png")
            page.close()
    made = len(read_run(tmp_path / "run").metrics)
    assert f"back with {made} steps, True" in shown and best.is_dir()
    plan = replace(PLAN, steps=made + 1, eval_problems=4)
    with pytest.raises(WorkbenchError, match="other settings"):
        trained(tmp_path / "run", LiveRun(), replace(plan, seed=1), resume=True)
    assert (
        len(read_run(trained(tmp_path / "run", LiveRun(), plan, resume=True)).metrics) == made + 1
    )


@pytest.mark.browser
def test_where_a_page_has_no_connection_to_the_kernel_the_button_says_what_to_press(browser):  # noqa: F811
    page = browser.new_page()
    page.set_content("<!doctype html><body></body>")
    code = Path(live.__file__).with_name("stop.js").read_text()
    page.evaluate(MOUNT, [code, "{}", {}])
    page.get_by_role("button").click()
    assert "the notebook's own stop button" in page.get_by_role("status").text_content()
    assert page.get_by_role("button").is_enabled()
    page.close()
