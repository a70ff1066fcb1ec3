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


def test_an_entry_counts_when_every_seed_reached_the_target():
    from speedrun import table

    end = {"seconds": 10.0, "tokens": 100, "steps": 4, "avg": 0.9, "low": 0.87}
    two = [{"name": "grpo", "seed": s, "reached": True, "curve": [end]} for s in (0, 1)]
    assert table(two).splitlines()[1].split() == ["grpo", "10.0", "100", "4.0"]
    assert "void: 1 of 2" in table([two[0], two[1] | {"reached": False}])
    assert "void: 1 of 2" in table(two[:1])
