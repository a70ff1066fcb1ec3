"""Write the numbers of README.md from the committed records: python -m tools.readme

The README holds one block between two marks; nothing else in it is a measured number. A test
compares the block with what this writes.
"""

from __future__ import annotations

import json
from math import isnan

import pandas as pd

from data.words import run as runs_in_words
from data.words import table as words
from workbench.paths import DATA, ROOT
from workbench.studies import claims, ledger
from workbench.studies.arms import GRID, TASK
from workbench.studies.cell import FULL, at_common_rate

RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- numbers: tools/readme.py -->", "<!-- end of numbers -->"
LEARNING = """\
| sums, a model of 3M parameters | seeds | avg@{final.samples} (worst to best seed) \
| reads a shown solution \
| pass@{final.many_samples} | answer, tokens | written in training, thousands of tokens |
|---|---|---|---|---|---|---|
{rows}

{count} of {planned} runs are there. {steps} updates of {prompts} problems x 8 rollouts (opd-1: 64 \
x 1; sft: 64 solutions) at one learning rate, numbers up to 26; experts in the organism's own \
style; cold: after TAPO's cold start; scope and opd-1 listen to a teacher made for numbers up to \
20, strong to one that knows 26. {final.problems} held-out problems a seed, temperature 1. By \
[a plan that is older than the runs](data/study/PLAN.md), which says what the arms are; made by \
`workbench study`. {decided} Each with interval, verdict and power: \
[15_compare](notebooks/15_compare.ipynb), [data/study/ledger.md](data/study/ledger.md)."""
IN_WORDS = """\
| word problems in English, SmolLM2-135M | seeds | avg@2 (worst to best seed) | over before \
| stories that no training saw | answer, tokens |
|---|---|---|---|---|---|
{rows}

{count} of {planned} runs are there. 30 updates of 3 problems x 8 rollouts, LoRA of rank 8, one \
learning rate, tuned on GRPO; the experts of TRAPO, LUFFY and SFT write in another style than the \
model; 4bit: QLoRA, over its own start; the same 200 held-out problems for all, the intervals over \
these. By \
[a plan that is older than the runs](data/words/PLAN.md); `python -m data.words.run`.

![One wrong answer in English: what would have been right to tell each of its tokens, and what \
seven methods tell them, each with the cosine of its credit with that truth.]\
(data/examples/words.png)

One wrong answer of this model before training: how much each token changed its chance to end \
right, and what the methods that add no words of their own say of it. Chosen by a rule, not by eye \
([04_true_credit](notebooks/04_true_credit.ipynb)); beside each name its cosine over \
{credited} problems."""
SPEED = """\
| ours / TRL on the same step | step time | generation | training | peak memory \
| step / its floor: ours, TRL |
|---|---|---|---|---|---|
{rows}

Two processes in turns on {cores} cores, fp32, TRL at its fastest; medians of {steps} steps; \
below 1 is faster or smaller. The floor: the matrix products of the weights alone, at the rate of \
a large product. `make bench`; records in [benchmarks/results](benchmarks/results).{to_target}"""

TO_TARGET = """

| until {target} of held-out problems | seconds | of TRL's | 1000 tokens | updates |
|---|---|---|---|---|
{rows}

The 3M model, 400 test problems (the lower end of avg@8's 95 % interval), 16 problems x 8 an \
update, means of {seeds} seeds, one rate for all; looking is off the clock.{void} \
`python benchmarks/speedrun.py`."""


def learning() -> str:
    """Every arm on the 3m and the study's dial: held-out accuracy after its updates."""
    arms = [arm.name for arm in GRID if (arm.model, arm.task) == ("3m", TASK)]
    columns = ("avg", "reading", "pass@32", "length", "tokens")
    table = ledger.summary(arms, columns).rename({"base": "before"})
    teachers = ledger.teachers(columns).rename("({}, unaided)".format)
    rows = []
    for name, row in pd.concat([table, teachers]).iterrows():
        rows.append(
            f"| {name} | {row.seeds:.0f} | {row.avg:.3f} "
            f"({row['worst seed']:.3f} to {row['best seed']:.3f}) | {row.reading:.3f} "
            f"| {'' if isnan(row['pass@32']) else format(row['pass@32'], '.3f')} "
            f"| {row.length:.1f} | {row.tokens / 1000:.0f} |"
        )
    return LEARNING.format(
        rows="\n".join(rows or ["| no record yet | | | | | | |"]),
        count=len(ledger.cells()),
        planned=sum(arm.seeds for arm in GRID if not at_common_rate(arm)),
        decided=claims.decided(claims.verdicts()),
        **vars(FULL),
    )


def in_words() -> str:
    """Every method's LoRA run on a small real model."""
    rows = []
    names = {"base": "before", "base-4bit": "before, 4 bits", "teacher": "(teacher, unaided)"}
    lines = words.table().rename(names)
    for name, row in lines.iterrows():
        gain = ""
        if not isnan(row["over before"]):
            gain = f"{row['over before']:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
        rows.append(
            f"| {name} | {row.seeds:.0f} | {row.avg:.3f} "
            f"({row.worst:.3f} to {row.best:.3f}) | {gain} | {row.held:.3f} | {row.length:.1f} |"
        )
    planned = sum(arm.seeds for arm in runs_in_words.ARMS)
    count = int(lines.seeds.sum())
    credit = json.loads((DATA / "true_credit" / "words.json").read_text())
    return IN_WORDS.format(
        rows="\n".join(rows), count=count, planned=planned, credited=credit["groups"]
    )


def speed() -> str:
    """Against TRL: ratios of medians, and the clock to a target where it was run."""
    results = []
    for path in sorted(RESULTS.glob("*-fast.json")):
        results.append(json.loads(path.read_text()))
    race = RESULTS / "speedrun.json"
    steps = [str(len(result["laps"]["ours"])) for result in results]
    return SPEED.format(
        rows="\n".join(map(speed_row, results)),
        cores=results[-1]["machine"]["cores"],
        steps=" and ".join(steps),
        to_target=to_target(json.loads(race.read_text())) if race.exists() else "",
    )


def to_target(result: dict) -> str:
    """What each entry of ``benchmarks/speedrun.py`` needed, the fastest first."""
    entries = result["standings"]
    there = {name: mean for name, mean in entries.items() if mean}
    rival = there.get("trl")
    rows = []
    for name, mean in sorted(there.items(), key=lambda item: item[1]["seconds"]):
        ratio = f"{mean['seconds'] / rival['seconds']:.2f}" if rival else ""
        cells = (name, f"{mean['seconds']:.0f}", ratio, f"{mean['tokens'] / 1000:.0f}")
        rows.append("| " + " | ".join([*cells, f"{mean['steps']:.0f}"]) + " |")
    void = ", ".join(sorted(set(entries) - set(there)))
    return TO_TARGET.format(
        rows="\n".join(rows),
        target=result["target"],
        seeds=len({run["seed"] for run in result["runs"]}),
        void=f" Without both seeds at the target: {void}." if void else "",
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
    return "\n\n".join([BEGIN, learning(), in_words(), speed(), END])


def main() -> None:
    path = ROOT / "README.md"
    before, rest = path.read_text().split(BEGIN)
    _, after = rest.split(END)
    path.write_text(before + block() + after)


if __name__ == "__main__":
    main()
