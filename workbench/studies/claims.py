"""What four papers claim, tested on the records of the study by the rules of data/study/PLAN.md.

data/study/claims.csv holds the claims, one a line, with their source; the papers' numbers stand
once more in papers.csv. This gives each claim its verdict.

    workbench claims             the ledger: claim, the paper's number, ours, verdict, power
    workbench claims --write     the same, and into data/study/ledger.md

A claim is one difference a - b that should be above 0: one mean a seed, over the planned seeds that
both arms have, with Student's 95 % interval (statistics.paired: the variance is no less than that
of measuring the seeds). One claim of a paper is primary and tested at .05; its others are corrected
by Holm's procedure among themselves, those that were measured, differences and samenesses each. So
are those "beside": what would make a primary claim wrong, and what goes further than the plan's
claims.

    the same         inside the margin by two one-sided tests (statistics.same); comes before the
                     next two: a difference of less than the margin is none here
    holds            above 0
    does not         below 0
    undecided        none of these
    no verdict       there is one seed
    not measured     its runs are not there, or a rate is of fewer than 100 responses
    not here         it needs what the organism is not

Provisional: on fewer seeds than were planned. Power: the chance, with so many seeds and the spread
that came out, to tell a true difference of one margin from 0, and to call equals the same. Equal
tokens: a - b in validation accuracy (in length, where the claim is about it), whatever else the
claim is about, where both have written as much as the thriftier one. Area: a - b of the mean of the
same along the run, a description. The curves of all runs are of the same validation problems, so
these two and "sooner" have the spread between runs in their interval and not that of measuring.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from workbench.evaluation import statistics
from workbench.evaluation.statistics import Effect, holm, paired
from workbench.paths import RECORDS, ROOT, STUDY
from workbench.records import write_atomic
from workbench.studies import ledger
from workbench.studies.cell import FULL, own_rates

LEDGER = STUDY / "ledger.md"
SDPO = "SDPO 2601.20802"
TAPO = "TAPO 2606.18844"
TRAPO = "TRAPO 2512.17636"
SCOPE = "SCOPE 2604.10688"
LEVEL = 0.05
LEAST = 100  # responses of which a rate is one
DECIDED = ("holds", "does not", "the same")


class Claim(Protocol):
    """A line of claims.csv, by its columns.

    ``role``: primary, other or beside. ``number``: the paper's, found at ``source``. ``comparison``
    and ``of`` say what is compared (COMPARISONS); "": it cannot be tested here. ``seeds``: those
    planned. ``margin``: in the ``unit`` of the difference. ``wrong_if``: what would have to be true
    for it to be wrong all the same; of those beside, what it says of others.
    """


_LINES = pd.read_csv(STUDY / "claims.csv", keep_default_na=False, dtype=str)
_LINES = _LINES.astype({"seeds": int, "margin": float})
CLAIMS: tuple[Claim, ...] = tuple(_LINES.itertuples(index=False, name="Claim"))


# ---- the difference of a claim, over some seeds


# (arm, seed) -> its accuracies (or lengths) along the run, as ``ledger.curves`` has it
Runs = Mapping[tuple[str, int], pd.DataFrame]


def _better(claim: Claim, seeds: Sequence[int], root: Path, _: Runs) -> Effect | None:
    """Of a measure of ``ledger.measured``, paired by problem."""
    by_seed = ledger.differences(claim.a, claim.b, claim.of, claim.model, root, seeds)
    return paired(by_seed) if by_seed else None


def _rate(claim: Claim, seeds: Sequence[int], root: Path, _: Runs) -> Effect | None:
    """Of a rate of reflection, pooled over the seeds."""
    counts = ledger.counted(claim.a, claim.b, claim.of, claim.model, seeds, root)
    return statistics.pooled_ratio(*counts, LEAST)


def _sooner(claim: Claim, seeds: Sequence[int], _: Path, runs: Runs) -> Effect:
    """How much earlier a comes to where b ends than after the share ``of`` of b's updates."""
    end = np.mean([runs[claim.b, seed].avg.iloc[-1] for seed in seeds])
    a, b = ([_reached(runs[arm, seed], end) for seed in seeds] for arm in (claim.a, claim.b))
    horizon = max(runs[claim.b, seed].updates.max() for seed in seeds)
    return statistics.sooner(a, b, float(claim.of), horizon)


