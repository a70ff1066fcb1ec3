"""What the records of a study say: tables, learning curves, and paired differences with intervals.

Reads data/runs, writes nothing.

    cells()                        one row a record: what it was, how far it came, what it cost
    curves(["grpo", "sdpo"])       accuracy along the run, by updates and by generated tokens, a row
                                   an evaluation and seed
    effect("sdpo", "grpo")         SDPO minus GRPO on the same problems
    reflection_rates(["tapo", "grpo"])    DSR, ERR and their like on the problems that all of them
                                          solve sometimes and not always

Arms that have no record yet are left out of tables and curves, and are an error where two are
compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.core import WorkbenchError
from workbench.evaluation.metrics import bootstrap, pass_at_k
from workbench.evaluation.reflection import Rate
from workbench.paths import RECORDS
from workbench.studies.measure import COUNTS
from workbench.viz.curves import evaluations


def _records(root: Path = RECORDS) -> dict[tuple[str, str, int], dict]:
    """(arm, model, seed) -> evaluation.json, in the order of arm, model, seed; its metrics as a
    frame under "metrics".
    """
    found = {}
    for path in sorted(Path(root).glob("*/evaluation.json")):
        record = _evaluation(path, path.stat().st_mtime_ns)
        found[record["arm"]["name"], record["arm"]["model"], record["seed"]] = record
    return dict(sorted(found.items()))


@lru_cache(maxsize=1000)  # the claims read the same records over and over
def _evaluation(path: Path, changed: int) -> dict:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["arm"]["name"], record["arm"]["model"], record["seed"]
    except (ValueError, KeyError, TypeError) as error:
        raise WorkbenchError(
            f"{path} is no record of a study: {type(error).__name__}: {error}"
        ) from error
    metrics = path.with_name("metrics.jsonl")
    return record | {
        "metrics": pd.read_json(metrics, lines=True) if metrics.is_file() else pd.DataFrame()
    }


def cells(root: Path = RECORDS) -> pd.DataFrame:
    """One row a record. avg, low, high, pass@k, length: the test problems; distinct, harder,
    recovery and the skills: see measure.py. reading: right at the run's end on the watched task,
    reading solutions that are the same for all arms and seeds (study.READING), so that seeds differ
    in the run alone; NaN where nothing was trained. tokens: what the policy generated in training;
    updates, seconds: what the whole cell took.
    """
    rows = []
    for (arm, model, seed), record in _records(root).items():
        metrics, test = record["metrics"], record["test"]
        read = (
            metrics[metrics.final_eval_reading.notna()].final_eval_reading
            if "final_eval_reading" in metrics
            else ()
        )
        rows.append(
            {
                "arm": arm,
                "model": model,
                "task": record["arm"]["task"],
                "seed": seed,
                "updates": len(metrics),
                "tokens": float(metrics.generated.sum()) if len(metrics) else 0.0,
                "seconds": record["seconds"],
                **{name: test[name] for name in ("avg", "low", "high", "length")},
                **{f"pass@{k}": value for k, value in test["pass_at"].items()},
                "distinct": record["distinct"],
                "reading": read.iloc[-1] if len(read) else float("nan"),
            }
        )
        if "skills" in record:  # of the arithmetic task
            rows[-1] |= {
                "harder": record["harder"]["avg"],
                "recovery": record["recovery"]["value"],
                **{k: v[0] for k, v in record["skills"].items()},
            }
    return pd.DataFrame(rows)


def summary(
    arms: Sequence[str],
    columns: Sequence[str] = ("avg", "pass@32", "length", "tokens"),
    model: str = "3m",
    root: Path = RECORDS,
) -> pd.DataFrame:
    """Means over the seeds, one row an arm in the order given, with the number of seeds and the
    span of avg over them.
    """
    found = cells(root)
    found = found[found.model == model] if len(found) else found
    rows = {}
    for arm in arms:
        mine = found[found.arm == arm] if len(found) else found
        if len(mine):
            rows[arm] = {
                "seeds": len(mine),
                **mine[list(columns)].astype(float).mean(),
                "worst seed": mine.avg.min(),
                "best seed": mine.avg.max(),
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def curves(
    arms: Sequence[str], model: str = "3m", watched: str = "", root: Path = RECORDS
) -> pd.DataFrame:
    """arm, seed, updates, tokens (generated before), avg on the validation problems; of a
    ``watched`` task instead ("reading").
    """
    rows = []
    for (arm, size, seed), record in _records(root).items():
        metrics = record["metrics"]
        if arm not in arms or size != model or metrics.empty:
            continue
        if watched:
            metrics = metrics.assign(
                eval_avg=metrics[f"eval_{watched}"], final_eval_avg=metrics[f"final_eval_{watched}"]
            )
        spent = np.concatenate([[0.0], metrics.generated.cumsum()])
        # Of a run in two stages the last evaluation of the first is the first of the second.
        measured = (
            evaluations(metrics).drop_duplicates("updates", keep="last").sort_values("updates")
        )
        first = int(metrics.step.min())  # below 0: the updates of a cold start
        rows += [
            {
                "arm": arm,
                "seed": seed,
                "updates": int(row.updates),
                "tokens": spent[int(row.updates) - first],
                "avg": row.avg,
            }
            for row in measured.itertuples()
        ]
    found = pd.DataFrame(rows, columns=["arm", "seed", "updates", "tokens", "avg"])
    return found.sort_values(
        ["arm", "seed", "updates"],
        key=lambda c: c.map(list(arms).index) if c.name == "arm" else c,
        ignore_index=True,
    )


def reaches(
    frame: pd.DataFrame, level: Mapping[int, float], by: str = "updates"
) -> dict[int, float]:
    """For each seed of one arm's ``curves`` the first evaluation, in ``by``, at which its accuracy
    is at least ``level[seed]``; NaN: never.
    """
    found = {}
    for seed, rows in frame.groupby("seed"):
        there = rows[rows.avg >= level[seed]] if seed in level else rows[:0]
        found[int(seed)] = float(there[by].min()) if len(there) else float("nan")
    return found


# ---- paired differences


@dataclass(frozen=True)
class Effect:
    """a - b, paired by problem: the mean over seeds, and Student's 95 % interval and two-sided p
    from the seeds' own means. Seeds differ in the run and in the held-out problems, so both are in
    it. ``above``: seeds whose mean is above 0. Of one seed the interval is over its problems
    (bootstrap), says nothing of other runs, and p is NaN.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    problems: int
    above: int

    def __str__(self) -> str:
        return (
            f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}], above 0 in {self.above} "
            f"of {self.seeds}"
        )


