"""Write the numbers of README.md from the committed records: python tools/readme.py

The README holds one block between two marks; nothing else in it is a measured number. A test compares the block with what this writes.
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- numbers: tools/readme.py -->", "<!-- end of numbers -->"


def learning() -> list[str]:
    """GRPO on the 3m: held-out accuracy before and after, seed by seed."""
    lines = ["| GRPO on the organism, 60 updates | avg@8 before | avg@8 after |", "|---|---|---|"]
    for folder in sorted((ROOT / "data" / "runs").glob("grpo-3m-seed*")):
        found = json.loads((folder / "evaluation.json").read_text())
        cells = ["{avg:.3f} [{low:.3f}, {high:.3f}]".format(**found[when]) for when in ("before", "after")]
        lines.append(f"| seed {found['seed']} | {' | '.join(cells)} |")
    return [*lines, "", "400 held-out problems, 8 samples each, temperature 1, 95 % bootstrap intervals over problems; records in [data/runs](data/runs)."]


def speed() -> list[str]:
    """Against TRL: ratios of medians."""
    lines = ["| ours / TRL on the same step | step time | generation | training | peak memory |", "|---|---|---|---|---|"]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        found = json.loads(path.read_text())
        cells = " | ".join(f"{found['ratio'][part]:.2f}" for part in ("step", "generate", "train", "peak"))
        lines.append(f"| {found['case']}, {found['prompts']} x {found['group']} x {found['new_tokens']} tokens, TRL {found['trl_setting']} | {cells} |")
    machine = found["machine"]
    return [*lines, "", f"Two processes in turns on {machine['cores']} cores, fp32; below 1 is faster or smaller. `make bench`; "
            "records in [benchmarks/results](benchmarks/results)."]


def block() -> str:
    return "\n".join([BEGIN, "", *learning(), "", *speed(), "", END])


def main() -> None:
    path = ROOT / "README.md"
    before, rest = path.read_text().split(BEGIN)
    path.write_text(before + block() + rest.split(END)[1])


if __name__ == "__main__":
    main()
