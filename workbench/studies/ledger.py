"""What the records of a study say: tables, learning curves, and paired differences with intervals.

Reads data/runs, writes nothing.

    cells()                               one row a record: what it was, how far it came, what it
                                          cost
    curves(["grpo", "sdpo"])              accuracy along the run, by updates and by generated
                                          tokens, a row an evaluation and seed
    effect("sdpo", "grpo")                SDPO minus GRPO on the same problems
    reflection_rates(["tapo", "grpo"])    DSR, ERR and their like on the problems that all of them
                                          solve sometimes and not always

Arms that have no record yet are left out of tables and curves, and are an error where two are
compared.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.core import WorkbenchError
from workbench.evaluation.metrics import pass_at_k
from workbench.evaluation.reflection import COUNTS, rates
from workbench.evaluation.statistics import Effect, bootstrap, student
from workbench.paths import RECORDS
from workbench.viz.curves import evaluations


def read_records(root: Path = RECORDS) -> dict[tuple[str, str, int], dict]:
    """(arm, model, seed) -> evaluation.json, in the order of arm, model, seed.

    Its metrics are a frame under "metrics".
    """
    records = {}
    for path in Path(root).glob("*/evaluation.json"):
        record = _evaluation(path, path.stat().st_mtime_ns)
        records[record["arm"]["name"], record["arm"]["model"], record["seed"]] = record
    return dict(sorted(records.items()))


@lru_cache(maxsize=1000)  # the claims read the same records over and over
def _evaluation(path: Path, changed: int) -> dict:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["arm"]["name"], record["arm"]["model"], record["seed"]
    except (ValueError, KeyError, TypeError) as error:
        raise WorkbenchError(
            f"{path} is no record of a study: {type(error).__name__}: {error}"
        ) from error
    lines = path.with_name("metrics.jsonl")
    metrics = pd.read_json(lines, lines=True) if lines.is_file() else pd.DataFrame()
    return record | {"metrics": metrics}


def shared_seeds(arms: Sequence[str], model: str = "3m", root: Path = RECORDS) -> list[int]:
    """The seeds of which every one of ``arms`` has a record."""
    cells = read_records(root).keys()
    seeds = {seed for _, _, seed in cells}
    for arm in arms:
        seeds &= {seed for name, size, seed in cells if (name, size) == (arm, model)}
    return sorted(seeds)


# ---- tables and curves


def cells(root: Path = RECORDS) -> pd.DataFrame:
    """One row a record.

    avg, low, high, pass@k, length: the test problems; distinct, harder, recovery and the skills:
    see measure.py. reading: right at the run's end on the watched task, reading solutions that are
    the same for all arms and seeds (arms.READING), so that seeds differ in the run alone; NaN where
    nothing was trained. tokens: what the policy generated in training; updates, seconds: what the
    whole cell took.
    """
    return pd.DataFrame([_cell(record) for record in read_records(root).values()])


def _cell(record: Mapping) -> dict:
    arm = record["arm"]
    metrics = record["metrics"]
    row = {"arm": arm["name"], "model": arm["model"], "task": arm["task"], "seed": record["seed"]}
    row["updates"] = len(metrics)
    row["tokens"] = float(metrics.generated.sum()) if len(metrics) else 0.0
    row["seconds"] = record["seconds"]
    for name in ("avg", "low", "high", "length"):
        row[name] = record["test"][name]
    for k, value in record["test"]["pass_at"].items():
        row[f"pass@{k}"] = value
    row["distinct"] = record["distinct"]
    row["reading"] = _last(metrics, "final_eval_reading")
    if "skills" in record:  # of the arithmetic task
        row["harder"] = record["harder"]["avg"]
        row["recovery"] = record["recovery"]["value"]
        for name, (value, *_) in record["skills"].items():
            row[name] = value
    return row


def _last(metrics: pd.DataFrame, column: str) -> float:
    values = metrics[column].dropna() if column in metrics else ()
    return values.iloc[-1] if len(values) else float("nan")


def summary(
    arms: Sequence[str],
    columns: Sequence[str] = ("avg", "pass@32", "length", "tokens"),
    model: str = "3m",
    root: Path = RECORDS,
) -> pd.DataFrame:
    """Means over the seeds, one row an arm in the order given, with the number of seeds and the
    span of avg over them.
    """
    records = cells(root)
    rows = {}
    for arm in arms if len(records) else ():
        of_arm = records[(records.arm == arm) & (records.model == model)]
        if len(of_arm):
            rows[arm] = {
                "seeds": len(of_arm),
                **of_arm[list(columns)].astype(float).mean(),
                "worst seed": of_arm.avg.min(),
                "best seed": of_arm.avg.max(),
            }
    return pd.DataFrame.from_dict(rows, orient="index")


CURVE = ["arm", "seed", "updates", "tokens", "avg"]


def curves(
    arms: Sequence[str], model: str = "3m", watched: str = "", root: Path = RECORDS
) -> pd.DataFrame:
    """arm, seed, updates, tokens (generated before), avg on the validation problems; of a
    ``watched`` task instead ("reading").
    """
    rows = []
    for arm in dict.fromkeys(arms):
        for (name, size, seed), record in read_records(root).items():
            if (name, size) == (arm, model) and len(record["metrics"]):
                for point in _curve(record["metrics"], watched):
                    rows.append((arm, seed, *point))
    return pd.DataFrame(rows, columns=CURVE)


def _curve(metrics: pd.DataFrame, watched: str) -> list[tuple[int, float, float]]:
    """(updates, tokens generated before, accuracy) of each evaluation of a run, in order."""
    if watched:
        metrics = metrics.assign(
            eval_avg=metrics[f"eval_{watched}"], final_eval_avg=metrics[f"final_eval_{watched}"]
        )
    spent = np.concatenate([[0.0], metrics.generated.cumsum()])
    first = int(metrics.step.min())  # below 0: the updates of a cold start
    # Of a run in two stages the last evaluation of the first is the first of the second.
    points = evaluations(metrics).drop_duplicates("updates", keep="last").sort_values("updates")
    updates = points.updates.to_numpy(int)
    return list(zip(updates.tolist(), spent[updates - first], points.avg))


def reaches(
    frame: pd.DataFrame, level: Mapping[int, float], by: str = "updates"
) -> dict[int, float]:
    """For each seed of one arm's ``curves`` the first evaluation, in ``by``, at which its accuracy
    is at least ``level[seed]``; NaN: never.
    """
    first = {}
    for seed, rows in frame.groupby("seed"):
        reached = rows[rows.avg >= level.get(seed, np.inf)]
        first[int(seed)] = float(reached[by].min())
    return first


# ---- paired differences


def measured(record: Mapping, measure: str) -> dict[str, float]:
    """Each problem's number: "avg", "first_pass" (right without a reflection), or "pass@k"."""
    samples = record["test"]["samples"]
    if measure.startswith("pass@"):
        k = int(measure.removeprefix("pass@"))
        return {problem: pass_at_k(samples, row[0], k) for problem, row in record["counts"].items()}
    if measure not in ("avg", "first_pass"):
        raise WorkbenchError(f"there is no measure {measure!r}: avg, first_pass, or pass@k")
    column = COUNTS.index("right" if measure == "avg" else "direct")
    return {problem: row[column] / samples for problem, row in record["counts"].items()}


