"""Tables, curves and paired differences from hand-made records, by hand."""

import json

import numpy as np
import pytest

from workbench.core import WorkbenchError
from workbench.evaluation.statistics import holm, student
from workbench.studies import ledger
from workbench.viz import comparison


def write(root, arm, seed, counts, *, samples=4, metrics=(), model="3m"):
    """counts: problem -> (right, direct, reflecting, effective, needless, spoiled)."""
    folder = root / f"{arm}-{model}-seed{seed}"
    folder.mkdir(parents=True)
    avg = float(np.mean([row[0] / samples for row in counts.values()]))
    test = {
        "samples": samples,
        "avg": avg,
        "low": avg,
        "high": avg,
        "length": 10.0,
        "pass_at": {"1": avg, "4": 1.0},
    }
    record = {
        "arm": {"name": arm, "model": model, "task": "arithmetic"},
        "seed": seed,
        "test": test,
        "harder": {"avg": 0.1},
        "distinct": 1.0,
        "recovery": {"value": 0.25},
        "skills": {"reference": [0.9, 0.8, 1.0]},
        "seconds": 1.0,
        "counts": counts,
    }
    (folder / "evaluation.json").write_text(json.dumps(record))
    if metrics:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return folder


def rows(*right):
    return {f"p{i}": (r, r, 0, 0, 0, 0) for i, r in enumerate(right)}


def test_an_effect_is_the_mean_of_the_paired_differences(tmp_path):
    for seed in (0, 1):
        write(tmp_path, "a", seed, rows(4, 2, 4, 3))
        write(tmp_path, "b", seed, rows(2, 2, 2, 1))
    found = ledger.effect("a", "b", root=tmp_path)
    assert found.mean == pytest.approx((2 + 0 + 2 + 2) / 16)
    assert found.low <= found.mean <= found.high
    assert (found.seeds, found.problems, found.above) == (2, 8, 2)
    assert (
        ledger.effect("b", "a", root=tmp_path).mean,
        ledger.effect("b", "a", root=tmp_path).above,
    ) == (-found.mean, 0)
    # every problem is solved at least once by both
    assert ledger.effect("a", "b", "pass@4", root=tmp_path).mean == 0


def test_pairing_is_by_problem_and_not_by_place(tmp_path):
    for seed in (0, 1):
        write(tmp_path, "a", seed, {"p": (4,) + (0,) * 5, "q": (1,) + (0,) * 5})
        write(tmp_path, "b", seed, {"q": (1,) + (0,) * 5, "p": (4,) + (0,) * 5})
    found = ledger.effect("a", "b", root=tmp_path)
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, pytest.approx(1))


def test_students_distribution_against_the_tables():
    for freedom, edge in {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 30: 2.042}.items():
        reach, p = student(edge, freedom)
        assert reach == pytest.approx(edge, abs=2e-3) and p == pytest.approx(0.05, abs=1e-4)
    assert student(0.0, 4)[1] == pytest.approx(1) and student(np.inf, 4)[1] == pytest.approx(
        0, abs=1e-9
    )
    assert student(-2.0, 2)[1] == pytest.approx(0.1835, abs=1e-4)


def test_the_interval_is_over_the_means_of_the_seeds():
    # mean .1, standard error .1 / sqrt 3
    found = ledger.paired([np.full(50, 0.0), np.full(50, 0.1), np.full(50, 0.2)])
    assert (found.low, found.high) == (
        pytest.approx(0.1 - 4.303 * 0.1 / 3**0.5, abs=1e-3),
        pytest.approx(0.1 + 4.303 * 0.1 / 3**0.5, abs=1e-3),
    )
    assert found.p == pytest.approx(0.2254, abs=1e-3) and found.above == 2
    certain = ledger.paired([np.full(50, 0.1)] * 3)
    assert (
        certain.low == pytest.approx(0.1)
        and certain.high == pytest.approx(0.1)
        and certain.p < 1e-6
    )
    one = ledger.paired([np.tile([0.0, 0.2], 25)])  # one seed: over its problems, and no p
    assert 0.06 < one.low < 0.09 and 0.11 < one.high < 0.14 and np.isnan(one.p)


