"""Write the numbers of README.md from the committed records: python tools/readme.py

The README holds one block between two marks; nothing else in it is a measured number. A test
compares the block with what this writes.
"""

from __future__ import annotations

import json
from pathlib import Path

from workbench.studies import arms, ledger
from workbench.studies.cell import FULL

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- numbers: tools/readme.py -->", "<!-- end of numbers -->"


def learning() -> list[str]:
    """Every method on the 3m: held-out accuracy after the same number of updates."""
    found = ledger.summary(
        [arm.name for arm in arms.METHODS], ("avg", "pass@32", "length", "tokens")
    )
    lines = [
        "| on the organism | seeds | avg@32 (worst to best seed) | pass@32 | answer, "
        "tokens | written in training, thousands of tokens |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found.iterrows():
        lines.append(
            f"| {'before' if name == 'base' else name} | {row.seeds:.0f} | {row.avg:.3f} "
            f"({row['worst seed']:.3f} to {row['best seed']:.3f}) | {row['pass@32']:.3f} "
            f"| {row.length:.1f} | {row.tokens / 1000:.0f} |"
        )
    return [
        *lines,
        "",
        f"{FULL.steps} updates of 16 problems, 8 rollouts each (grpo-tokens: 9, about "
        "as many tokens as TAPO; opd-1: 1; kd: the teacher's; sft: 128 expert "
        "solutions, sft-then-rl: those in the first third; srpo: SDPO on wrong "
        f"attempts, GRPO on right ones); {FULL.problems} held-out problems a seed, "
        "32 "
        "samples, temperature 1. Made by `workbench study`; records in "
        "[data/runs](data/runs). Which claims of the papers hold here, with intervals: "
        "[15_compare](notebooks/15_compare.ipynb) and "
        "[data/study/ledger.md](data/study/ledger.md).",
    ]


def speed() -> list[str]:
    """Against TRL: ratios of medians."""
    lines = [
        "| ours / TRL on the same step | step time | generation | training | peak memory | "
        "step / its floor: ours, TRL |",
        "|---|---|---|---|---|---|",
    ]
    steps = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        found = json.loads(path.read_text())
        steps.append(str(len(found["laps"]["ours"])))
        cells = " | ".join(
            f"{found['ratio'][part]:.2f}" for part in ("step", "generate", "train", "peak")
        )
        floor = ", ".join(
            f"{found['median_seconds'][side]['step'] / found['floor']['step']:.1f}"
            for side in ("ours", "trl")
        )
        lines.append(
            f"| {found['case']}, {found['prompts']} x {found['group']} x "
            f"{found['new_tokens']} tokens | {cells} | {floor} |"
        )
    return [
        *lines,
        "",
        f"Two processes in turns on {found['machine']['cores']} cores, fp32, TRL at its "
        f"fastest; medians of {' and '.join(steps)} steps; below 1 is faster "
        "or smaller. The floor: the matrix products of the weights alone, at the rate "
        "of a large product. `make bench`; records in "
        "[benchmarks/results](benchmarks/results).",
    ]


def block() -> str:
    return "\n".join([BEGIN, "", *learning(), "", *speed(), "", END])


def main() -> None:
    path = ROOT / "README.md"
    before, rest = path.read_text().split(BEGIN)
    path.write_text(before + block() + rest.split(END)[1])


if __name__ == "__main__":
    main()