def differences(
    a: str, b: str, measure: str = "avg", model: str = "3m", root: Path = RECORDS
) -> list[np.ndarray]:
    """For each seed that both arms have, [problems] a - b.

    Raises WorkbenchError when there is none.
    """
    seeds = shared_seeds((a, b), model, root)
    if not seeds:
        raise WorkbenchError(f"no seed has records of both {a} and {b} ({model})")
    records = read_records(root)
    by_seed = []
    for seed in seeds:
        of_a = measured(records[a, model, seed], measure)
        of_b = measured(records[b, model, seed], measure)
        by_seed.append(np.array([of_a[p] - of_b[p] for p in of_a if p in of_b]))
    return by_seed


def effect(a: str, b: str, measure: str = "avg", model: str = "3m", root: Path = RECORDS) -> Effect:
    return paired(differences(a, b, measure, model, root))


def paired(by_seed: Sequence[np.ndarray]) -> Effect:
    """From one array of differences for each seed."""
    means = np.array([differences.mean() for differences in by_seed])
    mean = float(means.mean())
    above = int((means > 0).sum())
    seeds = len(means)
    problems = sum(map(len, by_seed))
    if seeds == 1:
        return Effect(mean, *bootstrap(by_seed[0]), float("nan"), 1, problems, above)
    error = float(means.std(ddof=1) / np.sqrt(seeds))
    t = mean / error if error else float(mean != 0) * 1e9
    reach, p = student(t, seeds - 1)
    return Effect(mean, mean - reach * error, mean + reach * error, p, seeds, problems, above)


# ---- reflection


def reflection_rates(
    arms: Sequence[str],
    model: str = "3m",
    boundary: bool = True,
    seeds: Sequence[int] | None = None,
    root: Path = RECORDS,
) -> pd.DataFrame:
    """The rates of reflection.py as ``Rate``, a row an arm, and recovery, the mean over the seeds.

    Pooled over ``seeds`` (None: those that all arms have). ``boundary``: only problems that every
    one of the arms solves sometimes and not always (the paper's DSR and ERR).
    """
    records = read_records(root)
    arms = [arm for arm in arms if any(key[:2] == (arm, model) for key in records)]
    if seeds is None:
        seeds = shared_seeds(arms, model, root)
    counts, recovered = defaultdict(list), defaultdict(list)
    for seed in seeds:
        cells = {arm: records[arm, model, seed] for arm in arms}
        for arm, record in cells.items():
            recovered[arm].append(record["recovery"]["value"])
            for problem, row in record["counts"].items():
                if not boundary or all(_varies(cell, problem) for cell in cells.values()):
                    counts[arm].append((*row, record["test"]["samples"]))
    rows = {}
    for arm in arms:
        recovery = float(np.mean(recovered[arm] or [np.nan]))
        rows[arm] = rates(counts[arm]) | {"recovery": recovery}
    return pd.DataFrame.from_dict(rows, orient="index").drop(columns="right", errors="ignore")


def _varies(record: Mapping, problem: str) -> bool:
    """Is the problem solved sometimes and not always?"""
    right, *_ = record["counts"].get(problem, (0,))
    return 0 < right < record["test"]["samples"]
