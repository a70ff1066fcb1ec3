"""The benchmark for a GPU goes through on a CPU with tiny shapes, part by part."""

import json
import subprocess
import sys

import pytest

from benchmarks import gpu
from workbench.methods import METHODS
from workbench.paths import ROOT


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """As one calls it: its parts are forks, which a process that has computed makes unsafely."""
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    program = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--rehearse", "--out", out]
    subprocess.run(program, check=True, capture_output=True, cwd=ROOT)
    return json.loads(out.read_text()), out


def test_every_part_goes_through(rehearsed):
    results, _ = rehearsed
    assert results["card"] == gpu.card() and results["rehearsal"]
    for name, part in results["parts"].items():
        if not part["status"].startswith("left out"):
            assert part["status"] == "done", (name, part)
            assert part["rows"] and not [row for row in part["rows"] if "error" in row], name
    every = results["parts"]["steps-0.5b"]["rows"]
    assert {row["row"] for row in every} == set(METHODS)
    for row in every:
        assert row["train_s"] > 0 and row["grad_norm"] > 0 and row["predicted_gib"] > 0
    gaps = {row["row"]: row["gap_mean"] for row in results["parts"]["types"]["rows"]}
    assert set(gaps) == {"bfloat16", "float16"}
    text = gpu.table(results)
    assert all(name in text for name in gpu.PARTS) and "grpo" in text


def test_a_second_call_goes_on(rehearsed, monkeypatch):
    """What is done is not made again, what failed is; other versions begin anew."""
    _, out = rehearsed
    asked = []
    monkeypatch.setattr(gpu, "run", lambda name, *_: asked.append(name))
    damaged = json.loads(out.read_text())
    damaged["parts"]["types"]["status"] = "out of time"
    other = out.with_name("other.json")
    other.write_text(json.dumps(damaged))
    gpu.measure(other, list(gpu.PARTS), rehearse=True)
    assert asked == ["types"]
    other.write_text(json.dumps(damaged | {"versions": "others"}))
    gpu.measure(other, ["types", "families"], rehearse=True)
    assert asked == ["types", "types", "families"]


def _rows(error):
    def part(rehearse):
        yield {"row": "first", "train_s": 1.0}
        if error == "exit":
            import os

            os._exit(9)
        if error == "hang":
            import time

            time.sleep(60)
        raise RuntimeError("out of memory")

    return part


@pytest.mark.parametrize(
    "error, status, says",
    [
        ("raise", "failed", "out of memory"),
        ("exit", "failed", "code 9"),
        ("hang", "out of time", ""),
    ],
)
def test_what_fails_loses_nothing_else(error, status, says, monkeypatch):
    monkeypatch.setitem(gpu.PARTS, "types", (_rows(error), "torch", False))
    kept = []
    gpu.run("types", True, 1.5, lambda result: kept.append(dict(result)))
    assert kept[-1]["status"] == status and says in kept[-1].get("error", "")
    assert [row["row"] for row in kept[-1]["rows"]] == ["first"] and kept[-1]["seconds"] < 10


def test_the_shapes_are_those_of_the_models():
    counts = {"0.5b": 494_032_768, "0.6b": 596_049_920, "1.7b": 1_720_574_976, "4b": 4_022_468_096}
    for shape, count in counts.items():
        net = gpu.skeleton(shape, rehearse=False)
        assert sum(p.numel() for p in net.parameters()) == count


def test_parts_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--list"])
    gpu.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(gpu.PARTS)