def measured(record: Mapping, measure: str) -> dict[str, float]:
    """Each problem's number: "avg", "first_pass" (right without a reflection), or "pass@k"."""
    n, right, direct = record["test"]["samples"], COUNTS.index("right"), COUNTS.index("direct")
    if measure.startswith("pass@"):
        return {
            problem: pass_at_k(n, row[right], int(measure[5:]))
            for problem, row in record["counts"].items()
        }
    if measure not in ("avg", "first_pass"):
        raise WorkbenchError(f"there is no measure {measure!r}: avg, first_pass, or pass@k")
    return {
        problem: row[right if measure == "avg" else direct] / n
        for problem, row in record["counts"].items()
    }


def differences(
    a: str, b: str, measure: str = "avg", model: str = "3m", root: Path = RECORDS
) -> list[np.ndarray]:
    """For each seed that both arms have, [problems] a - b.

    Raises WorkbenchError when there is none.
    """
    found = _records(root)
    pairs = [
        (record, found[b, model, seed])
        for (arm, size, seed), record in found.items()
        if arm == a and size == model and (b, model, seed) in found
    ]
    if not pairs:
        raise WorkbenchError(f"no seed has records of both {a} and {b} ({model})")
    rows = [(measured(one, measure), measured(other, measure)) for one, other in pairs]
    return [
        np.array([mine[problem] - theirs[problem] for problem in mine if problem in theirs])
        for mine, theirs in rows
    ]


