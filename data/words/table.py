"""What the runs of PLAN.md came to: python -m data.words.table, which also writes table.csv.

One row an arm, means over its seeds. ``over before``: how much more of the same 200 problems is
right than before training (of QLoRA: than the quantised model before training), paired by problem,
with a 95 % bootstrap interval over the problems; ``over grpo`` the same beside GRPO's runs. It says
how sure we are of these runs on such problems, and nothing of other runs: ``worst`` and ``best``
seed do, a little.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from data.words.run import ARMS, FOUR_BIT, HERE, RECORDS
from workbench.evaluation.statistics import bootstrap
from workbench.records import write_atomic

TABLE = HERE / "table.csv"  # for the notebooks
COLUMNS = (
    *("seeds", "avg", "worst", "best", "over before", "low", "high"),
    *("over grpo", "grpo low", "grpo high", "held", "answers", "length", "seconds"),
)
_OTHERS = (
    ("base", "over before", "low", "high"),
    ("grpo", "over grpo", "grpo low", "grpo high"),
)


def read(records: Path = RECORDS) -> dict[str, list[dict]]:
    """The evaluations of each arm that has some, in the order of the plan."""
    by_name = defaultdict(list)
    for file in sorted(records.glob("*/evaluation.json")):
        evaluation = json.loads(file.read_text(encoding="utf-8"))
        by_name[evaluation["arm"]["name"]].append(evaluation)
    return {arm.name: by_name[arm.name] for arm in ARMS if arm.name in by_name}


def table(records: Path = RECORDS) -> pd.DataFrame:
    """``answers``: the share that is right whatever the equations; ``held``: right on stories that
    no training saw; ``length`` in tokens; ``seconds`` of one run.
    """
    by_arm = read(records)
    rows = {}
    for name, evaluations in by_arm.items():
        averages = [evaluation["test"]["avg"] for evaluation in evaluations]
        row = {
            "seeds": len(evaluations),
            "avg": np.mean(averages),
            "worst": min(averages),
            "best": max(averages),
            "held": np.mean([evaluation["held"]["avg"] for evaluation in evaluations]),
            "answers": np.mean([evaluation["answers"] for evaluation in evaluations]),
            "length": np.mean([evaluation["test"]["length"] for evaluation in evaluations]),
            "seconds": np.mean([evaluation["seconds"] for evaluation in evaluations]),
        }
        suffix = FOUR_BIT if name.endswith(FOUR_BIT) else ""
        for other, *columns in _OTHERS:
            if other + suffix in by_arm and name != other + suffix:
                gains = _per_problem(evaluations) - _per_problem(by_arm[other + suffix])
                row |= dict(zip(columns, (gains.mean(), *bootstrap(gains))))
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=list(COLUMNS))


def _per_problem(evaluations: list[dict]) -> np.ndarray:
    """[problems] mean over the seeds: all measure the same problems, in the same order."""
    return np.mean([evaluation["test"]["per_problem"] for evaluation in evaluations], axis=0)


def as_csv(found: pd.DataFrame) -> str:
    return found.to_csv(float_format="%.4f", index_label="arm")


if __name__ == "__main__":
    found = table()
    write_atomic(TABLE, as_csv(found))
    print(found.round(3).to_string())
