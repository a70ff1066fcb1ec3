"""The browser over runs: what it is given, its page without a kernel, and a real Chromium on a run
of 300 groups.
"""

from __future__ import annotations

import base64
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_browser import MOUNT, browser, wait  # noqa: F401  (a fixture)

from workbench.core import Group, Problem, Rollout, Verdict, WorkbenchError
from workbench.paths import FIRST_STUDY
from workbench.records import Run, read_run
from workbench.viz import run_view
from workbench.viz.run_view import HERE, NONE, RunView

HOSTILE = "</script><img src=x onerror=alert(1)>"


def decode(token: int) -> str:
    return {7: "\n", 8: HOSTILE}.get(token, f"w{token} ")


def run(groups: int, rollouts: int, tokens: int, name: str = "big", steps: int = 20) -> Run:
    """Groups over steps; a problem comes back every fourth step."""
    rng = np.random.default_rng(0)
    ids = tuple(rng.integers(0, 2000, tokens).tolist())
    logprobs = tuple(rng.normal(-1, 0.1, tokens).tolist())
    credit = [rng.normal(0, 1, tokens).tolist() for _ in range(rollouts)]
    kept = []
    for i in range(groups):
        rewards = [float((i + j) % 3 == 0) for j in range(rollouts)]
        problem = Problem(f"problem {i % 60}", ({"role": "user", "content": HOSTILE},), "1")
        made = [Rollout((1,), ids, logprobs, HOSTILE, Verdict(r, r > 0)) for r in rewards]
        kept.append((i * steps // groups, Group(problem, tuple(made)), credit))
    metrics = pd.DataFrame({"step": range(steps), "reward": np.linspace(0, 1, steps)})
    return Run(Path(name), {}, {}, metrics, tuple(kept))


# ---- what the browser gets


def test_numbers_and_tokens_come_back_from_their_strings():
    [item] = RunView(run(1, 2, 50), decode=decode).data["items"]
    view = RunView(run(1, 2, 50), decode=decode)
    _, group, credit = view.runs[0].groups[0]
    parts = np.frombuffer(base64.b64decode(item["numbers"]), "<i2")
    numbers = parts / 4096 * item["limit"]
    expected = np.concatenate(credit)
    within = np.abs(expected) < 7.9 * item["limit"]
    assert within.all() and np.abs(numbers - expected).max() < item["limit"] / 4096
    places = np.frombuffer(base64.b64decode(item["tokens"]), "<u2")
    shown = [view.data["texts"][place] for place in places[:50]]
    assert "".join(shown).replace("⏎\n", "\n") == "".join(
        map(decode, group.rollouts[0].completion_ids)
    )
    assert item["entropy"] == pytest.approx(-np.mean(group.rollouts[0].logprobs))
    assert item["reward"] == group.rewards.mean() and item["contrast"] == group.rewards.std()


def test_missing_numbers_and_unknown_verdicts_are_no_zeros():
    whole = run(1, 2, 5)
    step, group, _ = whole.groups[0]
    group = Group.from_texts.__func__(
        Group, group.problem, ["ab", "cd"], _Characters(), [float("nan"), 1.0]
    )
    kept = Run(whole.folder, {}, {}, pd.DataFrame(), ((step, group, [[], [None, 0.5]]),))
    [item] = RunView(kept, decode=chr).data["items"]
    parts = np.frombuffer(base64.b64decode(item["numbers"]), "<i2")
    assert parts.tolist()[:3] == [NONE] * 3 and item["reward"] is None and item["entropy"] is None
    assert [head[1] for head in item["rollouts"]] == ["?", "✓"]


class _Characters:
    def prompt_ids(self, messages):
        return (1,)

    def completion_ids(self, text):
        return tuple(map(ord, text))

    def decode(self, ids):
        return "".join(map(chr, ids))


@pytest.mark.parametrize("name", ["grpo-3m-seed0", "tapo-3m-seed0"])
def test_nothing_but_the_folder_is_needed(name, tmp_path):
    """The tokenizer is that of the model that the run began with; without any, texts are whole."""
    view = RunView(FIRST_STUDY / name)
    recorded = read_run(FIRST_STUDY / name)
    assert len(view.data["items"]) == len(recorded.groups)
    assert all(len(text) < 20 for text in view.data["texts"])
    elsewhere = tmp_path / "run"
    shutil.copytree(FIRST_STUDY / name, elsewhere)
    config = json.loads((elsewhere / "config.json").read_text())
    (elsewhere / "config.json").write_text(json.dumps({**config, "model": "not/here"}))
    alone = RunView(elsewhere)
    assert any("Answer" in text and "⏎" in text for text in alone.data["texts"])
    assert alone.to_html().startswith("<!doctype html>")


def test_a_run_without_groups_says_so(tmp_path):
    empty = Run(Path("x"), {}, {}, pd.DataFrame(), ())
    with pytest.raises(WorkbenchError, match="none of the runs has kept one"):
        RunView(empty)
    with pytest.raises(WorkbenchError, match="there is no run in"):
        RunView(tmp_path)


def test_a_run_that_goes_on_is_read_again(tmp_path):
    shutil.copytree(FIRST_STUDY / "grpo-3m-seed0", tmp_path / "run")
    path = tmp_path / "run" / "groups.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0])
    view = RunView(tmp_path / "run")
    assert len(view.data["items"]) == 1
    path.write_text("".join(lines[:3]) + lines[3][:50])  # the writer is in the middle of a line
    assert len(view.refresh().data["items"]) == 3


def test_a_live_view_follows_its_folder_by_itself_until_it_is_closed(tmp_path, monkeypatch):
    pytest.importorskip("anywidget")
    monkeypatch.setattr(run_view, "PAUSE", 0.02)
    shutil.copytree(FIRST_STUDY / "grpo-3m-seed0", tmp_path / "run")
    path = tmp_path / "run" / "groups.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0])
    view = RunView(tmp_path / "run")
    widget, page = view.widget, view.to_html()

    def groups_after(text: str) -> int:
        path.write_text(text)
        wait(lambda: view._written() == view._stamp, 10)
        return len(widget.data["items"])

    assert groups_after("".join(lines[:2])) == 2
    assert groups_after("".join(lines[:3]) + lines[3][:50]) == 3, "in the middle of a line"
    path.write_text("no group\n" + lines[0])
    time.sleep(0.2)
    assert len(widget.data["items"]) == 3, "what cannot be read is left out"
    assert groups_after("".join(lines[:4])) == 4
    assert page.count('"step":') < view.to_html().count('"step":'), "a page stays as it was"
    threads = threading.active_count()
    widget.close()
    wait(lambda: threading.active_count() < threads, 10)


# ---- in a browser


def opened(browser, view: RunView, path: Path):  # noqa: F811
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("dialog", lambda dialog: (page.problems.append(dialog.message), dialog.dismiss()))
    view.to_html(path)
    page.goto(path.as_uri())
    return page


@pytest.mark.browser
def test_choose_sort_filter_and_follow(browser, tmp_path):  # noqa: F811
    other = run(240, 2, 20, "other", steps=8)
    view = RunView(run(240, 2, 20, "one", steps=8), other, decode=decode)
    page = opened(browser, view, tmp_path / "runs.html")
    rows = page.locator(".wb-list button")
    assert rows.count() == 60 and page.locator(".wb-panes > section").count() == 2
    assert page.locator(".wb-q").first.text_content() == HOSTILE
    page.get_by_label("Step").evaluate("e => { e.value = 3; e.dispatchEvent(new Event('input')) }")
    assert "step 3" in page.locator(".wb-where").text_content()
    page.get_by_label("Show").select_option("none right")
    assert set(rows.locator("span:nth-child(3)").all_text_contents()) == {"0 of 2"}
    page.get_by_label("Show").select_option("all")
    page.get_by_label("Sort").select_option("reward")
    rewards = rows.locator("span:nth-child(4)").all_text_contents()
    assert rewards == sorted(rewards, reverse=True)
    page.get_by_label("Find").fill("problem 35")
    assert set(rows.locator("span:nth-child(2)").all_text_contents()) == {"problem 35"}
    rows.first.click()
    page.get_by_label("Follow this problem").check()
    steps = rows.locator("span:nth-child(1)").all_text_contents()
    assert {text.split()[0] for text in steps} == {"one", "other"} and len(steps) == 8
    page.wait_for_selector(".wb-body .wb-t")  # drawn once it is seen
    assert page.locator(".wb-body .wb-t").count() > 10 and page.problems == []
    page.close()


@pytest.mark.browser
def test_the_live_widget_takes_new_data_and_shows_text_as_text(browser, tmp_path):  # noqa: F811
    view = RunView(run(8, 2, 3000, steps=2), decode=decode)
    page = browser.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    page.set_content("<!doctype html><meta charset='utf-8'><body></body>")
    code = (HERE / "run_view.js").read_text()
    page.evaluate(MOUNT, [code, json.dumps(view.data), {"twin": "wb-twin-x"}])
    page.wait_for_selector(".wb-body .wb-t")
    shown = page.locator(".wb-body").first.text_content()
    ids = view.runs[0].groups[0][1].rollouts[0].completion_ids
    assert 8 in ids and shown.replace("⏎", "") == "".join(map(decode, ids))
    assert page.locator("img, .wb-body script").count() == 0
    page.get_by_label("Step").evaluate("e => { e.value = 1; e.dispatchEvent(new Event('input')) }")
    more = RunView(run(12, 2, 30, steps=4), decode=decode).data
    page.evaluate("data => model.set('data', data)", more)
    assert page.get_by_label("Step").get_attribute("max") == "3"
    assert "step 1" in page.locator(".wb-where").text_content()  # what was chosen stays
    page.get_by_label("Newest").check()
    assert "step 3" in page.locator(".wb-where").text_content()
    more = RunView(run(12, 2, 30, steps=6), decode=decode).data
    page.evaluate("data => model.set('data', data)", more)
    assert "step 5" in page.locator(".wb-where").text_content()  # or it follows
    page.evaluate("leave()")
    assert problems == []
    page.close()


@pytest.mark.slow
@pytest.mark.browser
def test_a_large_run_stays_usable(browser, tmp_path):  # noqa: F811
    """300 groups of 8 rollouts of 1,000 tokens: first paint under 2 s, a step under .3 s."""
    view = RunView(run(300, 8, 1000), decode=decode)
    began = time.perf_counter()
    path = tmp_path / "large.html"
    view.to_html(path)
    making = time.perf_counter() - began
    page = opened(browser, view, path)
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
    first = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    page.wait_for_selector(".wb-body .wb-t")
    ready = page.evaluate("performance.now()")
    move = """async (step) => {
      const slider = document.querySelector('input[type=range]'), began = performance.now();
      slider.value = step; slider.dispatchEvent(new Event('input'));
      const frame = () => new Promise(requestAnimationFrame);
      await frame();
      await frame();
      await new Promise((done) => setTimeout(done));
      return performance.now() - began;
    }"""
    moves = [page.evaluate(move, step) for step in (5, 1, 19, 10)]
    heap = page.evaluate("performance.memory.usedJSHeapSize") / 2**20
    drawn = page.locator(".wb-body .wb-t").count()
    size = path.stat().st_size / 2**20
    print(
        f"page {size:.0f} MB made in {making:.1f} s; first paint {first:.0f} ms, tokens at "
        f"{ready:.0f} ms; steps {[round(m) for m in moves]} ms; {heap:.0f} MB of JavaScript; "
        f"{drawn} elements of tokens"
    )
    assert first < 2000 and np.median(moves) < 300 and page.problems == []
    assert drawn < 8 * 1000 and heap < 200
    page.close()
