"""Do the scores predict the gains? On records made by hand, and on those that are committed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from workbench.core import WorkbenchError
from workbench.records import dumps
from workbench.studies import prediction
from workbench.studies.arms import TRUTH
from workbench.studies.credit_table import read
from workbench.viz.comparison import scatter

ARMS = [arm.name.removeprefix("truth-") for arm in TRUTH]
NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "04_true_credit.ipynb"


def leave(root: Path, arm: str, seed: int, right: list[int], samples=10, early=None) -> None:
    """A record: how many of the samples are right on each problem; ``early``: after 10 updates."""
    folder = root / f"{arm}-3m-seed{seed}"
    folder.mkdir(parents=True)
    avg = float(np.mean(right) / samples)
    test = {"avg": avg, "low": avg, "high": avg, "length": 9.0, "samples": samples, "pass_at": {}}
    record = {
        "arm": {"name": arm, "model": "3m", "task": "arithmetic"},
        "seed": seed,
        "seconds": 1.0,
        "distinct": 1.0,
        "test": test,
        "counts": {f"p{i}": [n, n, 0, 0, 0, 0] for i, n in enumerate(right)},
    }
    (folder / "evaluation.json").write_text(dumps(record))
    if early is not None:
        rows = [{"step": step, "generated": 5} for step in range(11)]
        for row, value in ((rows[0], 0.5), (rows[10], early)):
            row |= {"eval_avg": value, "eval_low": 0, "eval_high": 1}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    """What was written beforehand, and no run."""
    for name in ("prediction.md", "seed1.json", "lead-3m.json"):
        shutil.copy(prediction.HERE / name, tmp_path / name)
    for seed in range(3):
        leave(tmp_path / "base", "base", seed, [4, 6])
    return tmp_path


def words(folder: Path) -> str:
    return prediction.in_words(folder, folder / "base")


def test_no_run_and_no_prediction_are_said(folder):
    assert words(folder) == "No run yet."
    assert (prediction.outcome(folder, folder / "base").seeds == 0).all()
    text = (folder / "prediction.md").read_text()
    (folder / "prediction.md").write_text(text.replace("| truth-rosd |", "| rosd |"))
    with pytest.raises(WorkbenchError, match="says nothing of rosd"):
        prediction.written(folder)


def test_gains_and_intervals_by_hand(folder):
    """Of one seed over its problems, of several by Student; an arm without a run has none."""
    leave(folder / "runs", "truth-grpo", 0, [6, 10], early=0.75)
    leave(folder / "runs", "truth-sdpo", 0, [8, 8])
    leave(folder / "runs", "truth-sdpo", 1, [9, 9])
    leave(folder / "runs", "truth-sdpo", 2, [10, 10])
    leave(folder / "runs", "truth-rlsd", 7, [10, 10])  # of a seed that the base lacks
    table = prediction.outcome(folder, folder / "base")
    one, three = table.loc["grpo"], table.loc["sdpo"]
    assert one.seeds == 1 and one.gain == pytest.approx(0.3) and one.early == pytest.approx(0.25)
    assert (one.low, one.high) == pytest.approx((0.2, 0.4))  # of its two problems
    # gains .3, .4, .5: Student's 4.303 with 2 degrees of freedom; within a seed the two problems
    # differ by .2, so a seed's mean is known to .1, and the seeds' spread is .1, too
    assert three.seeds == 3 and three.right == pytest.approx(0.9)
    assert three.gain == pytest.approx(0.4)
    assert three.high - three.gain == pytest.approx(4.3027 * 0.1 / np.sqrt(3), rel=1e-3)
    assert table.loc["rlsd"].seeds == 0 and np.isnan(table.loc["rlsd"].gain)
    assert words(folder).startswith("2 of 16 arms have runs, of 1 and 3 seeds each.")


@pytest.mark.parametrize("score", prediction.SCORES)
def test_gains_in_the_order_of_a_score_are_found(folder, score):
    """And the two that are meant to lose, where they win, are named."""
    order = prediction.written(folder)[score].rank(method="first").astype(int)
    for arm in ARMS:
        for seed in range(3):
            leave(folder / "runs", f"truth-{arm}", seed, [order[arm] + 2] * 2, samples=20)
    for seed in range(3):
        path = folder / "base" / f"base-3m-seed{seed}"
        shutil.rmtree(path)
        leave(folder / "base", "base", seed, [1, 1])
    text = words(folder)
    table = prediction.outcome(folder, folder / "base")
    value, low, high = prediction.rank_correlation(prediction.gainers(table), score)
    assert value > 0.95 and low > 0.8 and high <= 1 + 1e-9
    assert f"By what was written beforehand: {score} predicts better." in text
    assert "1. Sign: wrong for antisd, credit" in text


def test_gains_against_both_scores_predict_nothing(folder):
    scores = prediction.written(folder)
    order = (-scores[list(prediction.SCORES)].rank().sum(axis=1)).rank(method="first")
    for arm in ARMS:
        leave(folder / "runs", f"truth-{arm}", 0, [int(order[arm]) // 2 + 1] * 2)
    text = words(folder)
    assert "neither cosine nor gradient reaches 0.4, so neither predicts" in text
    assert "Sign: wrong for antisd, credit" in text and "missed" in text


def test_alike_arms_are_not_told_apart(folder):
    rng = np.random.default_rng(0)
    for arm in ARMS[:6]:
        for seed in range(3):
            leave(folder / "runs", f"truth-{arm}", seed, rng.integers(4, 10, 30).tolist())
    apart, pairs = prediction.told_apart(ARMS[:6], folder)
    assert pairs == 15 and apart <= 2
    for seed in range(3):
        shutil.rmtree(folder / "runs" / f"truth-{ARMS[0]}-3m-seed{seed}")
        leave(folder / "runs", f"truth-{ARMS[0]}", seed, [0] * 30)
    assert prediction.told_apart(ARMS[:6], folder)[0] >= 5


def test_the_rank_correlation_is_spearmans_with_ties_and_repeated_arms():
    rng = np.random.default_rng(1)
    for _ in range(20):
        x, y = rng.integers(0, 5, (2, 9)).astype(float)
        counts = rng.integers(0, 4, 9).astype(float)
        repeated = [np.repeat(values, counts.astype(int)) for values in (x, y)]
        ours = prediction._spearman(counts[None], x, y)[0]
        assert ours == pytest.approx(spearmanr(*repeated).statistic)
    table = pd.DataFrame({"cosine": [1, 2, np.nan], "gain": [1, 2, 3]})
    assert np.isnan(prediction.rank_correlation(table, "cosine")).all()


def test_an_interval_of_the_correlation_covers():
    """Of 14 arms out of many whose rank correlation is known."""
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(150):
        x = rng.standard_normal(14)
        table = pd.DataFrame({"cosine": x, "gain": 0.8 * x + 0.6 * rng.standard_normal(14)})
        _, low, high = prediction.rank_correlation(table, "cosine")
        inside += low <= 6 / np.pi * np.arcsin(0.8 / 2) <= high
    assert 0.85 < inside / 150 < 0.995


# ---- the committed records


def test_what_was_written_is_what_was_measured():
    """prediction.md against seed1.json; RLCSD was rebuilt after, and its row stayed."""
    table, scored = prediction.written(), read(prediction.HERE / "seed1.json")["methods"]
    assert set(table.index) == set(ARMS)
    for arm in TRUTH:
        name = arm.name.removeprefix("truth-")
        measured = scored[prediction._scored_as(arm)]
        for score in prediction.SCORES:
            same = table[score][name] == pytest.approx(measured[score][0], abs=0.0051)
            assert same == (name != "rlcsd")


def test_the_picture_draws_the_records():
    table = prediction.outcome().dropna(subset="gain")
    figure = scatter(table, {"cosine": "cosine", "gradient": "gradient"}, "gain")
    for axes_row, score in zip(np.reshape(figure.axes, (2, 2)).T, prediction.SCORES):
        named, points = {}, set()
        for axes in axes_row:
            named |= {text.get_text(): tuple(text.xy) for text in axes.texts}
            marks = [line for line in axes.lines if line.get_marker() == "o"]
            points |= {tuple(line.get_xydata()[0]) for line in marks}
        assert set(named) == set(table.index) and set(named.values()) == points
        for name, place in named.items():
            assert place == (table[score][name], table.gain[name])


def test_the_notebook_says_what_the_records_say():
    """Made again where runs were added: python notebooks/execute.py."""
    saved = []
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", ()):
            saved.append("".join(output.get("text", "")))
    assert prediction.in_words() in "\n".join(saved)
