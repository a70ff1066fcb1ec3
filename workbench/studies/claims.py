"""What four papers claim, tested on the records of the study.

data/study/claims.csv holds the claims, one a line; this gives each its verdict.

    workbench claims             the ledger as a table: paper, claim, the paper's number, ours with
                                 its interval, and whether it holds here
    workbench claims --write     the same, and into data/study/ledger.md

Each claim is one difference that should be above 0, with Student's 95 % interval over seeds.

    holds            above 0, also after Holm's correction for the number of claims of its paper
    leans            its own interval is above 0, but not after the correction
    does not         as "holds", below 0
    leans against    as "leans", below 0
    undecided        the interval holds 0
    no record        its runs are not all there
    not here         it needs what the organism is not

What bears on a verdict, and was measured or follows from how the organism is made, stands beside
it. What holds on a model of three million parameters that adds numbers may not hold elsewhere, and
the other way round. "above 0 in k of n": of the n seeds that have all its records, k have a
difference above 0. The paper's numbers are in the order of the claim.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.core import WorkbenchError
from workbench.evaluation.statistics import Effect, holm
from workbench.paths import RECORDS, ROOT, STUDY
from workbench.records import write_atomic
from workbench.studies import ledger
from workbench.studies.ledger import paired

LEDGER = STUDY / "ledger.md"
SDPO = "SDPO 2601.20802"
TAPO = "TAPO 2606.18844"
TRAPO = "TRAPO 2512.17636"
SCOPE = "SCOPE 2604.10688"
LARGE = "3m"
SMALL = "0.4m"

Difference = Callable[[Path], Effect]  # of the records in a folder


@dataclass(frozen=True)
class Claim:
    """``difference(records)`` is above 0 where the claim holds; None: it cannot be tested here.

    ``number``: the paper's; ``unit``: of ours; ``why``: what bears on the outcome here.
    """

    paper: str
    text: str
    number: str
    unit: str
    difference: Difference | None
    why: str = ""


# ---- differences


def better(a: str, b: str, measure: str = "avg", model: str = LARGE) -> Difference:
    """a - b of a measure of ``ledger.measured``, paired by problem."""
    return lambda root: ledger.effect(a, b, measure, model, root)


def per_seed(value: Callable[[Path, int], float], arms: Sequence[str]) -> Difference:
    """A difference that is one number a seed, over the seeds that all ``arms`` have."""

    def difference(root: Path) -> Effect:
        values = [value(root, seed) for seed in ledger.shared_seeds(arms, LARGE, root)]
        if not values or not np.isfinite(values).all():
            raise WorkbenchError(f"no seed has records of all of {', '.join(arms)}")
        return paired([np.array([value]) for value in values])

    return difference


def column(a: str, b: str, name: str) -> Difference:
    """a - b of a column of ``ledger.cells``."""

    def value(root: Path, seed: int) -> float:
        cells = ledger.cells(root)
        row = cells[(cells.model == LARGE) & (cells.seed == seed)].set_index("arm")[name]
        return float(row[a]) - float(row[b])

    return per_seed(value, (a, b))


def rate(a: str, b: str, name: str) -> Difference:
    """a - b of a reflection rate on the boundary problems that both share."""

    def value(root: Path, seed: int) -> float:
        rates = ledger.reflection_rates([a, b], seeds=[seed], root=root)
        return rates.loc[a, name].value - rates.loc[b, name].value

    return per_seed(value, (a, b))


def sooner(a: str, b: str, share: float) -> Difference:
    """How much sooner a reaches b's final accuracy than after ``share`` of b's updates.

    In shares of b's updates: above 0 where a needs less than that. Never reached counts as 2.
    """

    def value(root: Path, seed: int) -> float:
        slow = ledger.curves([b], root=root)
        slow = slow[slow.seed == seed]
        fast = ledger.curves([a], root=root)
        level = {seed: float(slow.avg.iloc[-1])}
        updates = ledger.reaches(fast[fast.seed == seed], level)[seed]
        return share - (updates / float(slow.updates.max()) if np.isfinite(updates) else 2.0)

    return per_seed(value, (a, b))


def grows(a: str, b: str) -> Difference:
    """How much more a gains over b in the large model than in the small one, seed by seed."""

    def difference(root: Path) -> Effect:
        large = ledger.differences(a, b, "avg", LARGE, root)
        small = ledger.differences(a, b, "avg", SMALL, root)
        return paired([np.array([x.mean() - y.mean()]) for x, y in zip(large, small)])

    return difference


# ---- claims and their verdicts


def read_claims(path: Path = STUDY / "claims.csv") -> tuple[Claim, ...]:
    """The columns ``comparison``, ``a``, ``b``, ``of`` and ``model`` say which difference it is."""
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(
            Claim(row["paper"], row["claim"], row["number"], row["unit"], _tested(row), row["why"])
            for row in csv.DictReader(file)
        )


def _tested(row: Mapping[str, str]) -> Difference | None:
    a, b, of = row["a"], row["b"], row["of"]
    comparisons = {
        "better": lambda: better(a, b, of, row["model"]),
        "column": lambda: column(a, b, of),
        "rate": lambda: rate(a, b, of),
        "sooner": lambda: sooner(a, b, float(of)),
        "grows": lambda: grows(a, b),
    }
    return comparisons[row["comparison"]]() if row["comparison"] else None


CLAIMS = read_claims()


def verdicts(root: Path = RECORDS, claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """One row a claim: paper, claim, paper's number, ours (Effect or None), unit, corrected p,
    verdict, why.
    """
    effects = [_effect(claim, root) for claim in claims]
    corrected = _corrected(claims, effects)
    rows = [
        {
            "paper": claim.paper,
            "claim": claim.text,
            "the paper's": claim.number,
            "ours": effect,
            "unit": claim.unit,
            "p": p,
            "verdict": verdict(effect, p) if claim.difference else "not here",
            "why": claim.why,
        }
        for claim, effect, p in zip(claims, effects, corrected)
    ]
    return pd.DataFrame(rows)


def _effect(claim: Claim, root: Path) -> Effect | None:
    try:
        return claim.difference(root) if claim.difference else None
    except WorkbenchError:
        return None


def _corrected(claims: Sequence[Claim], effects: Sequence[Effect | None]) -> list[float]:
    """Each p after Holm's correction over its paper's; NaN where there is none."""
    corrected = [float("nan")] * len(claims)
    for paper in {claim.paper for claim in claims}:
        places = [
            i
            for i, effect in enumerate(effects)
            if claims[i].paper == paper and effect is not None and effect.seeds > 1
        ]
        for i, p in zip(places, holm([effects[i].p for i in places])):
            corrected[i] = p
    return corrected


def verdict(effect: Effect | None, corrected: float) -> str:
    if effect is None:
        return "no record"
    if effect.seeds == 1 or not effect.p < 0.05:
        return "undecided"
    if corrected < 0.05:
        return "holds" if effect.mean > 0 else "does not"
    return "leans" if effect.mean > 0 else "leans against"


HEAD = """# What holds here

Written by `workbench claims --write` from the records in data/runs; what the words mean stands at \
the top of
`workbench/studies/claims.py`. On a model of three million parameters that adds numbers: see \
`notebooks/15_compare.ipynb` for what that can tell.

| paper | claim | the paper's | ours: difference that should be above 0 | in | verdict | what \
bears on it |
|---|---|---|---|---|---|---|
"""


def markdown(table: pd.DataFrame) -> str:
    lines = [
        f"| {row.paper} | {row.claim} | {row[3]} | {row.ours or ''} | {row.unit} | "
        f"{row.verdict} | {row.why} |\n"
        for row in table.itertuples(index=True)
    ]
    return HEAD + "".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--write", action="store_true", help=f"write {LEDGER.relative_to(ROOT)}")


def main(args: argparse.Namespace) -> None:
    text = markdown(verdicts())
    print(text)
    if args.write:
        write_atomic(LEDGER, text)
