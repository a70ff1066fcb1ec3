"""``workbench cold-start``: teach a policy TAPO's format on lessons that it writes itself."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.options import add_flags
from workbench.tasks import load_task
from workbench.training.cold_start import ColdStartConfig
from workbench.training.run import TrainConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", type=Path, help="a peft adapter to put on the model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--writer", help="a model that writes the reconstructions instead")
    add_flags(
        parser,
        task="arithmetic",
        problems=(ColdStartConfig.problems, "how many to sample rollouts of"),
        share=(ColdStartConfig.share, "synthesis lessons for each reflecting one"),
        epochs=ColdStartConfig.epochs,
        lr=1e-5,
        lora=0,
        seed=0,
    )


def main(args: argparse.Namespace) -> None:
    settings = OptimConfig(lr=args.lr)
    policy = load_policy(args.model, adapter=args.adapter)
    learner = Learner(policy, settings, lora=args.lora, seed=args.seed)
    out = ColdStartConfig(args.problems, args.share, args.epochs).follow(
        learner,
        load_task(args.task),
        TrainConfig(seed=args.seed),
        args.out,
        writer=load_policy(args.writer) if args.writer else None,
        config={"model": args.model, "task": args.task},
    )
    config = json.loads((out / "config.json").read_text())
    print(f"{config['lessons']} lessons; the run is in {out}")
