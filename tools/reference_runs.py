"""Make the committed reference runs again: python tools/reference_runs.py [METHOD] [--seeds 0 1 2]

    python tools/reference_runs.py                                        GRPO
    python tools/reference_runs.py tapo
    python tools/reference_runs.py grpo --name grpo12 --set k=12          GRPO with about as many tokens as TAPO
    python tools/reference_runs.py scope --teacher data/organism/teacher

Each is the README's training command, with an evaluation on 400 held-out test problems before and after it. What is kept in data/runs is the
record, not the weights: a few hundred kilobytes a run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
KEPT = ("config.json", "env.json", "metrics.jsonl", "groups.jsonl")


def workbench(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "workbench.cli", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def evaluation(model: str, seed: int) -> dict:
    found = json.loads(workbench("eval", "--model", model, "--task", "arithmetic", "--problems", "400", "--samples", "8", "--seed", str(seed), "--json"))
    return {key: value for key, value in found.items() if key != "per_problem"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", nargs="?", default="grpo")
    parser.add_argument("--name", help="what the runs are called (default: the method)")
    parser.add_argument("--teacher")
    parser.add_argument("--set", action="append", default=[], dest="options", metavar="KEY=VALUE")
    parser.add_argument("--model", default="data/organism/3m")
    parser.add_argument("--steps", default="60")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    more = [word for option in args.options for word in ("--set", option)] + (["--teacher", args.teacher] if args.teacher else [])
    for seed in args.seeds:
        name = f"{args.name or args.method}-{Path(args.model).name}-seed{seed}"
        run, kept = ROOT / "runs" / name, ROOT / "data" / "runs" / name
        shutil.rmtree(run, ignore_errors=True)
        before = evaluation(args.model, seed)
        workbench("train", args.method, "--model", args.model, "--task", "arithmetic", "--steps", args.steps, "--seed", str(seed),
                  "--out", f"runs/{name}", *more)
        after = evaluation(f"runs/{name}/model", seed)
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for file in KEPT:
            shutil.copy(run / file, kept / file)
        (kept / "evaluation.json").write_text(json.dumps({"split": "test", "seed": seed, "before": before, "after": after}, indent=1) + "\n")
        print(f"{name}: {before['avg']:.3f} [{before['low']:.3f}, {before['high']:.3f}] -> {after['avg']:.3f} [{after['low']:.3f}, {after['high']:.3f}]")


if __name__ == "__main__":
    main()
