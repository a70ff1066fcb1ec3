"""Did the scores of before any training predict what the training gained?

data/true_credit/prediction.md was written before the runs of data/true_credit/runs, and says what
each method's score leads one to expect. This reads both, and says what came out.

    written            the scores by arm, as that file has them, and the first-order gain
    outcome            beside them each arm's gain over the base, with its interval over seeds
    rank_correlation   of a score and the gains, with an interval over arms
    told_apart         how many pairs of arms the runs tell apart
    in_words           all of it as sentences
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.core import refuse_if
from workbench.evaluation.statistics import Effect, bootstrap_formula, paired
from workbench.paths import DATA, FIRST_STUDY
from workbench.studies import ledger
from workbench.studies.arms import TRUTH, Arm
from workbench.studies.credit_table import read

HERE = DATA / "true_credit"
PREFIX = "truth-"
EARLY = 10  # updates, the first evaluation on the way
MEANT_TO_LOSE = ("antisd", "credit")  # prediction 1
LEAST_CORRELATION = 0.4  # prediction 4
SCORES = ("cosine", "gradient")
NEAR = 0.03  # of the best arm's share of right answers
_ROW = re.compile(r"^\| truth-(\S+) \| (\S+) \| (\S+) \|$", re.MULTILINE)


def written(folder: Path = HERE) -> pd.DataFrame:
    """A row an arm: cosine and gradient as prediction.md has them, ``predicted`` the first-order
    gain of seed1.json (which the prediction does not use: every interval holds 0).

    Raises WorkbenchError where an arm is not in the file.
    """
    text = (folder / "prediction.md").read_text(encoding="utf-8").replace("−", "-")
    rows = {name: (float(c), float(g)) for name, c, g in _ROW.findall(text)}
    arms = {arm.name.removeprefix(PREFIX): arm for arm in TRUTH}
    missing = sorted(arms.keys() - rows.keys())
    refuse_if(missing, f"{folder / 'prediction.md'} says nothing of {', '.join(missing)}")
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(SCORES))
    scored = read(folder / "seed1.json")["methods"]
    table["predicted"] = [scored[_scored_as(arms[name])]["gain"][0] for name in table.index]
    return table


def _scored_as(arm: Arm) -> str:
    """What the arm's method is called in a record of ``workbench credit``."""
    stage = arm.stages[0]
    options = ",".join(option for option in stage.options if not option.startswith("lr="))
    return f"{stage.method}:{options}" if options else stage.method


def outcome(folder: Path = HERE, base: Path = FIRST_STUDY) -> pd.DataFrame:
    """``written`` with each arm's seeds, right (avg@32 after training), gain over the base on the
    same problems, low, high (95 %, paired) and early, the gain on the validation problems after
    EARLY updates. NaN where an arm has no run.
    """
    table = written(folder)
    runs = folder / "runs"
    right = ledger.summary([PREFIX + name for name in table.index], ("avg",), root=runs)
    early = _early(runs)
    rows = {}
    for name in table.index:
        arm = PREFIX + name
        rows[name] = {"seeds": 0, "right": np.nan, "early": early.get(arm, np.nan)}
        effect = gain(arm, folder, base)
        if effect:
            rows[name] |= {"low": effect.low, "high": effect.high}
            rows[name] |= {"seeds": effect.seeds, "right": right.avg[arm], "gain": effect.mean}
    columns = ["seeds", "right", "gain", "low", "high", "early"]
    return table.join(pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns))


def gain(arm: str, folder: Path = HERE, base: Path = FIRST_STUDY) -> Effect | None:
    """Over the untrained model, on the test problems of each seed that has a run; of one seed the
    interval is over its problems.
    """
    untrained = ledger.of_arm("base", root=base)
    by_seed = []
    for seed, record in ledger.of_arm(arm, root=folder / "runs").items():
        if seed in untrained:
            before = ledger.measured(untrained[seed], "avg")
            after = ledger.measured(record, "avg")
            by_seed.append(np.array([after[p] - before[p] for p in after if p in before]))
    return paired(by_seed) if by_seed else None


def _early(runs: Path) -> dict[str, float]:
    """The gain after EARLY updates by arm, the mean over its seeds."""
    curves = ledger.curves([arm.name for arm in TRUTH], root=runs)
    by_run = curves[curves.updates.isin((0, EARLY))].pivot_table(
        "avg", ["arm", "seed"], "updates", sort=False
    )
    if not {0, EARLY} <= set(by_run.columns):
        return {}
    return (by_run[EARLY] - by_run[0]).groupby("arm").mean().to_dict()


# ---- what it comes to


def rank_correlation(
    table: pd.DataFrame, score: str, result: str = "gain"
) -> tuple[float, float, float]:
    """Spearman's of a column with another over the arms that have both, and its 95 % interval.

    The interval resamples arms: how it might be of other methods. NaN for fewer than three.
    """
    both = table[[score, result]].dropna().astype(float)
    if len(both) < 3:
        return (np.nan,) * 3
    return bootstrap_formula(lambda counts: _spearman(counts, *both.to_numpy().T), len(both))


