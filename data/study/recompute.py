"""Every verdict of the ledger once more, straight from the JSON: python data/study/recompute.py

[FOLDER]: the records (data/study/runs). The rules are those of PLAN.md; nothing of the package is
imported, so that a mistake there is not made here again. A test compares the two.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

HERE = Path(__file__).resolve().parent
LEVEL = 0.05


def read(root):
    """(arm, model, seed) -> evaluation.json with its curve: updates -> validation accuracy."""
    records = {}
    for path in Path(root).glob("*/evaluation.json"):
        record = json.loads(path.read_text())
        lines = path.with_name("metrics.jsonl")
        steps = lines.read_text().splitlines() if lines.exists() else []
        record["steps"] = pd.DataFrame(map(json.loads, steps))
        if "final_eval_avg" in record["steps"]:
            steps = record["steps"].set_index("step")
            last = steps.final_eval_avg.rename(lambda step: step + 1)
            record["curve"] = last.combine_first(steps.eval_avg).dropna().sort_index()
            records[record["arm"]["name"], record["arm"]["model"], record["seed"]] = record
    return records


def per_problem(record, of):
    if of == "length":
        return pd.Series({"all": record["test"]["length"]})
    if of == "reading":
        return pd.Series(record.get("reading_counts") or {}, dtype=float)
    counts = pd.DataFrame.from_dict(record["counts"], orient="index")[0]
    samples = record["test"]["samples"]
    if of == "avg":
        return counts / samples
    if record.get("pass32"):
        counts, samples = pd.Series(record["pass32_counts"]), record["pass32"]["samples"]
    return (counts > 0).astype(float) if of == f"pass@{samples}" else pd.Series(dtype=float)


def over_seeds(by_seed):
    """Mean, its standard error, seeds: of one array of differences a seed."""
    means = np.array([np.mean(d) for d in by_seed])
    if len(means) < 2:
        return (*means, np.nan, 1) if len(means) else None
    within = np.mean([np.var(d, ddof=1) / len(d) if len(d) > 1 else 0 for d in by_seed])
    variance = max(means.var(ddof=1), within)
    return means.mean(), np.sqrt(variance / len(means)), len(means)


def better(claim, pairs):
    both = [(per_problem(a, claim.of), per_problem(b, claim.of)) for a, b in pairs]
    return over_seeds([a - b for a, b in both if len(a) and len(b)])


def above(claim, pairs):
    metric, number = claim.of.split()
    return over_seeds([[a["steps"][metric].mean() - float(number)] for a, _ in pairs])


def rate(claim, pairs):
    """Pooled, with the jackknife's error; None where either is of fewer than 100 responses."""
    upper, lower = {"dsr": (1, 0), "err": (3, 2)}[claim.of]
    sums = []
    for pair in pairs:
        tables = [pd.DataFrame.from_dict(r["counts"], orient="index") for r in pair]
        edge = [t.index[t[0].between(1, r["test"]["samples"] - 1)] for t, r in zip(tables, pair)]
        kept = [t.loc[edge[0].intersection(edge[1])].sum() for t in tables]
        sums.append([(t[upper], t[lower]) if len(t) else (0, 0) for t in kept])
    sums = np.array(sums, float)  # seeds, arms, count and out of
    others = sums.sum(0) - sums
    if sums.sum(0)[:, 1].min() < 100 or others[..., 1].min() <= 0:
        return None
    left = others[:, 0, 0] / others[:, 0, 1] - others[:, 1, 0] / others[:, 1, 1]
    (a, of_a), (b, of_b) = sums.sum(0)
    return a / of_a - b / of_b, np.sqrt((len(left) - 1) * left.var()), len(left)


def sooner(claim, pairs):
    level = np.mean([b["curve"].iloc[-1] for _, b in pairs])
    horizon = max(b["curve"].index[-1] for _, b in pairs)

    def share(record):
        smooth = record["curve"].rolling(3, center=True).mean()
        times = smooth.index[smooth >= level]
        return min(times[0], horizon) / horizon if len(times) else 1.0

    return over_seeds([[float(claim.of) * share(b) - share(a)] for a, b in pairs])


def holm(ps):
    ps = ps.dropna().sort_values()
    return (ps * np.arange(len(ps), 0, -1)).cummax().clip(upper=1)


def run_as(arm, records, tuning):
    """A rate of one's own that is the common one: not run again."""
    rates = json.loads(tuning.read_text())["rates"] if tuning.exists() else {}
    again = rates.get(arm) != 1e-4 or any(name == arm for name, _, _ in records)
    return arm if again else arm.replace("-tuned", "")


def verdicts(root, claims=HERE / "claims.csv", tuning=HERE / "tuning.json"):
    records = read(root)
    kinds = {"better": better, "rate": rate, "sooner": sooner, "above": above}
    table = pd.read_csv(claims, keep_default_na=False)
    table[["mean", "error", "n"]] = np.nan
    for side in ("a", "b"):
        table[side] = [run_as(arm, records, tuning) for arm in table[side]]
    for place, claim in table.iterrows():
        keys = [
            [(arm, claim.model, seed) for arm in (claim.a, claim.b)] for seed in range(claim.seeds)
        ]
        pairs = [(records.get(a), records.get(b)) for a, b in keys]
        pairs = [(a, b) for a, b in pairs if a and (b or not claim.b)]
        found = kinds[claim.comparison](claim, pairs) if claim.comparison and pairs else None
        if found:
            table.loc[place, ["mean", "error", "n"]] = found
    error, free = table.error.clip(lower=1e-12), table.n - 1
    several = free > 0
    table["p"] = 2 * stats.t.sf(abs(table["mean"]) / error, free)
    table["same"] = stats.t.sf((table.margin - abs(table["mean"])) / error, free)
    for _, family in table[several].groupby(["paper", "role"]):
        for column in ("p", "same"):
            table.loc[family.index, column] = holm(family[column])
    sign = np.where(table["mean"] > 0, "holds", "does not")
    words = np.where(table.same < LEVEL, "the same", np.where(table.p < LEVEL, sign, "undecided"))
    words = np.where(several, words, np.where(table.n == 1, "no verdict", "not measured"))
    table["verdict"] = np.where(table.comparison == "", "not here", words)
    return table


if __name__ == "__main__":
    found = verdicts(sys.argv[1] if len(sys.argv) > 1 else HERE / "runs")
    print(found[["paper", "claim", "n", "mean", "error", "verdict"]].to_string(index=False))
