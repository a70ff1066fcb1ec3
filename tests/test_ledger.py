"""Tables, curves and paired differences from hand-made records, by hand."""

import json
import shutil

import numpy as np
import pytest
from cells import line, rows, write

from workbench.core import WorkbenchError
from workbench.evaluation.statistics import Effect, holm, student
from workbench.paths import FIRST_STUDY, RECORDS, STUDY
from workbench.studies import ledger
from workbench.viz import comparison


def test_an_effect_is_the_mean_of_the_paired_differences(tmp_path):
    for seed in (0, 1):
        write(tmp_path, "a", seed, rows(4, 2, 4, 3))
        write(tmp_path, "b", seed, rows(2, 2, 2, 1))
    found = ledger.effect("a", "b", root=tmp_path)
    assert found.mean == pytest.approx((2 + 0 + 2 + 2) / 16)
    assert found.low <= found.mean <= found.high
    assert (found.seeds, found.problems, found.above) == (2, 8, 2)
    turned = ledger.effect("b", "a", root=tmp_path)
    assert (turned.mean, turned.above) == (-found.mean, 0)
    # every problem is solved at least once by both
    assert ledger.effect("a", "b", "pass@4", root=tmp_path).mean == 0


def test_pairing_is_by_problem_and_not_by_place(tmp_path):
    for seed in (0, 1):
        write(tmp_path, "a", seed, {"p": (4,) + (0,) * 5, "q": (1,) + (0,) * 5})
        write(tmp_path, "b", seed, {"q": (1,) + (0,) * 5, "p": (4,) + (0,) * 5})
    found = ledger.effect("a", "b", root=tmp_path)
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, pytest.approx(1))


def test_other_problems_are_no_pair(tmp_path):
    write(tmp_path, "a", 0, rows(4, 2))
    write(tmp_path, "b", 0, rows(4, 2, 1))
    with pytest.raises(WorkbenchError, match="a and b .3m. were measured on different problems"):
        ledger.effect("a", "b", root=tmp_path)


def test_measuring_the_seeds_is_in_the_interval(tmp_path):
    """Two seeds that came out alike: what the problems of each differ by still counts."""
    for seed in (0, 1):
        write(tmp_path, "a", seed, rows(4, 0, 4, 0))
        write(tmp_path, "b", seed, rows(0, 0, 0, 0))
    found = ledger.effect("a", "b", root=tmp_path)
    within = np.var([1, 0, 1, 0], ddof=1) / 4
    assert found.error == pytest.approx(np.sqrt(within / 2)) and found.error > 0


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
    studies = [[rng.normal(rng.normal(0, 0.3), 0.3, 40) for _ in range(3)] for _ in range(400)]
    wrong = sum(ledger.paired(study).p < 0.05 for study in studies)
    assert 8 <= wrong <= 34  # 20 expected, sd 4.4
    # seeds that differ by no more than their measurement: never more often
    studies = [[rng.normal(0, 0.3, 40) for _ in range(3)] for _ in range(400)]
    assert sum(ledger.paired(study).p < 0.05 for study in studies) <= 20


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


A = {"easy": (4, 4, 0, 0, 0, 0), "edge": (2, 1, 2, 1, 1, 1), "other": (1, 1, 0, 0, 0, 0)}
B = {"easy": (3, 3, 0, 0, 0, 0), "edge": (3, 3, 0, 0, 0, 0), "other": (0, 0, 4, 0, 0, 0)}


