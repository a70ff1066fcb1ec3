"""The ledger's verdicts, on records whose truth is known, and its numbers against their sources."""

import json
import re
import runpy
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from cells import rows, run, study, write

from workbench.app.cli import main
from workbench.paths import RECORDS, ROOT, STUDY
from workbench.studies import cell, claims
from workbench.studies.arms import BLOCKS, GRID
from workbench.studies.claims import CLAIMS, verdict, verdicts
from workbench.studies.ledger import paired
from workbench.viz import comparison

METHODS_MD = ROOT.parent / "shared" / "METHODS.md"  # not in the repository
RECOMPUTE = runpy.run_path(str(STUDY / "recompute.py"))["verdicts"]
PLANNED = [claim for claim in CLAIMS if claim.role != "beside"]


def made(a, b, comparison="better", of="avg", **more):
    """A claim of one's own."""
    blank = CLAIMS[0]._replace(paper="one", role="other", model="3m", seeds=3, margin=0.02)
    return blank._replace(a=a, b=b, comparison=comparison, of=of, **more)


def effects(*means):
    return paired([np.full(4, m) for m in means])


# ---- where the numbers come from


def sourced(claim, papers):
    """The paper's number of a claim as its source has it; "" where it names none."""
    where, _, names = claim.source.rpartition(": ")
    there = papers[(papers.paper == claim.paper) & (papers["where"] == where)].set_index("row")
    return " to ".join(there.value[name] for name in names.split(", ") if name)


def test_every_number_is_what_its_source_says():
    papers = pd.read_csv(STUDY / "papers.csv", dtype=str, keep_default_na=False)
    assert not papers.duplicated(["paper", "where", "row"]).any()
    for claim in CLAIMS:
        assert sourced(claim, papers) == claim.number, claim.claim
    # LUFFY's general average, which the first ledger had from GRPO's line
    (forgets,) = (claim for claim in CLAIMS if claim.claim == "forgets less than LUFFY")
    assert forgets.number == "68.3 to 66.7"
    for wrong in ("68.3 to 63.9", "68.3", "66.7 to 68.3"):
        assert sourced(forgets._replace(number=wrong), papers) != wrong


# What a row is called in its reference, where that is another word; "": the value is in words.
CALLED = {
    ("Table 5, LCBv6", "SDPO"): "LCBv6 ",
    ("Table 8, mean of the tasks", "GRPO"): "\\(",
    ("Table 8, mean of the tasks", "SDPO"): "→ ",
    ("section 4, LCBv6", "fewer generations"): "GRPO's final accuracy with ",
    ("Table 1, AIME24", "TAPO"): "pass@1 ",
    ("Table 2, AIME24", "DSR over GRPO"): "DSR ",
    ("Table 2, AIME24", "ERR over GRPO"): "ERR ",
    ("Table 2", "+ SFT"): "plain SFT ",
    ("Figure 10", "order"): "",
    ("Figure 17", "smallest model"): "",
    ("Table 3", "SFT"): "",
}
# The place of a column in a list with slashes; a number alone stands for itself.
COLUMNS = {"AIME24": 0, "Avg@32": 0, "Pass@32": 1}


def said(row: dict) -> str:
    """What the reference says of the row by its name, and in its column."""
    name = CALLED.get((row["where"], row["row"]), re.escape(row["row"]) + " ")
    if not name:
        return row["value"] if row["value"] in row["reference"] else ""
    there = re.search(rf"(?<![\w-]){name}([+\d.×/]*\d×?)", row["reference"])
    values = there[1].split("/") if there else [""]
    place = COLUMNS.get(row["where"].rsplit(", ")[-1], 0)
    return values[place] if place < len(values) else ""