def _reached(run: pd.DataFrame, level: float) -> float:
    """The updates before the first evaluation that with its two neighbours has a mean of at least
    ``level``; infinite: never.
    """
    smooth = run.avg.rolling(3, center=True).mean()
    return float(run.updates[smooth >= level].min()) if (smooth >= level).any() else np.inf


def _above(claim: Claim, seeds: Sequence[int], root: Path, _: Runs) -> Effect:
    """A metric of a's runs, averaged over the updates, over a number: ``of`` names both."""
    metric, number = claim.of.split()
    means = ledger.averages(claim.a, metric, claim.model, root)
    return paired([np.array([means[seed] - float(number)]) for seed in seeds])


COMPARISONS = {"better": _better, "rate": _rate, "sooner": _sooner, "above": _above}


def _at_equal_tokens(claim: Claim, seeds: Sequence[int], runs: Runs) -> Effect | None:
    """None where one of them writes nothing (SFT): then there is no amount to compare at."""
    by_seed = []
    for seed in seeds:
        a, b = runs[claim.a, seed], runs[claim.b, seed]
        budget = min(a.tokens.max(), b.tokens.max())
        if not budget:
            return None
        accuracies = [np.interp(budget, run.tokens, run.avg) for run in (a, b)]
        by_seed.append(-np.diff(accuracies))
    return paired(by_seed)


def _area(claim: Claim, seeds: Sequence[int], runs: Runs) -> Effect:
    return paired(
        [np.array([_height(runs[claim.a, s]) - _height(runs[claim.b, s])]) for s in seeds]
    )


def _height(run: pd.DataFrame) -> float:
    """The mean height of a curve, without what came before the first update (a cold start)."""
    run = run[run.updates >= 0]
    if len(run) == 1:
        return float(run.avg.iloc[0])
    return float(np.trapezoid(run.avg, run.updates) / np.ptp(run.updates))


# ---- verdicts