def test_dsr_and_err_count_only_boundary_problems_of_all_arms(tmp_path):
    #  right, direct, reflecting, effective, needless, spoiled
    write(tmp_path, "a", 0, A)
    write(tmp_path, "b", 0, B)
    found = ledger.reflection_rates(["a", "b"], root=tmp_path)
    assert found.loc["a", "dsr"].value == 1 / 2  # edge alone: 1 of 2 right without reflecting
    assert found.loc["a", "err"].value == 1 / 2 and found.loc["a", "spoils"].value == 1.0
    assert found.loc["b", "dsr"].value == 1.0 and found.loc["b", "err"].n == 0
    assert "recovery" not in found
    assert ledger.reflection_rates(["absent"], root=tmp_path).empty
    alone = ledger.reflection_rates(["a"], root=tmp_path)  # easy: 4 of 4 samples, other: 1
    assert alone.loc["a", "dsr"].value == 2 / 3


def test_counted_is_the_same_seed_by_seed(tmp_path):
    for seed in (0, 1):
        write(tmp_path, "a", seed, A)
        write(tmp_path, "b", seed, B if seed else {**B, "edge": (4, 4, 0, 0, 0, 0)})
    a, b = ledger.counted("a", "b", "dsr", "3m", [0, 1], tmp_path)
    assert a.tolist() == [[0, 0], [1, 2]] and b.tolist() == [[0, 0], [3, 3]]
    a, b = ledger.counted("a", "b", "err", "3m", [1], tmp_path)
    assert a.tolist() == [[1, 2]] and b.tolist() == [[0, 0]]


def test_curves_count_the_tokens_before_each_evaluation(tmp_path):
    bounds = {"eval_low": 0.3, "eval_high": 0.5, "final_eval_low": 0.7, "final_eval_high": 0.9}
    metrics = [
        line(0, 100, eval_avg=0.4, eval_reading=0.9, **bounds),
        line(1, 50),
        line(2, 70, final_eval_avg=0.8, final_eval_reading=0.6, **bounds),
    ]
    write(tmp_path, "a", 0, rows(1), metrics=metrics)
    found = ledger.curves(["a", "absent"], root=tmp_path)
    assert found[["updates", "tokens", "avg"]].values.tolist() == [[0, 0, 0.4], [3, 220, 0.8]]
    watched = ledger.curves(["a"], watched="reading", root=tmp_path)
    assert watched.avg.tolist() == pytest.approx([0.9, 0.6])
    write(tmp_path, "cold", 0, rows(1), metrics=[line(-1, 500), *metrics])
    assert ledger.curves(["cold"], root=tmp_path).tokens.tolist() == [500, 720]
    write(tmp_path, "a", 1, rows(1), metrics=[line(0, 1, eligible=0.5), line(1, 1), line(2, 1)])
    assert ledger.averages("a", "eligible", root=tmp_path) == {1: 0.5}


def test_a_record_of_the_second_study_has_reading_and_many_samples_apart(tmp_path):
    for seed in (0, 1):
        for arm, often, read in (("a", 1, 1), ("b", 0, 0)):
            write(
                tmp_path,
                arm,
                seed,
                rows(2, 2),
                reading={"avg": 0.75},
                reading_counts={"x": 1, "y": read},
                pass32={"samples": 32, "pass_at": {"1": 0.1, "32": 0.6}},
                pass32_counts={"p0": often, "p1": 5},
            )
    write(tmp_path, "c", 0, rows(2, 2), reading=None, pass32=None)
    row = ledger.cells(tmp_path).iloc[0]
    assert (row["avg"], row["pass@1"], row["pass@32"], row.reading) == (0.5, 0.1, 0.6, 0.75)
    assert ledger.effect("a", "b", "pass@32", root=tmp_path).mean == 0.5
    assert ledger.effect("a", "b", "reading", root=tmp_path).mean == 0.5
    assert ledger.effect("a", "b", "pass@4", root=tmp_path).mean == 0.0  # of the four samples
    with pytest.raises(WorkbenchError, match="no seed has records of both a and c"):
        ledger.effect("a", "c", "reading", root=tmp_path)