def test_a_number_stands_by_its_name_and_in_its_column():
    papers = pd.read_csv(STUDY / "papers.csv", dtype=str, keep_default_na=False)
    rows = papers[papers.reference != ""].to_dict("records")
    for row in rows:
        assert said(row) == row["value"], row
    by_name = {(row["where"], row["row"]): row for row in rows}
    luffy = by_name["Table 1, general average", "LUFFY"]
    grpo = by_name["Table 1, general average", "GRPO"]  # the first ledger's fault
    assert said(luffy | {"reference": grpo["reference"]}) == ""
    tapo = by_name["Table 1, AIME24", "TAPO"]  # AIME25's number
    assert said(tapo | {"value": "46.88"}) == "62.50"
    sft = by_name["Table 1, five benchmarks", "SFT"]  # another line's, whose name ends alike
    assert said(sft | {"reference": "TRAPO-SFT 54.3"}) == ""


def test_the_numbers_are_those_of_the_plan():
    plan = (STUDY / "PLAN.md").read_text().replace("\n", " ")
    for claim in PLANNED:
        if re.fullmatch(r"[\d.]+ to [\d.]+|\+[\d.]+", claim.number) and claim.number not in (
            "820.8 to 255.8",  # the plan names no numbers of these
            "49.3 to 36.1",
            "50.9 to 45.7",
        ):
            assert claim.number in plan, claim.claim


def test_the_transcript_is_that_of_the_reference():
    if not METHODS_MD.is_file():
        pytest.skip(f"{METHODS_MD} is not on this machine")
    papers = pd.read_csv(STUDY / "papers.csv", dtype=str, keep_default_na=False)
    sections = re.split(r"^## \d+\. ", METHODS_MD.read_text(encoding="utf-8"), flags=re.M)
    for row in papers.to_dict("records"):
        (section,) = (part for part in sections if part.startswith(row["paper"].split()[0]))
        if row["reference"]:  # the others were read in the paper itself
            assert row["reference"] in section and row["value"] in row["reference"], row
    assert (papers.reference != "").sum() >= 30


# ---- the plan


def test_the_families_are_those_of_the_plan():
    plan = (STUDY / "PLAN.md").read_text()
    primary = {c.paper.split()[0]: c for c in CLAIMS if c.role == "primary"}
    lines = re.findall(
        r"^\| (SDPO|TAPO|TRAPO|SCOPE) \| .* \| ([\w-]+), ([\w-]+) \| (.*) \|", plan, re.M
    )
    assert len(lines) == len(primary) == sum(c.role == "primary" for c in CLAIMS)
    for paper, a, b, wrong in lines:
        assert (primary[paper].a, primary[paper].b) == (a, b)
        assert primary[paper].wrong_if == wrong and primary[paper].of == "avg"
    others = Counter(c.paper.split()[0] for c in CLAIMS if c.role == "other")
    assert others == {"SDPO": 4, "TAPO": 3, "TRAPO": 6, "SCOPE": 3}


