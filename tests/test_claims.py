"""The ledger's verdicts, on hand-made records and on the committed ones."""

import json

import numpy as np
import pytest
from test_ledger import line, rows, write

from workbench.paths import ORGANISM
from workbench.studies import claims, ledger
from workbench.studies.arms import GRID
from workbench.studies.claims import (
    CLAIMS,
    Claim,
    better,
    column,
    grows,
    rate,
    sooner,
    verdict,
    verdicts,
)
from workbench.studies.ledger import paired


def effects(*means):
    return paired([np.full(4, m) for m in means])


def test_verdicts_by_hand():
    sure, near, against, nothing = (
        effects(0.10, 0.101, 0.102),
        effects(0.06, 0.08, 0.10),
        effects(-0.10, -0.101, -0.102),
        effects(-0.1, 0.1, 0.05),
    )
    assert verdict(sure, 0.01) == "holds" and verdict(sure, 0.2) == "leans"
    assert (
        verdict(near, 0.2) == "leans"
        and verdict(against, 0.01) == "does not"
        and verdict(against, 0.2) == "leans against"
    )
    assert (
        verdict(nothing, 1.0) == "undecided"
        and verdict(effects(0.5), float("nan")) == "undecided"
        and verdict(None, float("nan")) == "no record"
    )


def test_the_correction_is_within_a_paper_and_missing_runs_are_said(tmp_path):
    for seed, right in enumerate(((4, 3), (4, 4), (4, 3))):
        write(tmp_path, "a", seed, rows(*right))
        write(tmp_path, "b", seed, rows(1, 1))
    made = (
        Claim("one", "x", "", "", better("a", "b")),
        Claim("one", "y", "", "", better("b", "a")),
        Claim("two", "z", "", "", better("a", "b")),
        Claim("two", "none", "", "", better("a", "absent")),
        Claim("two", "never", "", "", None, "no such model"),
    )
    found = verdicts(tmp_path, made)
    single = made[0].difference(tmp_path).p
    assert found.p.tolist()[:3] == pytest.approx([2 * single, 2 * single, single])
    assert found.verdict[4] == "not here" and "| not here | no such model |" in claims.markdown(
        found
    )
    assert found.verdict[3] == "no record" and "| no record |" in claims.markdown(found)
    assert (
        set(found.verdict[:2]) <= {"holds", "does not", "leans", "leans against"}
        and found.ours[0].mean > 0 > found.ours[1].mean
    )


def run(root, arm, seed, first, last, updates=4):
    metrics = [
        line(0, 10, eval_avg=0.4, eval_low=0.3, eval_high=0.5),
        *(line(i, 10) for i in range(1, updates)),
    ]
    metrics[updates // 2] |= {"eval_avg": first, "eval_low": 0.3, "eval_high": 0.9}
    metrics[-1] |= {"final_eval_avg": last, "final_eval_low": 0.3, "final_eval_high": 0.9}
    write(
        root, arm, seed, {"p": (2, 1, 1, seed % 2, 0, 0), "q": (3, 3, 1, 1, 0, 0)}, metrics=metrics
    )


def test_sooner_is_the_share_of_the_updates_and_never_is_worse_than_all(tmp_path):
    for seed in (0, 1):
        run(tmp_path, "slow", seed, 0.6, 0.8)
        run(tmp_path, "fast", seed, 0.85, 0.9)
        run(tmp_path, "poor", seed, 0.5, 0.5)
    # half of the updates, where half was allowed
    assert sooner("fast", "slow", 0.5)(tmp_path).mean == 0.0
    assert sooner("slow", "slow", 0.5)(tmp_path).mean == -0.5
    assert sooner("poor", "slow", 0.5)(tmp_path).mean == -1.5


def test_columns_rates_and_sizes(tmp_path):
    for seed in (0, 1):
        for arm in ("a", "b"):
            run(tmp_path, arm, seed, 0.5, 0.6)
        for model in ("3m", "0.4m"):
            write(tmp_path, "c", seed, rows(4 if model == "3m" else 2), model=model)
            write(tmp_path, "d", seed, rows(1), model=model)
    assert (
        column("b", "a", "length")(tmp_path).mean == 0 and rate("a", "b", "dsr")(tmp_path).mean == 0
    )
    assert grows("c", "d")(tmp_path).mean == pytest.approx(3 / 4 - 1 / 4)


def test_every_claim_names_arms_of_the_grid(tmp_path):
    """With records of the whole grid, none is without a record."""
    for arm in GRID:
        for seed in range(min(2, arm.seeds)):
            metrics = [
                line(
                    0,
                    10,
                    eval_avg=0.4,
                    eval_low=0.3,
                    eval_high=0.5,
                    final_eval_avg=0.5,
                    final_eval_low=0.4,
                    final_eval_high=0.6,
                    final_eval_reading=0.9,
                )
            ]
            write(
                tmp_path,
                arm.name,
                seed,
                {"p": (2, 1, 1, seed, 0, 0)},
                samples=32,
                model=arm.model,
                metrics=metrics,
            )
    assert not (verdicts(tmp_path).verdict == "no record").any() and len(CLAIMS) == len(
        {(c.paper, c.text) for c in CLAIMS}
    )


def test_the_committed_ledger_is_what_the_records_say():
    assert claims.LEDGER.read_text() == claims.markdown(verdicts())


def test_the_numbers_beside_the_verdicts_are_those_of_the_records():
    def two(value):
        return f"{value:.2f}".lstrip("0")

    why = {(claim.paper.split()[0], claim.text): claim.why for claim in CLAIMS}
    gains = {
        size: f"{ledger.effect('sdpo', 'grpo', model=size).mean:+.3f}".replace("0.", ".")
        for size in ("0.4m", "1m", "3m")
    }
    found, table = (
        ledger.cells(),
        json.loads((ORGANISM / "table.json").read_text())["models"],
    )
    read = {size: two(table[size]["reference"][0]) for size in ("0.4m", "3m")}
    assert (
        f"0.4m {gains['0.4m']}, 1m {gains['1m']}, 3m {gains['3m']}"
        in why["SDPO", "gains more on larger models"]
    )
    assert (
        f"({read['0.4m']} to {read['3m']})" in why["SDPO", "gains more on larger models"]
        and read["3m"] in why["SDPO", "better than GRPO at equal steps"]
    )
    mean = found[found.model == "3m"].groupby("arm").reference.mean()
    assert (
        f"({two(mean['sft'])}, TRAPO {two(mean['trapo'])})" in why["TRAPO", "forgets less than SFT"]
    )