def test_a_record_of_the_first_study_is_read_as_before(tmp_path):
    for name in (
        "base-3m-seed0",
        "grpo-3m-seed0",
        "grpo-3m-seed1",
        "sdpo-3m-seed0",
        "sdpo-3m-seed1",
    ):
        shutil.copytree(FIRST_STUDY / name, tmp_path / name)
    table = ledger.summary(
        ["base", "grpo"], ("avg", "pass@32", "reading", "recovery", "harder"), root=tmp_path
    )
    assert table.loc["grpo"].notna().all() and table.loc["base", "pass@32"] == 1.0
    ends = ledger.curves(["grpo"], watched="reading", root=tmp_path).groupby("seed").avg.last()
    assert table.loc["grpo", "reading"] == pytest.approx(ends.mean())
    found = ledger.effect("sdpo", "grpo", "pass@32", root=tmp_path)
    assert isinstance(found, Effect) and found.problems == 200
    assert np.isfinite(ledger.reflection_rates(["grpo"], root=tmp_path).loc["grpo", "recovery"])


def test_tables_leave_out_what_is_not_there_and_comparisons_say_so(tmp_path):
    assert ledger.cells(tmp_path).empty and ledger.summary(["a"], root=tmp_path).empty
    write(tmp_path, "a", 0, rows(1, 3))
    assert list(ledger.summary(["a", "absent"], ("avg",), root=tmp_path).index) == ["a"]
    with pytest.raises(WorkbenchError, match="no seed has records of both a and absent"):
        ledger.effect("a", "absent", root=tmp_path)
    with pytest.raises(WorkbenchError, match="no measure"):
        ledger.effect("a", "a", "speed", root=tmp_path)


def broken(folder, text):
    """What a record may look like that none is."""
    record = json.loads(text)
    yield "evaluation.json", "{"
    yield "evaluation.json", "[]"
    yield "evaluation.json", ""
    for name in ("arm", "seed", "test", "counts", "seconds"):
        yield "evaluation.json", json.dumps({k: v for k, v in record.items() if k != name})
    for counts in ({}, {"p": [None] * 6}, {"p": [5, 0, 0, 0, 0, 0]}, {"p": [-1, 0, 0, 0, 0, 0]}):
        yield "evaluation.json", json.dumps(record | {"counts": counts})
    yield "evaluation.json", json.dumps(record | {"counts": {"p": [float("nan")] * 6}})
    test = record["test"] | {"length": float("nan")}
    yield "evaluation.json", json.dumps(record | {"test": test})
    yield "metrics.jsonl", '{"step": 0,'
    yield "metrics.jsonl", '{"step": 0, "eval_avg": 0.5}\n'


def test_a_broken_record_is_one_sentence_that_names_it(tmp_path):
    folder = write(tmp_path, "a", 0, rows(1, 3), metrics=[line(0, 1)])
    good = {path: path.read_text() for path in folder.iterdir()}
    for name, text in list(broken(folder, good[folder / "evaluation.json"])):
        for path, whole in good.items():
            path.write_text(whole)
        (folder / name).write_text(text)
        ledger._evaluation.cache_clear()  # two writes in one tick of the clock
        with pytest.raises(WorkbenchError, match="a-3m-seed0.*is no record of a study") as error:
            ledger.cells(tmp_path)
        assert "\n" not in str(error.value), text


def test_two_records_of_one_cell_are_refused(tmp_path):
    folder = write(tmp_path, "a", 0, rows(1, 3))
    shutil.copytree(folder, tmp_path / "copy")
    with pytest.raises(WorkbenchError, match="is a second record of a 3m 0"):
        ledger.cells(tmp_path)


def test_one_place_says_where_the_records_are():
    assert RECORDS == STUDY / "runs" and ledger.cells.__defaults__ == (RECORDS,)


def test_figures_name_every_arm(tmp_path):
    bounds = {"eval_low": 0.3, "eval_high": 0.5, "final_eval_low": 0.7, "final_eval_high": 0.9}
    metrics = [line(0, 10, eval_avg=0.4, **bounds), line(1, 10, final_eval_avg=0.8, **bounds)]
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