def _spearman(counts: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[draws] from [draws, arms], how often each arm counts."""
    one, other = (_ranks(counts, values) for values in (x, y))
    return (counts * one * other).sum(1) / np.sqrt(
        (counts * one**2).sum(1) * (counts * other**2).sum(1)
    )


def _ranks(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Middle ranks of values, each as often as it counts, less their mean."""
    below = counts @ (values[:, None] < values)
    alike = counts @ (values[:, None] == values)
    ranks = below + alike / 2
    return ranks - (counts * ranks).sum(1, keepdims=True) / counts.sum(1, keepdims=True)


def told_apart(arms: Sequence[str], folder: Path = HERE) -> tuple[int, int]:
    """(pairs of arms whose difference in right answers has an interval without 0, all pairs)."""
    effects = []
    for one, other in combinations(arms, 2):
        by_seed = ledger.differences(PREFIX + one, PREFIX + other, root=folder / "runs")
        if by_seed:
            effects.append(paired(by_seed))
    return sum(effect.low > 0 or effect.high < 0 for effect in effects), len(effects)


def gainers(table: pd.DataFrame) -> pd.DataFrame:
    """The arms that are not meant to lose: those of prediction 4."""
    return table.drop(index=[name for name in MEANT_TO_LOSE if name in table.index])


def in_words(folder: Path = HERE, base: Path = FIRST_STUDY) -> str:
    """What came of each prediction, whatever it is."""
    table = outcome(folder, base)
    run = table.dropna(subset="gain")
    if not len(run):
        return "No run yet."
    counts = " and ".join(str(int(n)) for n in sorted(run.seeds.unique()))
    lines = [f"{len(run)} of {len(table)} arms have runs, of {counts} seeds each."]
    lines.append(_of_sign(run))
    lines += _of_order(gainers(run), folder)
    lines.append(_of_lead(run, folder))
    return "\n".join(lines)


def _of_sign(run: pd.DataFrame) -> str:
    losers = [name for name in MEANT_TO_LOSE if name in run.index]
    lost = [f"{name} {run.gain[name]:+.3f}" for name in losers]
    wrong = [name for name in losers if run.gain[name] >= 0]
    wrong += [name for name, row in gainers(run).iterrows() if row.gain <= 0]
    verdict = f"wrong for {', '.join(wrong)}" if wrong else "right for every arm that has a run"
    return f"1. Sign: {verdict} (meant to lose: {', '.join(lost) or 'none of these yet'})."


def _of_order(run: pd.DataFrame, folder: Path) -> list[str]:
    """Predictions 2 to 4."""
    found = {score: rank_correlation(run, score) for score in (*SCORES, "predicted")}
    lines = [f"2 to 4. Order, rank correlations of the {len(run)} arms that are not meant to lose:"]
    for score, correlation in found.items():
        early = rank_correlation(run, score, "early")
        lines.append(
            f"   {score} with the gain {shown(correlation)}; with that after {EARLY} updates "
            f"(looked at afterwards) {shown(early)}"
        )
    best = max(SCORES, key=lambda score: np.nan_to_num(found[score][0], nan=-2))
    verdict = f"{best} predicts better"
    if not found[best][0] >= LEAST_CORRELATION:
        verdict = f"neither cosine nor gradient reaches {LEAST_CORRELATION}, so neither predicts"
    return [*lines, f"   By what was written beforehand: {verdict}.", *_how_much(run, folder)]


def _how_much(run: pd.DataFrame, folder: Path) -> list[str]:
    """How much there was to predict: pairs of arms that are told apart."""
    near = list(run.index[run.right >= run.right.max() - NEAR])
    lines = []
    for arms, which in (
        (list(run.index), "all of them"),
        (near, f"those within {NEAR} of the best"),
    ):
        apart, pairs = told_apart(arms, folder)
        low, high = run.right[arms].min(), run.right[arms].max()
        lines.append(
            f"   What there was to predict, {which}: {len(arms)} arms end at {low:.3f} to "
            f"{high:.3f} right; of {pairs} pairs {apart} are told apart."
        )
    return lines


def _of_lead(run: pd.DataFrame, folder: Path) -> str:
    lead = json.loads((folder / "lead-3m.json").read_text(encoding="utf-8"))["lead"][0]
    if "sdpo" not in run.index:
        return "5. Lead: SDPO has no run yet."
    row = run.loc["sdpo"]
    verdict = "held" if row.gain >= lead / 2 else "missed"
    return (
        f"5. Lead {lead:.3f}, so SDPO gains {lead / 2:.2f} or more: {verdict}, "
        f"{row.gain:+.3f} [{row.low:+.3f}, {row.high:+.3f}]."
    )


def shown(correlation: tuple[float, float, float]) -> str:
    value, low, high = correlation
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]" if np.isfinite(value) else "not defined"
