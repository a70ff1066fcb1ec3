"""The comparison of Llama's relatives by our own forward pass with transformers', in turns."""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import fast_path

from workbench.model import llama


def test_both_paths_are_timed_on_the_same_steps(monkeypatch):
    monkeypatch.setitem(fast_path.SHAPES, "tiny", (32, 48, 2, 4, 2, 8, 512))
    monkeypatch.setattr(fast_path, "ROUNDS", 1)
    ways, measure = [], fast_path.measure

    def watched(learner, number):
        ways.append((learner.policy.fast, number))
        return measure(learner, number)

    monkeypatch.setattr(fast_path, "measure", watched)
    ratios = fast_path.compare("qwen3", "tiny")
    assert ways == [(True, 0), (False, 0), (True, 1), (False, 1)]
    assert all(0 < ratio < 10 for ratio in ratios.values())


def test_every_family_was_faster_in_the_recorded_run():
    rows = json.loads(fast_path.OUT.read_text())["fast_over_general"]
    measured = {(row["shape"], row["family"]) for row in rows}
    assert len(measured) == len(rows) == 2 * len(llama.FAMILIES)
    assert all(row["sampling"] < 1 and row["step"] < 1 for row in rows)
