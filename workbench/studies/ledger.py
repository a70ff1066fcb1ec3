"""What the records of a study say: tables, learning curves, and paired differences with intervals.

Reads records, writes nothing. ``root``: paths.RECORDS, or another folder of cells, such as
paths.FIRST_STUDY.

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

from workbench.core import WorkbenchError, refuse_if
from workbench.evaluation.metrics import pass_at_k
from workbench.evaluation.reflection import COUNTS, RATES, rates
from workbench.evaluation.statistics import Effect, paired
from workbench.paths import RECORDS
from workbench.studies.arms import TEACHERS
from workbench.viz.curves import evaluations


def read_records(root: Path = RECORDS) -> dict[tuple[str, str, int], dict]:
    """(arm, model, seed) -> evaluation.json, in the order of arm, model, seed.

    Its metrics are a frame under "metrics"; "row" is its line of ``cells``, "curve" its
    evaluations along the run.
    """
    records = {}
    for path in Path(root).glob("*/evaluation.json"):
        record = _evaluation(path, path.stat().st_mtime_ns)
        key = record["arm"]["name"], record["arm"]["model"], record["seed"]
        refuse_if(
            key in records, f"{path.parent.name} is a second record of {' '.join(map(str, key))}"
        )
        records[key] = record
    return dict(sorted(records.items()))


@lru_cache(maxsize=1000)  # the claims read the same records over and over
def _evaluation(path: Path, changed: int) -> dict:
    lines = path.with_name("metrics.jsonl")
    try:
        record = _plain(path.read_text(encoding="utf-8"))
        steps = lines.read_text(encoding="utf-8").splitlines() if lines.is_file() else []
        record["metrics"] = pd.DataFrame(map(_plain, steps))
        record["row"] = _row(record)
        record["curve"] = _curve(record["metrics"])
        counts = np.array(list(record["counts"].values()), float)
        most = record["test"]["samples"]
        if not len(counts) or not ((counts >= 0) & (counts <= most)).all():  # NaN is neither
            raise ValueError(f"its counts are not all between 0 and {most}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkbenchError(
            f"{path} is no record of a study: {type(error).__name__}: {error}"
        ) from error
    return record


def _plain(text: str) -> dict:
    """JSON as the standard has it."""
    return json.loads(text, parse_constant=_no_number)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def of_arm(arm: str, model: str = "3m", root: Path = RECORDS) -> dict[int, dict]:
    """seed -> record of one arm, in the order of the seeds."""
    records = read_records(root).items()
    return {seed: record for (*cell, seed), record in records if cell == [arm, model]}


# ---- tables and curves


def cells(root: Path = RECORDS) -> pd.DataFrame:
    """One row a record.

    avg, low, high, length: the test problems. pass@k: of the few problems that were sampled often,
    where they were. reading: right at the end when a solution is shown, which may be forgotten.
    tokens: what the policy generated in training; updates, seconds: what the whole cell took. Of
    the first study also distinct, harder, recovery and skills.
    """
    return pd.DataFrame([record["row"] for record in read_records(root).values()])


def _row(record: Mapping) -> dict:
    arm = record["arm"]
    metrics = record["metrics"]
    row = {"arm": arm["name"], "model": arm["model"], "task": arm["task"], "seed": record["seed"]}
    row["updates"] = len(metrics)
    row["tokens"] = float(metrics.generated.sum()) if len(metrics) else 0.0
    row["seconds"] = record["seconds"]
    for name in ("avg", "low", "high", "length"):
        row[name] = record["test"][name]
    for k, value in (record.get("pass32") or record["test"])["pass_at"].items():
        row[f"pass@{k}"] = value
    row["reading"] = (record.get("reading") or {}).get("avg", _last(metrics, "final_eval_reading"))
    if "skills" in record:  # of the first study
        row["distinct"] = record["distinct"]
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
    span of avg over them. NaN: not measured.
    """
    records = cells(root)
    rows = {}
    for arm in arms if len(records) else ():
        of_arm = records[(records.arm == arm) & (records.model == model)]
        if len(of_arm):
            rows[arm] = {
                "seeds": len(of_arm),
                **of_arm.reindex(columns=list(columns)).astype(float).mean(),
                "worst seed": of_arm.avg.min(),
                "best seed": of_arm.avg.max(),
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def teachers(columns: Sequence[str], root: Path = RECORDS) -> pd.DataFrame:
    """``summary`` of the models that SCOPE and OPD listen to, unaided: a row each."""
    rows = [summary(["base"], columns, name, root).rename({"base": name}) for name in TEACHERS]
    return pd.concat(rows)


CURVE = ["arm", "seed", "updates", "tokens", "avg"]


def curves(
    arms: Sequence[str], model: str = "3m", watched: str = "", root: Path = RECORDS
) -> pd.DataFrame:
    """arm, seed, updates, tokens (generated before), avg on the validation problems; of a
    ``watched`` task instead ("reading", in the first study).
    """
    rows = []
    for arm in dict.fromkeys(arms):
        for seed, record in of_arm(arm, model, root).items():
            points = _curve(record["metrics"], watched) if watched else record["curve"]
            rows += [(arm, seed, *point) for point in points]
    return pd.DataFrame(rows, columns=CURVE)


def _curve(metrics: pd.DataFrame, watched: str = "") -> list[tuple[int, float, float]]:
    """(updates, tokens generated before, accuracy) of each evaluation of a run, in order."""
    if metrics.empty:
        return []
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


def averages(arm: str, metric: str, model: str = "3m", root: Path = RECORDS) -> dict[int, float]:
    """Each seed's mean of a metric over the updates that have it."""
    means = {}
    for seed, record in of_arm(arm, model, root).items():
        if metric in record["metrics"]:
            means[seed] = float(record["metrics"][metric].mean())
    return means


# ---- paired differences


def measured(record: Mapping, measure: str) -> dict[str, float]:
    """Each problem's number: "avg", "first_pass" (right without a reflection), "pass@k",
    "reading"; "length" is one number for all. Empty where the record does not have it.
    """
    if measure == "length":
        return {"all": record["test"]["length"]}
    if measure == "reading":
        return record.get("reading_counts") or {}
    if measure.startswith("pass@"):
        return _solved_within(record, int(measure.removeprefix("pass@")))
    refuse_if(
        measure not in ("avg", "first_pass"),
        f"there is no measure {measure!r}: avg, first_pass, length, reading, or pass@k",
    )
    column = COUNTS.index("right" if measure == "avg" else "direct")
    return {p: row[column] / record["test"]["samples"] for p, row in record["counts"].items()}


def _solved_within(record: Mapping, k: int) -> dict[str, float]:
    samples = record["test"]["samples"]
    right = {problem: row[0] for problem, row in record["counts"].items()}
    if k > samples and record.get("pass32"):
        samples, right = record["pass32"]["samples"], record["pass32_counts"]
    return {p: pass_at_k(samples, n, k) for p, n in right.items()} if k <= samples else {}


def differences(
    a: str,
    b: str,
    measure: str = "avg",
    model: str = "3m",
    root: Path = RECORDS,
    seeds: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """For each of the ``seeds`` (None: all) that both arms have, [problems] a - b.

    Raises WorkbenchError when they were measured on different problems.
    """
    records = of_arm(a, model, root), of_arm(b, model, root)
    by_seed = []
    for seed in sorted(records[0].keys() & records[1].keys()):
        of_a, of_b = (measured(arm[seed], measure) for arm in records)
        if of_a and of_b and (seeds is None or seed in seeds):
            refuse_if(
                of_a.keys() != of_b.keys(),
                f"{a} and {b} ({model}) were measured on different problems with seed {seed}",
            )
            by_seed.append(np.array([of_a[p] - of_b[p] for p in of_a], float))
    return by_seed


def effect(a: str, b: str, measure: str = "avg", root: Path = RECORDS) -> Effect:
    """Raises WorkbenchError when no seed has records of both."""
    by_seed = differences(a, b, measure, root=root)
    refuse_if(not by_seed, f"no seed has records of both {a} and {b}")
    return paired(by_seed)


# ---- reflection


def reflection_rates(arms: Sequence[str], root: Path = RECORDS) -> pd.DataFrame:
    """The rates of reflection.py as ``Rate``, a row an arm; of the first study also recovery, the
    mean over the seeds.

    Pooled over the seeds that all arms have; only problems that every one of the arms solves
    sometimes and not always (the paper's DSR and ERR).
    """
    by_arm = {arm: of_arm(arm, root=root) for arm in arms}
    by_arm = {arm: records for arm, records in by_arm.items() if records}
    table, recovered = defaultdict(list), defaultdict(list)
    some = next(iter(by_arm.values()), {})
    for seed in some:
        if not all(seed in records for records in by_arm.values()):
            continue
        kept = _boundary([records[seed] for records in by_arm.values()])
        for arm, records in by_arm.items():
            table[arm] += _counts(records[seed], kept)
            recovered[arm].append(records[seed].get("recovery", {"value": np.nan})["value"])
    rows = {}
    for arm in by_arm:
        rows[arm] = rates(table[arm]) | {"recovery": float(np.mean(recovered[arm] or [np.nan]))}
    frame = pd.DataFrame.from_dict(rows, orient="index").drop(columns="right", errors="ignore")
    return frame.dropna(axis=1, how="all")


def counted(
    a: str, b: str, rate: str, model: str, seeds: Sequence[int], root: Path = RECORDS
) -> tuple[np.ndarray, np.ndarray]:
    """Of each arm [seeds, 2]: what a rate of reflection.py counts, and out of how many, on the
    problems that both arms solve sometimes and not always.
    """
    records = read_records(root)
    columns = [(*COUNTS, "samples").index(name) for name in RATES[rate]]
    by_arm = [], []
    for seed in seeds:
        cells = records[a, model, seed], records[b, model, seed]
        kept = _boundary(cells)
        for rows, record in zip(by_arm, cells):
            table = np.array(_counts(record, kept), float).reshape(-1, len(COUNTS) + 1)
            rows.append(table[:, columns].sum(0))
    return np.array(by_arm[0]), np.array(by_arm[1])


def _counts(record: Mapping, kept: set[str]) -> list[tuple]:
    """Rows for ``reflection.rates``, of the problems ``kept``."""
    samples = record["test"]["samples"]
    return [(*row, samples) for p, row in record["counts"].items() if p in kept]


def _boundary(records: Sequence[Mapping]) -> set[str]:
    """The problems that every one of the records solves sometimes and not always."""
    varying = []
    for record in records:
        samples = record["test"]["samples"]
        varying.append({p for p, row in record["counts"].items() if 0 < row[0] < samples})
    return set.intersection(*varying)
