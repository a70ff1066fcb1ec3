"""The tour: it runs twice, its page says what its run recorded, and bad places are refused before
the work begins.
"""

import re
from html.parser import HTMLParser

import pytest

from workbench.app.tour import tour
from workbench.core import Problem, WorkbenchError
from workbench.evaluation.metrics import evaluate
from workbench.model.loading import load_policy
from workbench.records import read_run
from workbench.rollouts import sampling
from workbench.tasks import load_task

SMALL = {
    "steps": 2,
    "problems": 6,
    "samples": 3,
    "k": 4,
    "prompts": 2,
    "eval_every": 1,
    "eval_problems": 2,
    "eval_samples": 2,
    "progress": False,
}


class Text(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


def test_tour_twice(tiny_folder, tmp_path, capsys):
    out = tmp_path / "new" / "tour.html"
    tour(out, model=str(tiny_folder), **SMALL)
    first = out.read_text()
    assert tour(out, model=str(tiny_folder), **SMALL) == out.parent / "runs" / "tour-2"
    assert sorted(p.name for p in out.parent.iterdir()) == ["runs", "tour.html"], (
        "nothing half-written is left"
    )
    assert sorted(p.name for p in (out.parent / "runs").iterdir()) == ["tour-1", "tour-2"]
    assert "runs/tour-1" in first and "runs/tour-2" in out.read_text()
    run = read_run(out.parent / "runs" / "tour-2")
    assert (
        run.metrics["step"].tolist() == [0, 1]
        and run.config["method"] == "GRPO"
        and run.config["plan"]["seed"] == 0
    )
    page = Text(first)
    assert "script" not in page.tags and not re.search(r"https?://|@import", first)
    assert f"{int(run.metrics['generated'].sum()):,} tokens in all" in page.text, (
        "the same seed, so the same run"
    )
    printed = capsys.readouterr().out
    assert printed.count("correct (avg@3, 95 % interval)") == 2 and "runs/tour-2" in printed


def test_numbers_are_those_of_the_evaluation(tiny_folder, tmp_path):
    tour(tmp_path / "a.html", model=str(tiny_folder), **SMALL)
    task = load_task("arithmetic")
    result = evaluate(load_policy(tiny_folder), task, task.problems("test", 6, 0), 3, 0)
    text = Text((tmp_path / "a.html").read_text()).text
    assert f"{result.avg:.3f} [{result.low:.3f}, {result.high:.3f}]" in text
    after = evaluate(
        load_policy(tmp_path / "runs" / "tour-1" / "model"), task, task.problems("test", 6, 0), 3, 0
    )
    assert f"length, tokens{result.length:.1f}{after.length:.1f}" in text


def test_without_contrast_the_page_says_that_nothing_was_learned(tiny_folder, tmp_path):
    tour(tmp_path / "a.html", model=str(tiny_folder), **SMALL)
    text = Text((tmp_path / "a.html").read_text()).text
    assert "No recorded group had contrast" in text and "100 % of this run’s groups" in text
    assert "No change can be told from chance" in text and "It got better" not in text


def test_with_contrast_the_page_works_a_group(tiny_folder, tmp_path, monkeypatch):
    """The rollouts of half the seeds are made right, so that every group is likely to have
    contrast.
    """
    problems: dict[tuple, Problem] = {}
    sampled, generate = sampling.sample_groups, sampling.generate

    def some_right(policy, prompts, seeds, **how):
        samples = generate(policy, prompts, seeds, **how)
        for prompt, row in zip(prompts, samples):
            for j in range(0, len(row), 2):
                ids = policy.completion_ids(problems[prompt].solutions[0])
                row[j] = sampling.Sample(ids, (-0.5,) * len(ids), True)
        return samples

    def remember(policy, task, asked, *args, **how):
        problems.update({policy.prompt_ids(p.messages): p for p in asked})
        return sampled(policy, task, asked, *args, **how)

    monkeypatch.setattr(sampling, "generate", some_right)
    for module in ("rollouts.sampling", "methods.grpo", "evaluation.metrics"):
        monkeypatch.setattr(f"workbench.{module}.sample_groups", remember)
    tour(tmp_path / "a.html", model=str(tiny_folder), **SMALL)
    text = Text((tmp_path / "a.html").read_text()).text
    _, group, credit = read_run(tmp_path / "runs" / "tour-1").groups[0]
    assert group.rewards.tolist() == [1, 0, 1, 0]
    assert {round(c) for row in credit for c in row} == {1, -1}
    assert (
        "A group from step 0. 2 of 4 rollouts have reward 1: the mean is 0.500 and the "
        "standard deviation 0.500."
    ) in text
    assert "reward 1 gets +1.00, a rollout with reward 0 gets −1.00" in text


@pytest.mark.parametrize("place", ["folder", "file/tour.html"])
def test_bad_places_are_refused_before_the_work(tiny_folder, tmp_path, place, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(
        "workbench.rollouts.sampling.sample_groups", lambda *a, **k: pytest.fail("the work began")
    )
    with pytest.raises(WorkbenchError, match="folder" if place == "folder" else "could not write"):
        tour(tmp_path / place, model=str(tiny_folder), **SMALL)


def test_unknown_model_is_one_sentence(tmp_path):
    with pytest.raises(WorkbenchError, match="there is no model in data/organism/none"):
        tour(tmp_path / "a.html", model="data/organism/none", **SMALL)
    assert not list(tmp_path.iterdir())
