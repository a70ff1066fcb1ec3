"""Every measured number in the README comes from a committed record."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOOL = runpy.run_path(str(ROOT / "tools" / "readme.py"))


def test_the_numbers_are_those_of_the_records():
    assert TOOL["block"]() in README, "python -m tools.readme"


def test_the_clock_to_a_target_is_told_with_what_did_not_reach_it():
    mean = {"seconds": 30.0, "tokens": 50_000.0, "steps": 12.0}
    result = {
        "target": 0.85,
        "standings": {"sdpo": mean, "opd": None, "trl": mean | {"seconds": 90.0}},
        "runs": [{"seed": 0}, {"seed": 1}],
    }
    text = TOOL["to_target"](result)
    assert "| sdpo | 30 | 0.33 | 50 | 12 |" in text and "| trl | 90 | 1.00 |" in text
    assert "Without both seeds at the target: opd." in text and "means of 2 seeds" in text
    del result["standings"]["trl"]
    assert "| sdpo | 30 |  | 50 | 12 |" in TOOL["to_target"](result)


def decimals(text: str) -> list[str]:
    """Decimal fractions and percentages that are no version or size."""
    return re.findall(
        r"(?<![\w.])\d*\.\d+|\d+ ?%", re.sub(r"Python 3\.\d+|Apache-2\.0|https:\S+", "", text)
    )


def test_no_measured_number_stands_outside_the_block():
    before, rest = README.split(TOOL["BEGIN"])
    block, after = rest.split(TOOL["END"])
    assert len(decimals(block)) > 10 and decimals("a step of 0.78, or .5; 30 % less") == [
        "0.78",
        ".5",
        "30 %",
    ]
    assert decimals(before + after) == []


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(targets) > 10
    for target in targets:
        assert target.startswith("http") or (ROOT / target).exists(), target