def verdicts(root: Path = RECORDS, claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """One row a claim: paper, claim, role, number (the paper's), source, seeds (planned), unit,
    margin, wrong_if; and OUTCOME, p and p same corrected; verdict.
    """
    table = pd.DataFrame(claims)
    outcomes = pd.DataFrame([_outcome(claim, root) for claim in claims], columns=OUTCOME)
    for places in table.groupby(["paper", "role"]).groups.values():
        for column in ("p", "p same"):
            known = outcomes.loc[places, column].dropna()
            outcomes.loc[known.index, column] = holm(known.tolist())
    words = map(verdict, outcomes.ours, outcomes.p, outcomes["p same"])
    outcomes["verdict"] = np.where(table.comparison == "", "not here", list(words))
    return table.drop(columns=["comparison", "a", "b", "of", "model"]).join(outcomes)


# effects (or None): ours, equal tokens, area. power: to tell a true difference of one margin from
# 0; power same: to call equals the same
OUTCOME = ["ours", "equal tokens", "area", "p", "p same", "power", "power same", "provisional"]


def _outcome(claim: Claim, root: Path) -> dict:
    """What there is of OUTCOME."""
    claim = claim._replace(a=_run_as(claim.a, root), b=_run_as(claim.b, root))
    arms = [arm for arm in (claim.a, claim.b) if arm]
    watched = claim.of if claim.of == "length" else ""
    curves = ledger.curves(arms, claim.model, watched, root)
    runs = dict(list(curves.groupby(["arm", "seed"])))
    seeds = [s for s in range(claim.seeds) if arms and all((arm, s) in runs for arm in arms)]
    effect = COMPARISONS[claim.comparison](claim, seeds, root, runs) if seeds else None
    outcome = {"ours": effect, "equal tokens": None, "area": None, "provisional": False}
    if effect is None:
        return outcome
    outcome["provisional"] = effect.seeds < claim.seeds
    if claim.b:
        outcome["equal tokens"] = _at_equal_tokens(claim, seeds, runs)
        outcome["area"] = _area(claim, seeds, runs)
    if effect.seeds > 1:
        outcome["p"] = effect.p
        outcome["p same"] = statistics.same(effect, claim.margin)
        spread = max(effect.error * np.sqrt(effect.seeds), 1e-9)
        outcome["power"] = statistics.power(effect.seeds, spread, claim.margin, LEVEL)
        outcome["power same"] = statistics.power_of_same(effect.seeds, spread, claim.margin, LEVEL)
    return outcome


def _run_as(arm: str, root: Path) -> str:
    """The arm whose records stand for it: one whose own rate is the common one is not run again."""
    again = own_rates().get(arm) != FULL.lr or ledger.of_arm(arm, root=root)
    return arm if again else arm.removesuffix("-tuned")


def verdict(effect: Effect | None, p: float, p_same: float = float("nan")) -> str:
    """From p of a difference and of a sameness, both corrected."""
    if effect is None:
        return "not measured"
    if effect.seeds == 1:
        return "no verdict"
    if p_same < LEVEL:
        return "the same"
    if p < LEVEL:
        return "holds" if effect.mean > 0 else "does not"
    return "undecided"


# ---- workbench claims


HEAD = """# What holds here

Written by `workbench claims --write` from the records in data/study/runs, by the rules of \
[PLAN.md](PLAN.md); what the words
mean stands at the top of `workbench/studies/claims.py`. On a model of three million parameters \
that adds numbers: see
`notebooks/15_compare.ipynb` for what that can tell. Equal tokens and area are differences of the \
accuracy along the runs (of
the length, where the claim is about it), also beside a claim about something else.
"""
COLUMNS = """
| claim | the paper's | ours: a - b that should be above 0 | verdict | power | equal tokens | area \
| wrong if |
|---|---|---|---|---|---|---|---|
"""


def decided(table: pd.DataFrame) -> str:
    """How many of the plan's claims are decided, in a sentence."""
    of_plan = table[table.role != "beside"].verdict
    counts = of_plan.value_counts()
    testable = len(of_plan) - counts.get("not measured", 0) - counts.get("no verdict", 0)
    words = ", ".join(f"{word}: {counts[word]}" for word in DECIDED if word in counts)
    sentence = f"Of the plan's {len(of_plan)} claims {testable} were measured"
    return f"{sentence}, {sum(of_plan.isin(DECIDED))} are decided{f' ({words})' if words else ''}."


def markdown(table: pd.DataFrame) -> str:
    parts = [HEAD, f"\n{decided(table)}\n"]
    for paper, rows in table.groupby("paper", sort=False):
        parts += [f"\n## {paper}\n", COLUMNS, *_lines(rows[rows.role != "beside"])]
        beside = rows[rows.role == "beside"]
        parts += ["\nBeside them:\n", COLUMNS, *_lines(beside)] if len(beside) else []
    return "".join(parts)


def _lines(rows: pd.DataFrame) -> Iterator[str]:
    for row in rows.to_dict("records"):
        effect = row["ours"]
        cells = [f"**{row['claim']}**" if row["role"] == "primary" else row["claim"]]
        cells.append(f"{row['number']} ({row['source']})" if row["source"] else "")
        cells.append(f"{effect} {row['unit']}" if effect else "")
        cells.append(spoken(row))
        cells.append(f"{row['power']:.2f}, {row['power same']:.2f}" if row["power"] > 0 else "")
        cells.append(str(row["equal tokens"] or ""))
        cells.append(f"{row['area'].mean:+.3f}" if row["area"] else "")
        cells.append(row["wrong_if"])
        yield f"| {' | '.join(cells)} |\n"


def spoken(row: Mapping) -> str:
    """A verdict with what it rests on, where that is less than was planned."""
    if not row["provisional"]:
        return row["verdict"]
    return f"{row['verdict']}, provisional: {row['ours'].seeds} of {row['seeds']} seeds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--write", action="store_true", help=f"write {LEDGER.relative_to(ROOT)}")


def main(args: argparse.Namespace) -> None:
    text = markdown(verdicts())
    print(text)
    if args.write:
        write_atomic(LEDGER, text)
