"""``workbench eval``: how often a model solves held-out problems."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict

from workbench.app.arguments import (
    ADAPTER,
    MODEL_AND_TASK,
    TEMPLATE,
    add,
    positive,
    probability,
    switch,
    temperature,
)
from workbench.core import refuse_if

MODEL = {
    **MODEL_AND_TASK,
    **ADAPTER,
    **TEMPLATE,
    "--4bit": switch("load the model's weights in 4 bits", "four_bit"),
}
PROBLEMS = {
    "--split": {"default": "test", "choices": ("test", "validation", "train")},
    "--problems": {"type": positive, "default": 400},
    "--samples": {"type": positive, "default": 8},
    "--temperature": {"type": temperature, "default": 1.0, "help": "0 is greedy"},
    "--top-p": {
        "type": probability,
        "default": 1.0,
        "metavar": "P",
        "help": "sample only from the likeliest tokens that together have this probability",
    },
    "--seed": {"type": int, "default": 0},
    "--json": switch("print JSON"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, MODEL)
    add(parser, PROBLEMS)


def main(args: argparse.Namespace) -> None:
    from workbench.evaluation.metrics import evaluate
    from workbench.model import distributed
    from workbench.model.loading import load_policy
    from workbench.tasks import load_task

    distributed.start()
    refuse_if(
        distributed.fsdp(os.environ),
        "workbench eval samples with the whole policy on every process: start it with "
        "torchrun, or without --use_fsdp",
    )
    task = load_task(args.task)
    problems = task.problems(args.split, args.problems, args.seed)
    policy = load_policy(
        args.model,
        adapter=args.adapter,
        frozen=True,
        four_bit=args.four_bit,
        template=dict(args.template),
    )
    how = {"temperature": args.temperature, "top_p": args.top_p}
    result = evaluate(policy, task, problems, args.samples, args.seed, **how)
    if distributed.main():
        print(json.dumps(asdict(result)) if args.json else result)