def test_of_equals_one_in_twenty_is_called_different():
    rng = np.random.default_rng(0)
    wrong = sum(
        ledger.paired([rng.normal(0, 0.3, 40) for _ in range(3)]).p < 0.05 for _ in range(400)
    )
    assert 8 <= wrong <= 34  # 20 expected, sd 4.4


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_dsr_and_err_count_only_boundary_problems_of_all_arms(tmp_path):
    #                                right direct refl. effective needless spoiled
    write(
        tmp_path,
        "a",
        0,
        {"easy": (4, 4, 0, 0, 0, 0), "edge": (2, 1, 2, 1, 1, 1), "other": (1, 1, 0, 0, 0, 0)},
    )
    write(
        tmp_path,
        "b",
        0,
        {"easy": (3, 3, 0, 0, 0, 0), "edge": (3, 3, 0, 0, 0, 0), "other": (0, 0, 4, 0, 0, 0)},
    )
    found = ledger.reflection_rates(["a", "b"], root=tmp_path)
    assert found.loc["a", "dsr"].value == 1 / 2  # edge alone: 1 of 2 right without reflecting
    assert found.loc["a", "err"].value == 1 / 2 and found.loc["a", "spoils"].value == 1.0
    assert found.loc["b", "dsr"].value == 1.0 and found.loc["b", "err"].n == 0
    assert (
        ledger.reflection_rates(["a", "b"], boundary=False, root=tmp_path).loc["a", "dsr"].value
        == 6 / 7
    )


def line(step, generated, **more):
    return {"step": step, "generated": generated, **more}


def test_curves_count_the_tokens_before_each_evaluation(tmp_path):
    metrics = [
        line(0, 100, eval_avg=0.4, eval_low=0.3, eval_high=0.5, eval_reading=0.9),
        line(1, 50),
        line(
            2,
            70,
            final_eval_avg=0.8,
            final_eval_low=0.7,
            final_eval_high=0.9,
            final_eval_reading=0.6,
        ),
    ]
    write(tmp_path, "a", 0, rows(1), metrics=metrics)
    found = ledger.curves(["a", "absent"], root=tmp_path)
    assert found[["updates", "tokens", "avg"]].values.tolist() == [[0, 0, 0.4], [3, 220, 0.8]]
    assert ledger.curves(["a"], watched="reading", root=tmp_path).avg.tolist() == pytest.approx(
        [0.9, 0.6]
    )
    assert ledger.reaches(found, {0: 0.5}) == {0: 3.0} and ledger.reaches(
        found, {0: 0.5}, "tokens"
    ) == {0: 220.0}
    assert np.isnan(ledger.reaches(found, {0: 0.85})[0])
    write(tmp_path, "cold", 0, rows(1), metrics=[line(-1, 500), *metrics])
    assert ledger.curves(["cold"], root=tmp_path).tokens.tolist() == [500, 720]


def test_tables_leave_out_what_is_not_there_and_comparisons_say_so(tmp_path):
    write(tmp_path, "a", 0, rows(1, 3))
    assert list(ledger.summary(["a", "absent"], ("avg",), root=tmp_path).index) == ["a"]
    with pytest.raises(WorkbenchError, match="no seed has records of both a and absent"):
        ledger.effect("a", "absent", root=tmp_path)
    with pytest.raises(WorkbenchError, match="no measure"):
        ledger.effect("a", "a", "speed", root=tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "evaluation.json").write_text("{")
    with pytest.raises(WorkbenchError, match="no record of a study"):
        ledger.cells(tmp_path)


def test_figures_name_every_arm(tmp_path):
    metrics = [
        line(0, 10, eval_avg=0.4, eval_low=0.3, eval_high=0.5),
        line(1, 10, final_eval_avg=0.8, final_eval_low=0.7, final_eval_high=0.9),
    ]
    for arm in ("a", "b"):
        write(tmp_path, arm, 0, rows(1, 2), metrics=metrics)

    def words(figure):
        return {
            text.get_text()
            for axes in figure.axes
            for text in (*axes.texts, *axes.get_yticklabels())
        }

    assert {"a", "b"} <= words(comparison.bands(ledger.curves(["a", "b"], root=tmp_path)))
    assert {"a", "b"} <= words(comparison.pass_curves(ledger.cells(tmp_path), ["a", "b", "absent"]))
    assert "a - b" in words(comparison.forest({"a - b": ledger.effect("a", "b", root=tmp_path)}))
    assert "no record yet" in words(comparison.bands(ledger.curves(["absent"], root=tmp_path)))
