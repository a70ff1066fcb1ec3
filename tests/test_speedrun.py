"""The clock to a target, with two steps of two entries: its record, and that it goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))


def run(out):
    words = [sys.executable, ROOT / "benchmarks/speedrun.py", "--quick", "--out", out]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_two_entries_are_timed_and_not_again(tmp_path):
    pytest.importorskip("trl")
    out = tmp_path / "speedrun.json"
    assert "void" in run(out)  # one seed does not verify
    runs = json.loads(out.read_text())["runs"]
    assert [line["name"] for line in runs] == ["grpo", "trl"]
    for line in runs:
        [point] = line["curve"]
        assert point["steps"] == 2 and point["seconds"] > 0 and point["tokens"] > 16 * 8 * 2
        assert 0 <= point["low"] <= point["avg"] <= 1
    assert "seed" not in run(out).split("steps")[0] and json.loads(out.read_text())["runs"] == runs


END = {"seconds": 10.0, "tokens": 100, "steps": 4, "avg": 0.9, "low": 0.87}


def runs(name, seconds, reached=(True, True)):
    lines = zip(range(2), seconds, reached, strict=True)
    return [
        {"name": name, "seed": seed, "reached": there, "curve": [END | {"seconds": clock}]}
        for seed, clock, there in lines
    ]


def test_an_entry_counts_when_every_seed_reached_the_target():
    from speedrun import standings, table

    entries = standings(runs("grpo", (9.0, 11.0)))
    assert entries == {"grpo": {"seconds": 10.0, "tokens": 100.0, "steps": 4.0}}
    assert table(entries).splitlines()[1].split() == ["grpo", "10.0", "100", "4.0"]
    for void in (runs("grpo", (9.0, 11.0), (True, False)), runs("grpo", (9.0, 11.0))[:1]):
        assert standings(void) == {"grpo": None} and "void" in table(standings(void))


def test_every_method_learns_from_as_many_texts_a_step():
    from speedrun import GROUP, METHODS, PROMPTS, method_of

    from workbench.methods.trapo import PRESETS

    for name in METHODS:
        method, problems = method_of(name)
        of_trapo = sum(group.n for group in PRESETS["paper"])
        texts = of_trapo if name == "trapo" else method.k
        assert problems * texts == PROMPTS * GROUP, name


def test_the_others_are_measured_by_trl():
    from speedrun import standings, table

    lines = [*runs("sdpo", (8.0, 12.0)), *runs("trl", (20.0, 60.0))]
    ratios = [row.split()[-1] for row in table(standings(lines)).splitlines()[1:]]
    assert ratios == ["0.25", "1.00"]
    lines[-1]["reached"] = False
    assert table(standings(lines)).splitlines()[1].split() == ["sdpo", "10.0", "100", "4.0"]


def test_a_record_of_another_machine_is_not_gone_on_with(tmp_path):
    from speedrun import machine, refuse_another_machine, versions

    here = {"machine": machine(), "versions": versions()}
    refuse_another_machine(here, tmp_path)
    for key in here:
        with pytest.raises(SystemExit, match=f"another {key}: give another --out"):
            refuse_another_machine(here | {key: {}}, tmp_path)