def effect(a: str, b: str, measure: str = "avg", model: str = "3m", root: Path = RECORDS) -> Effect:
    return paired(differences(a, b, measure, model, root))


def paired(by_seed: Sequence[np.ndarray]) -> Effect:
    """From one array of differences for each seed."""
    means, problems = np.array([d.mean() for d in by_seed]), sum(map(len, by_seed))
    mean, above = float(means.mean()), int((means > 0).sum())
    if len(means) == 1:
        return Effect(mean, *bootstrap(by_seed[0]), float("nan"), 1, problems, above)
    error = float(means.std(ddof=1) / np.sqrt(len(means)))
    reach, p = student(mean / error if error else float(mean != 0) * 1e9, len(means) - 1)
    return Effect(mean, mean - reach * error, mean + reach * error, p, len(means), problems, above)


def student(t: float, freedom: int) -> tuple[float, float]:
    """Of Student's distribution: the t that 5 % exceed in absolute value, and the share that
    exceeds ``t``. With t = sqrt(freedom) tan(angle) the density is cos(angle)^(freedom - 1).
    """
    angle = np.linspace(0, np.pi / 2, 200_001)
    density = np.cos(angle) ** (freedom - 1)
    above = 1 - np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])]) / (
        2 * density.sum() - density[0] - density[-1]
    )
    edge = np.interp(-0.05, -above, angle)
    share = np.interp(np.arctan(abs(t) / np.sqrt(freedom)), angle, above)
    return float(np.sqrt(freedom) * np.tan(edge)), float(share)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction: each p times the number of comparisons that are not yet decided, never
    falling.
    """
    order, corrected, largest = np.argsort(ps), [0.0] * len(ps), 0.0  # NaN comes last
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, ps[i] * (len(ps) - rank)))
        corrected[i] = largest
    return corrected


# ---- reflection

REFLECTION = {
    "first_pass": ("direct", None),
    "dsr": ("direct", "right"),
    "reflects": ("reflecting", None),
    "err": ("effective", "reflecting"),
    "needless": ("needless", "reflecting"),
    "spoils": ("spoiled", "needless"),
}


def reflection_rates(
    arms: Sequence[str],
    model: str = "3m",
    boundary: bool = True,
    seeds: Sequence[int] | None = None,
    root: Path = RECORDS,
) -> pd.DataFrame:
    """The rates of reflection.py as ``Rate``, a row an arm, pooled over ``seeds`` (None: those that
    all arms have). ``boundary``: only problems that every one of the arms solves sometimes and not
    always (the paper's DSR and ERR). Also recovery, the mean over those seeds.
    """
    found = _records(root)
    arms = [arm for arm in arms if any(key[:2] == (arm, model) for key in found)]
    if seeds is None:
        seeds = [
            seed
            for seed in sorted({key[2] for key in found})
            if all((arm, model, seed) in found for arm in arms)
        ]
    rows: dict[str, dict] = {}
    for arm in arms:
        kept = []
        for seed in seeds:
            records = [found[other, model, seed] for other in arms]
            right = [{problem: row[0] for problem, row in r["counts"].items()} for r in records]
            n = [r["test"]["samples"] for r in records]
            for problem, row in found[arm, model, seed]["counts"].items():
                if not boundary or all(
                    0 < counts.get(problem, 0) < total for counts, total in zip(right, n)
                ):
                    kept.append((*row, found[arm, model, seed]["test"]["samples"]))
        columns = dict(
            zip((*COUNTS, None), np.array(kept, float).reshape(len(kept), len(COUNTS) + 1).T)
        )
        rows[arm] = {
            name: Rate.of(columns[upper], columns[lower])
            for name, (upper, lower) in REFLECTION.items()
        }
        rows[arm]["recovery"] = (
            float(np.mean([found[arm, model, seed]["recovery"]["value"] for seed in seeds]))
            if seeds
            else float("nan")
        )
    return pd.DataFrame.from_dict(rows, orient="index")