def test_every_claim_has_its_arms_its_seeds_and_its_margin():
    arms = {(arm.name, arm.model): arm for arm in GRID}
    blocks = [BLOCKS[name] for name in ("1a", "1b", "1c", "1d", "2", "3", "4", "5")]
    assert cell.TUNING == STUDY / "tuning.json" and claims.FULL.lr == 1e-4
    in_plan = {(arm.name, arm.model) for block in blocks for arm in block}
    assert len({(c.paper, c.claim) for c in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        sides = {(arm, claim.model) for arm in (claim.a, claim.b) if arm}
        assert claim.role == "beside" or sides <= in_plan, claim.claim
        for side in sides & set(arms):
            assert arms[side].seeds == claim.seeds, claim.claim
            if claim.of == "pass@32":
                assert arms[side].many
        margin = {"length": 1.0, "0.5": 0.1}.get(claim.of, 0.02)
        assert claim.margin == (margin if claim.comparison else 0), claim.claim
        assert claim.wrong_if


# ---- verdicts


def test_verdicts_by_hand():
    sure, nothing = effects(0.10, 0.101, 0.102), effects(-0.1, 0.1, 0.05)
    against = effects(-0.10, -0.101, -0.102)
    assert verdict(sure, 0.01) == "holds" and verdict(sure, 0.2) == "undecided"
    assert verdict(against, 0.01) == "does not" and verdict(nothing, 1.0) == "undecided"
    assert verdict(sure, 0.01, 0.049) == "the same" and verdict(sure, 0.01, 0.051) == "holds"
    assert verdict(effects(0.5), float("nan"), float("nan")) == "no verdict"
    assert verdict(None, float("nan")) == "not measured"


def test_holm_is_within_a_paper_and_its_others(tmp_path):
    curve = run([0.2, 0.3, 0.4])
    for seed, right in enumerate(((4, 3), (4, 4), (4, 3))):
        write(tmp_path, "a", seed, rows(*right), metrics=curve)
        write(tmp_path, "b", seed, rows(1, 1), metrics=curve)
    both = (
        made("a", "b", role="primary"),
        made("a", "b", claim="x"),
        made("b", "a", claim="y"),
        made("a", "absent", claim="z"),
        made("a", "b", paper="two"),
        made("", "", comparison="", paper="two"),
        made("a", "b", role="beside"),
    )
    found = verdicts(tmp_path, both)
    single = paired([np.array(d) for d in ((0.75, 0.5), (0.75, 0.75), (0.75, 0.5))]).p
    # of what was not measured no p is corrected
    expected = [single, 2 * single, 2 * single, np.nan, single, np.nan, single]
    assert found.p.tolist() == pytest.approx(expected, nan_ok=True)
    assert found.verdict.tolist()[3:6] == ["not measured", "holds", "not here"]
    assert (found["p same"].dropna() > 0.99).all()


def test_samenesses_are_corrected_too(tmp_path):
    curve = run([0.2, 0.3, 0.4])
    rng = np.random.default_rng(0)
    for seed in range(3):
        for arm in "abc":
            counts = rows(*rng.integers(1, 4, 400).tolist())
            write(tmp_path, arm, seed, counts, metrics=curve)
    alone = verdicts(tmp_path, [made("a", "b", margin=0.08)])["p same"][0]
    pair = [made("a", "b", margin=0.08), made("a", "c", margin=0.08)]
    both = verdicts(tmp_path, pair)["p same"]
    assert 0 < alone < 0.5 and max(both) >= 2 * min(alone, *both) * 0.999


def everything(**accuracy):
    """(arm, model) -> accuracy, of all arms that any claim names."""
    arms = {}
    for claim in CLAIMS:
        arms |= {(arm, claim.model): 0.5 for arm in (claim.a, claim.b) if arm}
    return arms | few(**accuracy)


def few(**accuracy):
    return {(arm.replace("_", "-"), "3m"): value for arm, value in accuracy.items()}


def agree(root):
    """The verdicts, after a look that the independent script has the same."""
    ours, theirs = verdicts(root), RECOMPUTE(root)
    assert ours.verdict.tolist() == theirs.verdict.tolist()
    for effect, again in zip(ours.ours, theirs.itertuples()):
        if effect is None:
            assert np.isnan(again.n)
        else:
            assert (effect.mean, effect.seeds) == (pytest.approx(again.mean), again.n)
            if effect.seeds > 1:
                assert effect.error == pytest.approx(again.error, abs=1e-12)
    return ours.set_index(["paper", "claim"])


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Ten seeds of every arm, some of them better by a known amount."""
    root = tmp_path_factory.mktemp("known")
    arms = everything(sdpo=0.65, trapo=0.3, luffy=0.3, scope=0.52, sft=0.3)
    study(root, arms, problems=150, spread=0.005)
    return root


def test_what_is_true_of_the_records_is_what_the_verdicts_say(known):
    found = agree(known)
    assert found.verdict[claims.SDPO, "better than GRPO"] == "holds"
    assert found.verdict[claims.TRAPO, "better than GRPO"] == "does not"
    assert found.verdict[claims.TRAPO, "GRPO is better than SFT"] == "holds"
    assert found.verdict[claims.TRAPO, "better than LUFFY"] in ("the same", "undecided")
    assert found.verdict[claims.TAPO, "more than 5 % of the groups were eligible"] == "holds"
    assert (found.verdict != "not measured").all()
    assert found[found.role == "primary"].provisional.tolist() == [False] * 4
    assert 0 < found.power[claims.SCOPE, "better than GRPO"] <= 1
    assert "Of the plan's 20 claims 20 were measured" in claims.decided(found.reset_index())


def test_equal_arms_are_the_same_and_noisy_ones_undecided(tmp_path):
    equal = few(sdpo=0.5, grpo_paper=0.5, trapo=0.5, grpo=0.5)
    study(tmp_path / "near", equal, problems=2000, seeds=5, spread=0.0)
    near = agree(tmp_path / "near").verdict
    assert near[claims.SDPO, "better than GRPO"] == "the same"
    assert near[claims.TRAPO, "better than GRPO"] == "the same"
    study(tmp_path / "noisy", equal | few(sdpo=0.52), seeds=4, spread=0.08)
    noisy = agree(tmp_path / "noisy")
    assert noisy.verdict[claims.SDPO, "better than GRPO"] == "undecided"
    assert noisy.power[claims.SDPO, "better than GRPO"] < 0.3
    assert noisy.provisional[claims.SDPO, "better than GRPO"]


def test_missing_seeds_one_seed_and_no_record(known, tmp_path):
    for folder in known.iterdir():
        arm, _, seed = folder.name.rpartition("-3m-seed")
        seeds = {"sdpo": "0357", "grpo-paper": "03579", "trapo": "0", "grpo": "012", "scope": "1"}
        if seed in seeds.get(arm, "") and seed:
            shutil.copytree(folder, tmp_path / folder.name)
    found = agree(tmp_path)
    better = found.loc[claims.SDPO, "better than GRPO"]
    assert better.ours.seeds == 4 and better.provisional
    assert claims.spoken(better) == "holds, provisional: 4 of 10 seeds"
    assert found.verdict[claims.TRAPO, "better than GRPO"] == "no verdict"
    text = claims.markdown(found.reset_index())
    assert "no verdict, provisional: 1 of 10 seeds" in text
    empty = agree(tmp_path / "none")
    assert set(empty.verdict) == {"not measured", "not here"}


def test_no_more_seeds_than_planned_count(known, tmp_path):
    for arm, right in (("sdpo", 0), ("grpo-paper", 4)):
        for folder in known.glob(f"{arm}-3m-seed*"):
            shutil.copytree(folder, tmp_path / "more" / folder.name)
        problems = {f"p{i}": (right, right, 0, 0, 0, 0) for i in range(150)}
        for seed in (10, 11, 910):
            write(tmp_path / "more", arm, seed, problems, metrics=run([0.2, 0.3, 0.4]))
    first = CLAIMS[:1]
    one, other = (verdicts(root, first).ours[0] for root in (known, tmp_path / "more"))
    assert one == other and other.seeds == 10


def test_equal_records_are_the_same_and_nothing_divides_by_zero(known, tmp_path):
    for seed in range(10):
        for arm in ("sdpo", "grpo-paper", "trapo", "grpo"):
            folder = tmp_path / f"{arm}-3m-seed{seed}"
            shutil.copytree(known / "grpo-3m-seed0", folder)
            record = json.loads((folder / "evaluation.json").read_text())
            record["arm"]["name"], record["seed"] = arm, seed
            (folder / "evaluation.json").write_text(json.dumps(record))
    with np.errstate(all="raise"):
        found = verdicts(tmp_path).set_index(["paper", "claim"])
    assert found.verdict.tolist() == agree(tmp_path).verdict.tolist()
    assert found.verdict[claims.SDPO, "better than GRPO"] == "the same"
    assert found.power[claims.SDPO, "better than GRPO"] == 1.0


@pytest.mark.parametrize("text", ["{", '{"seed": NaN}', "[]", ""])
def test_a_broken_record_is_one_sentence(known, tmp_path, monkeypatch, capsys, text):
    folder = tmp_path / "sdpo-3m-seed4"
    shutil.copytree(known / folder.name, folder)
    (folder / "evaluation.json").write_text(text)
    monkeypatch.setattr(claims.verdicts, "__defaults__", (tmp_path, CLAIMS))
    assert main(["claims"]) == 2
    said = capsys.readouterr().err.strip()
    assert "is no record of a study" in said and "\n" not in said


# ---- the kinds of comparison


def paths(root, name, *curves):
    for seed, curve in enumerate(curves):
        write(root, name, seed, rows(2, 3), metrics=run(curve))


def test_sooner_is_meant_as_it_is_said(tmp_path):
    slow = [0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.5, 0.5, 0.5, 0.5]
    fast = [0.2, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]
    spike = [0.2, 0.2, 0.7, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]
    for name, curve in (("slow", slow), ("fast", fast), ("spike", spike), ("poor", [0.2] * 11)):
        paths(tmp_path, name, curve, curve)

    def effect(a, b):
        return verdicts(tmp_path, [made(a, b, "sooner", "0.5", seeds=2)]).ours[0].mean

    # slow ends at .5, where the mean of its neighbours is first .5 after 7 of 10 updates; that of
    # fast after 2, that of one high evaluation never
    assert effect("fast", "slow") == pytest.approx(0.5 * 0.7 - 0.2)
    assert effect("slow", "slow") == pytest.approx(-0.5 * 0.7)
    assert effect("poor", "slow") == effect("spike", "slow") == pytest.approx(0.35 - 1)


def test_sooner_looks_for_the_mean_of_the_ends(tmp_path):
    """One level for all seeds: a seed that ends low is not easier to catch up with."""
    paths(tmp_path, "b", [0.2, 0.3, 0.3, 0.3, 0.3], [0.2, 0.6, 0.5, 0.5, 0.5])  # ends: .4
    paths(tmp_path, "a", [0.2, 0.2, 0.6, 0.6, 0.6], [0.3, 0.3, 0.3, 0.3, 0.3])
    effect = verdicts(tmp_path, [made("a", "b", "sooner", "0.5", seeds=2)]).ours[0]
    # in shares of the four updates, 1: never; a: 2/4 and 1, b: 1 and 1/4
    assert effect.mean == pytest.approx(np.mean([0.5 * 1 - 2 / 4, 0.5 / 4 - 1]))


def test_rates_are_pooled_and_want_a_hundred_responses(tmp_path):
    def problems(direct, count):
        return {f"p{i}": (2, direct, 1, 0, 0, 0) for i in range(count)}

    for seed in range(3):
        few = 20 if seed else 8
        write(tmp_path, "a", seed, problems(2, few), metrics=run([0.1, 0.2]))
        write(tmp_path, "b", seed, problems(1 + seed % 2, few), metrics=run([0.1, 0.2]))
    dsr = made("a", "b", "rate", "dsr")
    assert verdicts(tmp_path, [dsr]).verdict[0] == "not measured"  # 96 right answers of each
    for seed in range(3):
        for arm, direct in (("c", 2), ("d", 1 + seed % 2)):
            problem = problems(direct, 21 if seed else 10)
            write(tmp_path, arm, seed, problem, metrics=run([0.1, 0.2]))
    effect = verdicts(tmp_path, [dsr._replace(a="c", b="d")]).ours[0]
    assert effect.mean == pytest.approx(1 - (10 + 42 + 21) / 104)
    # every response of a reflects: 52 of them are too few
    assert verdicts(tmp_path, [made("c", "d", "rate", "err")]).ours[0] is None


def test_equal_tokens_and_area_by_hand(tmp_path):
    for seed in (0, 1):
        write(tmp_path, "thrifty", seed, rows(2), metrics=run([0.2, 0.4, 0.5], generated=50))
        write(tmp_path, "lavish", seed, rows(2), metrics=run([0.2, 0.6, 0.8], generated=200))
        write(tmp_path, "silent", seed, rows(2), metrics=run([0.2, 0.1, 0.3], generated=0))
    pairs = [("thrifty", "lavish"), ("lavish", "silent")]
    found = verdicts(tmp_path, [made(a, b, seeds=2, claim=a) for a, b in pairs])
    # thrifty has written 100 at its end, where lavish is half way to its first evaluation
    tokens, none = found["equal tokens"]
    assert tokens.mean == pytest.approx(0.5 - 0.4)
    assert none is None  # silent has written nothing: there is no amount to compare at
    areas = [effect.mean for effect in found.area]
    thrifty, lavish, silent = (0.2 + 0.8 + 0.5) / 4, (0.2 + 1.2 + 0.8) / 4, (0.2 + 0.2 + 0.3) / 4
    assert areas == pytest.approx([thrifty - lavish, lavish - silent])


def test_a_claim_about_length_is_compared_along_the_run_in_length(tmp_path):
    curve = [0.2, 0.4, 0.5]
    for seed in (0, 1):
        long, short = [40.0, 40.0, 36.0], [40.0, 30.0, 20.0]
        write(tmp_path, "long", seed, rows(2), metrics=run(curve, 50, long), length=36.0)
        write(tmp_path, "short", seed, rows(2), metrics=run(curve, 100, short), length=20.0)
    found = verdicts(tmp_path, [made("long", "short", of="length", seeds=2)]).iloc[0]
    assert found.ours.mean == 16.0
    assert found["equal tokens"].mean == 36 - 30  # 100 tokens: the end of one, half of the other
    assert found.area.mean == pytest.approx((40 + 40 + 40 + 36) / 4 - (40 + 30 + 30 + 20) / 4)


def test_a_rate_of_ones_own_that_is_the_common_one_is_not_run_again(known, tmp_path, monkeypatch):
    for arm in ("scope", "opd-1", "opd-1-tuned"):
        for folder in known.glob(f"{arm}-3m-seed*"):
            shutil.copytree(folder, tmp_path / folder.name)
    tuning = tmp_path / "tuning.json"
    monkeypatch.setattr(cell, "TUNING", tuning)
    own = (claims.SCOPE, "better than OPD with one rollout, each at its own rate")
    for rate, words in ((3e-4, {"not measured"}), (1e-4, {"holds", "undecided", "the same"})):
        tuning.write_text(json.dumps({"rates": {"scope-tuned": rate, "opd-1-tuned": 1e-4}}))
        found = verdicts(tmp_path).set_index(["paper", "claim"])
        assert found.verdict[own] in words
        assert found.verdict.tolist() == RECOMPUTE(tmp_path, tuning=tuning).verdict.tolist()
    # of opd-1, which has records of its own at its own rate, those count
    better = found.ours[claims.SCOPE, "better than OPD with one rollout, at equal rollouts"]
    assert found.ours[own] != better


def test_without_a_curve_nothing_is_measured(tmp_path):
    for seed in range(3):
        write(tmp_path, "a", seed, rows(2), metrics=run([0.2, 0.4]))
        write(tmp_path, "b", seed, rows(3))
    assert verdicts(tmp_path, [made("a", "b")]).verdict[0] == "not measured"


# ---- what is committed


def test_the_committed_ledger_is_what_the_records_say():
    agree(RECORDS)
    found = claims.markdown(verdicts())
    assert claims.LEDGER.read_text() == found, "workbench claims --write"


def words(figure):
    figure.canvas.draw()
    return " ".join(
        text.get_text() for text in figure.findobj(match=lambda o: hasattr(o, "get_text"))
    )


def test_the_picture_says_every_verdict(known, tmp_path):
    for root in (known, tmp_path):
        table = verdicts(root)
        said = words(comparison.decisions(table)).replace("\n", " ")
        for row in table.to_dict("records"):
            assert row["claim"] in said and row["verdict"] in said
            assert row["paper"].split()[0] in said
