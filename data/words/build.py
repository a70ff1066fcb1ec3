"""Build the warm start: SmolLM2-135M with a LoRA adapter that solves the stories about half right.

    python -m data.words.build --ship warm               the warm start, 35 steps: a quarter of an
                                                         hour on one core
    python -m data.words.build --steps 80 --ship teacher on from there: the teacher
    python -m data.words.build --seed 1 --measure        another one, measured as the records are:
                                                         a line of spread.csv

Supervised fine-tuning on generated problems of the training split. Three of four lessons are a
plain question and its solution. An eighth each: a prompt that holds a solution or feedback on a
wrong attempt (what SDPO's self-teacher reads), and TAPO's synthesis prompt with an analysis and a
reconstruction. No slips are planted in plain solutions: a model of this size slips by itself.
The run stops early enough that it still does.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from data.words.run import FULL, measure
from workbench.core import Problem, coordinates
from workbench.methods.sft import SFT
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.paths import DATA, ROOT
from workbench.records import dumps, write_atomic
from workbench.tasks.stories import Told, filled
from workbench.tasks.words import WAIT, Words, check, line, solve
from workbench.training.run import TrainConfig, fit

HERE = DATA / "words"
WORK = ROOT / "runs" / "words"
SPREAD = HERE / "spread.csv"  # other warm starts, by their seeds
RANK = 8
LESSONS = ("plain", "plain", "plain", "plain", "plain", "plain", "shown", "synthesis")
LOWER = {"He", "She", "There", "On", "The", "Each"}


@dataclass(frozen=True)
class Lessons(Words):
    """The task whose training problems are lessons; its other splits are those of ``Words``."""

    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        if split != "train":
            return super().problems(split, n, seed)
        rng = Random(coordinates("lessons", seed))
        return [self._lesson(told, rng) for told in self.told(split, n, seed)]

    def _lesson(self, told: Told, rng: Random) -> Problem:
        problem, kind = self.problem(told), rng.choice(LESSONS)
        if kind == "plain":
            return problem
        right, slipped = solve(told), slip(told, rng)
        wrong = solve(slipped)
        if kind == "synthesis":
            text = _rewritten(problem, told, slipped)
            return replace(
                problem, messages=self.synthesis(problem, wrong, right), solutions=(text,)
            )
        shown = {"solution": right} if rng.random() < 0.5 else {}
        if not shown:
            shown["feedback"] = check(problem, wrong).unmended
        return replace(problem, messages=self.reprompt(problem, **shown), solutions=(right,))


def slip(told: Told, rng: Random) -> Told:
    """The story with one wrong result, from which its solution goes on."""
    while True:
        index = rng.randrange(len(told.steps))
        value = told.steps[index][3] + rng.choice((-10, -2, -1, 1, 2, 10))
        wrong = filled(told.story, told.numbers, told.words, {index: value})
        if value > 0 and wrong is not None:
            return wrong


def _rewritten(problem: Problem, told: Told, slipped: Told) -> str:
    """The analysis, and the wrong attempt up to its slip, mended."""
    wrong = solve(slipped)
    analysis = check(problem, wrong)
    index = analysis.first_error
    first, _, rest = line(told, index).partition(" ")
    mended = f"{WAIT}, {first.lower() if first in LOWER else first} {rest}"
    kept = wrong.split("\n")[: index + 1]
    text = "\n".join([*kept, mended, *solve(told).split("\n")[index + 1 :]])
    return f"<analysis>{analysis.unmended}</analysis>\n<reconstruction>\n{text}\n</reconstruction>"


def build(steps: int, seed: int, lr: float, out: Path) -> Path:
    """The run: its adapter is in ``out``/adapter. Goes on from a shorter one."""
    optimizer = OptimConfig(lr=lr)
    learner = Learner(load_policy("smollm2"), optimizer, lora=RANK, seed=seed)
    plan = TrainConfig(
        steps=steps,
        seed=seed,
        prompts=8,
        rows=8,
        eval_every=30,
        eval_problems=24,
        eval_samples=4,
        checkpoint_every=5,
        keep_groups=2,
    )
    config = {"model": "smollm2", "task": "words", "lora": RANK, "optimiser": asdict(optimizer)}
    return fit(SFT(), learner, Lessons(), plan, out, config=config, resume=True, progress=False)


def ship(adapter: Path, name: str) -> Path:
    """The adapter beside this script, its numbers in bf16: half the size."""
    weights = load_file(adapter / "adapter_model.safetensors")
    half = {key: weight.to(torch.bfloat16) for key, weight in weights.items()}
    out = HERE / name
    out.mkdir(exist_ok=True)
    save_file(half, out / "adapter_model.safetensors", {"format": "pt"})
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "smollm2"
    config["target_modules"] = sorted(config["target_modules"])
    write_atomic(out / "adapter_config.json", dumps(config, indent=1) + "\n")
    return out


def add_to_spread(adapter: Path, seed: int, steps: int) -> None:
    """The warm start of this seed on the test problems of the records (``measure`` of run.py)."""
    evaluation, _ = measure(load_policy("smollm2", adapter=adapter), 0, FULL)
    test, held = evaluation["test"], evaluation["held"]
    row = {
        "steps": steps,
        **{name: test[name] for name in ("avg", "low", "high", "length", "finished")},
        **{f"held {name}": held[name] for name in ("avg", "low", "high")},
    }
    others = pd.read_csv(SPREAD, index_col="seed") if SPREAD.is_file() else pd.DataFrame()
    found = pd.concat([others.drop(index=seed, errors="ignore"), pd.DataFrame(row, index=[seed])])
    write_atomic(SPREAD, found.sort_index().to_csv(float_format="%.4f", index_label="seed"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=35)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ship", help="the name under which it is kept in data/words")
    parser.add_argument("--measure", action="store_true", help="add a line to spread.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = args.out or WORK / f"warm-seed{args.seed}"
    folder = build(args.steps, args.seed, args.lr, out)
    if args.ship:
        ship(folder / "adapter", args.ship)
    if args.measure:
        add_to_spread(folder / "adapter", args.seed, args.steps)
    for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        if "eval_avg" in row:
            print(f"step {row['step']}: avg@4 {row['eval_avg']:.3f}, {row['eval_length']:.0f} tok")


if __name__ == "__main__":
    main()
