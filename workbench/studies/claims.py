"""What four papers claim, tested on the records of the study: paper, claim, the paper's number,
ours with its interval, and whether it holds here.

Each claim is one difference that should be above 0, with Student's 95 % interval over seeds.
"holds": above 0, also after Holm's correction for the number of claims of its paper; "leans": its
own interval is above 0, but not after the correction; "does not", "leans against": the same below
0; "undecided": the interval holds 0; "no record": its runs are not all there; "not here": it needs
what the organism is not. What bears on a verdict, and was measured or follows from how the organism
is made, stands beside it. What holds on a model of three million parameters that adds numbers may
not hold elsewhere, and the other way round. "above 0 in k of n": of the n seeds that have all its
records, k have a difference above 0. The paper's numbers are in the order of the claim.

    python -m workbench.studies.claims        the ledger as a table; data/study/ledger.md with
                                              --write
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.core import WorkbenchError
from workbench.paths import RECORDS, ROOT, STUDY
from workbench.records import write_atomic
from workbench.studies import ledger
from workbench.studies.ledger import Effect, paired

LEDGER = STUDY / "ledger.md"


@dataclass(frozen=True)
class Claim:
    """``difference(records)`` is above 0 where the claim holds; None: it cannot be tested here.

    ``number``: the paper's; ``unit``: of ours; ``why``: what bears on the outcome here.
    """

    paper: str
    text: str
    number: str
    unit: str
    difference: Callable[[Path], Effect] | None
    why: str = ""


def better(a: str, b: str, measure: str = "avg", model: str = "3m") -> Callable[[Path], Effect]:
    return lambda root: ledger.effect(a, b, measure, model, root)


def per_seed(
    value: Callable[[Path, int], float], arms: tuple[str, ...], model: str = "3m"
) -> Callable[[Path], Effect]:
    """A difference that is one number a seed, over the seeds that all ``arms`` have."""

    def difference(root: Path) -> Effect:
        found = ledger.cells(root)
        seeds = set.intersection(
            *(
                set(found[(found.arm == arm) & (found.model == model)].seed)
                if len(found)
                else set()
                for arm in arms
            )
        )
        values = [value(root, int(seed)) for seed in sorted(seeds)]
        if not values or not np.isfinite(values).all():
            raise WorkbenchError(f"no seed has records of all of {', '.join(arms)}")
        return paired([np.array([v]) for v in values])

    return difference


def _cell(root: Path, arm: str, seed: int, column: str, model: str = "3m") -> float:
    found = ledger.cells(root)
    return float(
        found[(found.arm == arm) & (found.model == model) & (found.seed == seed)][column].iloc[0]
    )


def column(a: str, b: str, name: str, sign: float = 1.0) -> Callable[[Path], Effect]:
    """``sign`` (a - b) of a column of ``ledger.cells``."""
    return per_seed(
        lambda root, seed: sign * (_cell(root, a, seed, name) - _cell(root, b, seed, name)), (a, b)
    )


def rate(a: str, b: str, name: str) -> Callable[[Path], Effect]:
    """The difference of a reflection rate on the boundary problems that both share."""

    def value(root: Path, seed: int) -> float:
        found = ledger.reflection_rates([a, b], seeds=[seed], root=root)
        return found.loc[a, name].value - found.loc[b, name].value

    return per_seed(value, (a, b))


def sooner(a: str, b: str, share: float) -> Callable[[Path], Effect]:
    """``share`` of b's updates, less the updates in which a first reaches b's final accuracy, over
    b's: above 0 where a needs less than that. Never reached counts as 2.
    """

    def value(root: Path, seed: int) -> float:
        theirs = ledger.curves([b], root=root)
        theirs = theirs[theirs.seed == seed]
        whole = float(theirs.updates.max())
        mine = ledger.curves([a], root=root)
        needed = ledger.reaches(mine[mine.seed == seed], {seed: float(theirs.avg.iloc[-1])})[seed]
        return share - (needed / whole if np.isfinite(needed) else 2.0)

    return per_seed(value, (a, b))


def grows(a: str, b: str, large: str = "3m", small: str = "0.4m") -> Callable[[Path], Effect]:
    """How much more a gains over b in the large model than in the small one, seed by seed."""

    def difference(root: Path) -> Effect:
        up, down = (ledger.differences(a, b, "avg", model, root) for model in (large, small))
        return paired([np.array([x.mean() - y.mean()]) for x, y in zip(up, down)])

    return difference


SDPO, TAPO, TRAPO, SCOPE = (
    "SDPO 2601.20802",
    "TAPO 2606.18844",
    "TRAPO 2512.17636",
    "SCOPE 2604.10688",
)
CLAIMS = (
    Claim(
        SDPO,
        "better than GRPO at equal steps",
        "48.8 to 41.2",
        "avg@32",
        better("sdpo", "grpo"),
        "with a right solution to read, .97 of its self-teacher's answers are right",
    ),
    Claim(
        SDPO,
        "better than GRPO on programs (rates tuned on arithmetic)",
        "48.8 to 41.2",
        "avg@32",
        better("sdpo", "grpo", model="programmer"),
        "its teacher always had a right program to read, and never needed feedback",
    ),
    Claim(
        SDPO,
        "a right attempt teaches more than feedback (programs)",
        "42.6 to 39.9",
        "avg@32",
        better("sdpo", "sdpo-feedback", model="programmer"),
        "with a right program in the prompt .92 are right, with feedback .63",
    ),
    Claim(
        SDPO,
        "reading both is better than a right attempt alone (programs)",
        "48.3 to 42.6",
        "avg@32",
        better("sdpo-both", "sdpo", model="programmer"),
        "every group with a wrong attempt had a right one to read",
    ),
    Claim(
        SDPO,
        "GRPO's final accuracy in at most half of its steps",
        "a quarter",
        "1/2 - share of the steps",
        sooner("sdpo", "grpo", 0.5),
        "a share of 2: never",
    ),
    Claim(
        SDPO,
        "shorter answers than GRPO",
        "3.2 times",
        "tokens fewer",
        column("sdpo", "grpo", "length", -1.0),
        "every step of an answer is graded, so none can be left out",
    ),
    Claim(
        SDPO,
        "gains more on larger models",
        "loses at 1.5B",
        "gain of 3m - gain of 0.4m",
        grows("sdpo", "grpo"),
        "not step by step: over GRPO 0.4m -.087, 1m +.094, 3m +.024; the 0.4m reads a "
        "shown solution less well (.70 to .97); rates tuned on the 3m",
    ),
    Claim(
        SDPO,
        "an EMA teacher is better than a frozen one",
        "49.3 to 48.8",
        "avg@32",
        better("sdpo", "sdpo-frozen"),
    ),
    Claim(
        SDPO,
        "a trust-region teacher is better than an EMA one",
        "50.6 to 49.3",
        "avg@32",
        better("sdpo-mixed", "sdpo"),
    ),
    Claim(
        SDPO,
        "a live teacher is worse than an EMA one",
        "36.1 to 49.3",
        "avg@32",
        better("sdpo", "sdpo-live"),
        "none collapsed within 40 updates",
    ),
    Claim(
        SDPO,
        "logit credit is better than token credit",
        "logit > token",
        "avg@32",
        better("sdpo", "sdpo-token"),
    ),
    Claim(
        SDPO,
        "token credit is better than sequence credit",
        "token > sequence",
        "avg@32",
        better("sdpo-token", "sdpo-sequence"),
    ),
    Claim(
        SDPO,
        "collapses after some 400 steps, declines on mathematics (said by others)",
        "",
        "",
        None,
        "the runs have 40 updates",
    ),
    Claim(
        TAPO,
        "better than GRPO at equal steps",
        "62.5 to 52.9 (AIME24)",
        "avg@32",
        better("tapo", "grpo"),
    ),
    Claim(
        TAPO,
        "better than GRPO at equal tokens",
        "not tested",
        "avg@32",
        better("tapo", "grpo-tokens"),
    ),
    Claim(
        TAPO,
        "higher direct solution rate than GRPO",
        "+13.5 (AIME24)",
        "DSR",
        rate("tapo", "grpo", "dsr"),
        "nearly every right answer is right at once",
    ),
    Claim(
        TAPO,
        "higher effective reflection rate than GRPO",
        "+11.4 (AIME24)",
        "ERR",
        rate("tapo", "grpo", "err"),
        "there are few reflections to count",
    ),
    Claim(
        TAPO,
        "better than GRPO, both from a cold start",
        "62.5 to 52.9 (AIME24)",
        "avg@32",
        better("tapo-cold", "grpo-cold"),
    ),
    Claim(
        TAPO,
        "higher effective reflection rate, both from a cold start",
        "+11.4 (AIME24)",
        "ERR",
        rate("tapo-cold", "grpo-cold", "err"),
        "of either's reflections nearly all are needless",
    ),
    Claim(
        TAPO,
        "better with the wrong prefix than without",
        "no prefix is worse",
        "avg@32",
        better("tapo", "tapo-no-prefix"),
    ),
    Claim(
        TAPO,
        "better with decoupled advantages",
        "without is worse",
        "avg@32",
        better("tapo", "tapo-no-dae"),
    ),
    Claim(
        TAPO,
        "better with token suppression",
        "without is worse",
        "avg@32",
        better("tapo", "tapo-no-ots"),
    ),
    Claim(
        TAPO,
        "better with wrong reconstructions as negatives",
        "without is worse",
        "avg@32",
        better("tapo", "tapo-no-negatives"),
    ),
    Claim(
        TAPO,
        "better than imitating the same trajectories",
        "SFT is far worse",
        "avg@32",
        better("tapo", "tapo-sft"),
    ),
    Claim(
        TAPO,
        "better than OPSD; AIME25 and HMMT25",
        "46.9 to 43.3, 31.5 to 24.2",
        "",
        None,
        "it takes a model that reasons in thousands of tokens",
    ),
    Claim(
        TRAPO,
        "better than LUFFY",
        "56.6 to 55.5",
        "avg@32",
        better("trapo", "luffy"),
        "the expert writes in a style that the organism has never seen",
    ),
    Claim(
        TRAPO,
        "LUFFY better than SFT-then-RL",
        "55.5 to 54.3",
        "avg@32",
        better("luffy", "sft-then-rl"),
    ),
    Claim(
        TRAPO,
        "SFT-then-RL better than GRPO",
        "54.3 to 50.4",
        "avg@32",
        better("sft-then-rl", "grpo"),
    ),
    Claim(
        TRAPO,
        "GRPO better than SFT",
        "50.4 to 50.3",
        "avg@32",
        better("grpo", "sft"),
        "a foreign style costs so small a model what it knew, at each of the three rates",
    ),
    Claim(
        TRAPO,
        "better than GRPO where most groups are all wrong",
        "prefixes help",
        "avg@32",
        better("hard-trapo", "hard-grpo"),
        "few own successes hold against the foreign style",
    ),
    Claim(
        TRAPO,
        "the same with an expert who writes as the policy does",
        "not tested",
        "avg@32",
        better("hard-trapo-own", "hard-grpo"),
        "new are the prefixes and their imitation, together",
    ),
    Claim(
        TRAPO,
        "plain SFT inside micro-groups is worse than TrSFT",
        "32.3 to 56.6",
        "avg@32",
        better("trapo", "trapo-sft"),
        "it ends at .000 in every seed: the paper's collapse",
    ),
    Claim(
        TRAPO,
        "TrSFT is better than micro-groups alone",
        "56.6 to 52.7",
        "avg@32",
        better("trapo", "trapo-none"),
        "both get prefixes in the foreign style; one imitates them",
    ),
    Claim(
        TRAPO,
        "forgets less than SFT",
        "68.3 to 42.3",
        "reading a solution",
        column("trapo", "sft", "reading"),
        "the same solutions for both; of solutions from its own attempts, where it has a "
        "right one, SFT reads fewer (.35, TRAPO .70)",
    ),
    Claim(
        TRAPO,
        "better on general benchmarks than LUFFY",
        "68.3 to 63.9",
        "",
        None,
        "the organism knows nothing but sums",
    ),
    Claim(
        SCOPE,
        "better than OPD, matched in rollouts",
        "55.2 to 52.3 (OPD with 1)",
        "avg@32",
        better("scope", "opd"),
    ),
    Claim(
        SCOPE,
        "higher pass@32 than OPD",
        "75.0 to 73.1 (OPD with 1)",
        "pass@32",
        better("scope", "opd", "pass@32"),
        "it is 1.000 before training and can only fall",
    ),
    Claim(SCOPE, "better than GRPO", "55.2 to 49.6", "avg@32", better("scope", "grpo")),
    Claim(
        SCOPE,
        "better than GRPO on programs (rates tuned on arithmetic)",
        "not tested",
        "avg@32",
        better("scope", "grpo", model="programmer"),
    ),
    Claim(
        SCOPE,
        "the weights help beyond the routing",
        "not apart",
        "avg@32",
        better("scope", "scope-uniform"),
    ),
)


def verdicts(root: Path = RECORDS, claims: tuple[Claim, ...] = CLAIMS) -> pd.DataFrame:
    """One row a claim: paper, claim, paper's number, ours (Effect or None), unit, corrected p,
    verdict, why.
    """
    effects = []
    for claim in claims:
        try:
            effects.append(claim.difference(root) if claim.difference else None)
        except WorkbenchError:
            effects.append(None)
    corrected: dict[int, float] = {}
    for paper in {claim.paper for claim in claims}:
        mine = [
            i
            for i, (claim, effect) in enumerate(zip(claims, effects))
            if claim.paper == paper and effect is not None and effect.seeds > 1
        ]
        corrected |= dict(zip(mine, ledger.holm([effects[i].p for i in mine])))
    rows = []
    for i, (claim, effect) in enumerate(zip(claims, effects)):
        p = corrected.get(i, float("nan"))
        rows.append(
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
        )
    return pd.DataFrame(rows)


def verdict(effect: Effect | None, corrected: float) -> str:
    if effect is None:
        return "no record"
    if effect.seeds == 1 or not effect.p < 0.05:
        return "undecided"
    return (
        ("holds" if effect.mean > 0 else "does not")
        if corrected < 0.05
        else ("leans" if effect.mean > 0 else "leans against")
    )


def markdown(found: pd.DataFrame) -> str:
    lines = [
        "# What holds here",
        "",
        "Written by `python -m workbench.studies.claims --write` from the records in "
        "data/runs; what the words mean stands at the top of",
        "`workbench/studies/claims.py`. On a model of three million parameters that "
        "adds numbers: see `notebooks/15_compare.ipynb` for what that can tell.",
        "",
        "| paper | claim | the paper's | ours: difference that should be above 0 | in "
        "| verdict | what bears on it |",
        "|---|---|---|---|---|---|---|",
    ]
    return (
        "\n".join(
            [
                *lines,
                *(
                    f"| {row.paper} | {row.claim} | {row[3]} | {row.ours or ''} | {row.unit} | "
                    f"{row.verdict} | {row.why} |"
                    for row in found.itertuples(index=True)
                ),
            ]
        )
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {LEDGER.relative_to(ROOT)}")
    args = parser.parse_args()
    text = markdown(verdicts())
    print(text)
    if args.write:
        write_atomic(LEDGER, text)


if __name__ == "__main__":
    main()
