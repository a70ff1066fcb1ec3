"""Write the numbers of README.md from the committed records: python tools/readme.py

The README holds one block between two marks; nothing else in it is a measured number. A test
compares the block with what this writes.
"""

from __future__ import annotations

import json

from workbench.paths import ROOT
from workbench.studies import ledger
from workbench.studies.arms import METHODS
from workbench.studies.cell import FULL

BEGIN, END = "<!-- numbers: tools/readme.py -->", "<!-- end of numbers -->"
LEARNING = """\
| on the organism | seeds | avg@32 (worst to best seed) | pass@32 | answer, tokens \
| written in training, thousands of tokens |
|---|---|---|---|---|---|
{rows}

{steps} updates of 16 problems, 8 rollouts each (grpo-tokens: 9, about as many tokens as TAPO; \
opd-1: 1; kd: the teacher's; sft: 128 expert solutions, sft-then-rl: those in the first third; \
srpo: SDPO on wrong attempts, GRPO on right ones); {problems} held-out problems a seed, 32 \
samples, temperature 1. Made by `workbench study`; records in [data/runs](data/runs). Which \
claims of the papers hold here, with intervals: [15_compare](notebooks/15_compare.ipynb) and \
[data/study/ledger.md](data/study/ledger.md)."""
SPEED = """\
| ours / TRL on the same step | step time | generation | training | peak memory \
| step / its floor: ours, TRL |
|---|---|---|---|---|---|
{rows}

Two processes in turns on {cores} cores, fp32, TRL at its fastest; medians of {steps} steps; \
below 1 is faster or smaller. The floor: the matrix products of the weights alone, at the rate of \
a large product. `make bench`; records in [benchmarks/results](benchmarks/results)."""


def learning() -> str:
    """Every method on the 3m: held-out accuracy after the same number of updates."""
    arms = [arm.name for arm in METHODS]
    rows = []
    for name, row in ledger.summary(arms, ("avg", "pass@32", "length", "tokens")).iterrows():
        rows.append(
            f"| {'before' if name == 'base' else name} | {row.seeds:.0f} | {row.avg:.3f} "
            f"({row['worst seed']:.3f} to {row['best seed']:.3f}) | {row['pass@32']:.3f} "
            f"| {row.length:.1f} | {row.tokens / 1000:.0f} |"
        )
    return LEARNING.format(rows="\n".join(rows), steps=FULL.steps, problems=FULL.problems)


def speed() -> str:
    """Against TRL: ratios of medians."""
    results = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        results.append(json.loads(path.read_text()))
    steps = [str(len(result["laps"]["ours"])) for result in results]
    return SPEED.format(
        rows="\n".join(map(speed_row, results)),
        cores=results[-1]["machine"]["cores"],
        steps=" and ".join(steps),
    )


def speed_row(result: dict) -> str:
    size = f"{result['prompts']} x {result['group']} x {result['new_tokens']} tokens"
    cells = [f"{result['case']}, {size}"]
    for part in ("step", "generate", "train", "peak"):
        cells.append(f"{result['ratio'][part]:.2f}")
    floors = []
    for side in ("ours", "trl"):
        floors.append(f"{result['median_seconds'][side]['step'] / result['floor']['step']:.1f}")
    return "| " + " | ".join([*cells, ", ".join(floors)]) + " |"


def block() -> str:
    return "\n\n".join([BEGIN, learning(), speed(), END])


def main() -> None:
    path = ROOT / "README.md"
    before, rest = path.read_text().split(BEGIN)
    _, after = rest.split(END)
    path.write_text(before + block() + after)


if __name__ == "__main__":
    main()
