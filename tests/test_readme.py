"""Every measured number in the README comes from a committed record."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOOL = runpy.run_path(str(ROOT / "tools" / "readme.py"))


def test_the_numbers_are_those_of_the_records():
    assert TOOL["block"]() in README, "python tools/readme.py"


def test_no_measured_number_stands_outside_the_block():
    outside = README.split(TOOL["BEGIN"])[0] + README.split(TOOL["END"])[1]
    assert not re.findall(r"(?<![\w.])\d?\.\d+(?!\.?\d)(?= )|\d+ ?%", re.sub(r"Python 3\.\d+|Apache-2\.0|2\.7 million", "", outside))


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
