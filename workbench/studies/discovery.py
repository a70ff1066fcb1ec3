"""discovery@k from the record of a test-time study (workbench/training/ttt.py): curves, intervals,
and the verdict in words. No model is needed.

    discovery@k = P(first success within k generations), from the cells (method, question, seed) of
    the record

A run that does not succeed within the budget is a failure at every k up to it, and says nothing of
larger k: no curve goes beyond the budget. The ``best_of`` cells are independent attempts, so each
gives the unbiased pass@k of its question (metrics.py) instead of its one first success.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from workbench.core import WorkbenchError
from workbench.evaluation.metrics import pass_at_k

SCHEMA_VERSION = 1
NAMES = {"sdpo": "SDPO", "best_of": "best-of-k", "multi_turn": "multi-turn", "blind": "SDPO, blind"}


def read_study(path: str | Path) -> dict:
    """Raises WorkbenchError when ``path`` is no record of a study."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        version, *_ = (
            record["schema_version"],
            record["config"]["methods"],
            record["base"],
            record["cells"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkbenchError(f"{path} is not the record of a test-time study") from error
    if version != SCHEMA_VERSION:
        raise WorkbenchError(
            f"the study in {path} has schema version {version}, this package reads {SCHEMA_VERSION}"
        )
    return record


def reached(first: int | None, budget: int) -> np.ndarray:
    """[budget] 1.0 at k = 1, 2, ... if the first success was within k generations; None: there was
    none within the budget.
    """
    return (np.arange(1, budget + 1) >= (np.inf if first is None else first)).astype(float)


def curves(record: Mapping) -> dict[str, np.ndarray]:
    """[questions, seeds, budget] discovery@k of each cell, by method.

    Raises WorkbenchError while cells are missing.
    """
    asked, budget = record["config"], record["config"]["budget"]
    questions = [b["question"] for b in record["base"] if b["hard"]]
    cells = {(c["method"], c["question"], c["seed"]): c for c in record["cells"]}
    wanted = [(m, q, s) for m in asked["methods"] for q in questions for s in range(asked["seeds"])]
    if len(questions) < asked["questions"] or not cells.keys() >= set(wanted):
        raise WorkbenchError(
            f"the study is not finished: {len(cells)} cells are there; run its command again"
        )
    rows = {
        key: [pass_at_k(budget, cells[key]["right"], k) for k in range(1, budget + 1)]
        if key[0] == "best_of"
        else reached(cells[key]["first"], budget)
        for key in wanted
    }
    return {
        m: np.array([[rows[m, q, s] for s in range(asked["seeds"])] for q in questions])
        for m in asked["methods"]
    }


def interval(
    values: np.ndarray, level: float = 0.9, draws: int = 2000, seed: int = 0
) -> np.ndarray:
    """[3, ...] mean, low and high of [questions, seeds, ...]: percentile bootstrap over the
    questions and, within each, over its seeds.

    Runs at one question are alike, so drawing all cells as if they were independent would make the
    interval too narrow. Equal shapes, equal draws: the interval of a difference of two methods is
    that of paired cells.
    """
    questions, seeds = values.shape[:2]
    rng = np.random.default_rng(seed)
    drawn = (
        rng.integers(questions, size=(draws, questions, 1)),
        rng.integers(seeds, size=(draws, questions, seeds)),
    )
    weights = np.zeros((draws, questions, seeds))
    np.add.at(weights, (np.arange(draws)[:, None, None], *drawn), 1 / (questions * seeds))
    means = np.tensordot(weights, values, 2)
    return np.stack(
        [values.mean((0, 1)), *np.quantile(means, ((1 - level) / 2, (1 + level) / 2), axis=0)]
    )


def summary(found: Mapping[str, np.ndarray], ks: Sequence[int]) -> list[dict[str, object]]:
    """A row a method: discovery@k with its 90 % interval."""
    rows = []
    for name, values in found.items():
        mean, low, high = interval(values)
        rows.append(
            {"method": NAMES[name]}
            | {f"@{k}": f"{mean[k - 1]:.2f} [{low[k - 1]:.2f}, {high[k - 1]:.2f}]" for k in ks}
        )
    return rows


def verdict(found: Mapping[str, np.ndarray], k: int) -> list[str]:
    """A sentence for each method that SDPO is compared with, at k generations each.

    Paired cells, 90 % interval.
    """
    sentences = []
    for name in [name for name in found if name != "sdpo"]:
        # no -0.00
        mean, low, high = (
            np.round(interval(found["sdpo"][..., k - 1] - found[name][..., k - 1]), 2) + 0.0
        )
        says = (
            "finds more than"
            if low > 0
            else "finds less than"
            if high < 0
            else "cannot be told apart from"
        )
        sentences.append(
            f"At {k} generations SDPO {says} {NAMES[name]}: difference {mean:+.2f} "
            f"[{low:+.2f}, {high:+.2f}]."
        )
    return sentences
