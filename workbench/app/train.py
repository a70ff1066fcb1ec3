"""``workbench train``: a method, a model and a task make a run directory."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from workbench.app.arguments import MODEL_AND_TASK, TEMPLATE, add, folder, named, positive, switch
from workbench.core import refuse_if

WHAT = {
    "method": {
        "metavar": "METHOD",
        "help": "the name of a file in workbench/methods, such as grpo or sft",
    },
    **MODEL_AND_TASK,
    "--adapter": {
        "type": folder,
        "metavar": "DIR",
        "help": "a peft adapter to start from, such as runs/sft/adapter: with --lora it is trained "
        "further (with its own rank), else it is merged into the weights, which are then trained",
    },
    **TEMPLATE,
    "--teacher": {
        "type": named,
        "metavar": "PATH_OR_HUB_ID",
        "help": "a stronger model with the same tokenizer, for methods that learn from one",
    },
    "--teacher-adapter": {
        "type": folder,
        "metavar": "DIR",
        "help": "a peft adapter to put on the teacher",
    },
    "--corrections": {
        "type": named,
        "metavar": "FILE",
        "help": "corrections saved by the composer: they join the rollouts of their problems, in "
        "up to a quarter of each step",
    },
}
RUN = {
    "--steps": {"type": positive, "default": 60},
    "--seed": {"type": int, "default": 0},
    "--out": {"type": folder, "required": True, "metavar": "DIR", "help": "the run directory"},
    "--set": {
        "action": "extend",
        "nargs": "+",
        "default": [],
        "metavar": "KEY=VALUE",
        "dest": "options",
        "help": "an option of the method, of the learner (lr, warmup, schedule, clip, ema, ...) or "
        "of the plan (prompts, rows, updates, minibatches, temperature, eval_every, ...); several, "
        "or repeated",
    },
    "--resume": switch("go on with the run in DIR from its last checkpoint"),
    "--stop-after": {
        "type": positive,
        "default": 0,
        "metavar": "N",
        "help": "stop after N evaluations in a row that are no better than the best before",
    },
    "--log": {
        "action": "append",
        "default": [],
        "choices": ("tensorboard", "trackio", "wandb"),
        "help": "write the metrics there as well; may be repeated",
    },
}
MEMORY_AND_SPEED = {
    "--lora": {
        "type": positive,
        "default": 0,
        "metavar": "R",
        "help": "train a LoRA adapter of rank R instead of all weights",
    },
    "--4bit": switch("keep the frozen weights in 4 bits (QLoRA); with --lora", "four_bit"),
    "--8bit-optimizer": switch("keep AdamW's moments in 8 bits", "eight_bit"),
    "--checkpointing": switch(
        "make activations again in the backward pass: less memory, a third more time"
    ),
    "--shard": switch(
        "under torchrun: split weights, gradients, optimiser and teacher over the processes (FSDP)"
    ),
    "--unsloth": switch("through Unsloth's kernels, on a CUDA GPU; with --lora"),
    "--vllm": switch("let vLLM write the rollouts, on a CUDA GPU; with --lora"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, WHAT)
    add(parser, RUN)
    add(parser.add_argument_group("memory and speed"), MEMORY_AND_SPEED)


def main(args: argparse.Namespace) -> None:
    from workbench.corrections.replay import WithCorrections
    from workbench.exchange.trackers import Tracker
    from workbench.model import distributed
    from workbench.rollouts import vllm
    from workbench.tasks import load_task
    from workbench.training.run import fit

    distributed.start()
    method, optimizer, plan = _settings(args)
    refuse_if(
        args.four_bit and not args.lora,
        "weights in 4 bits cannot be trained: add --lora R, the rank of the adapter to train",
    )
    refuse_if(
        args.unsloth and not args.lora, "Unsloth trains an adapter here: add --lora R, its rank"
    )
    if args.vllm:
        # before anything is loaded
        vllm.names(
            lora=bool(args.lora), four_bit=args.four_bit, unsloth=args.unsloth, sharded=args.shard
        )
    writers = [Tracker(name, args.out) for name in args.log]
    task = load_task(args.task)
    method = method.for_task(task)
    learner = _learner(args, optimizer)
    if args.adapter and distributed.main():
        print(f"{args.adapter} is {learner.adapter_use}")
    if args.vllm:
        learner.policy.engine = vllm.VLLM(learner.policy)
    config = _config(args, method, optimizer)
    if args.corrections:
        method = WithCorrections.from_file(method, args.corrections, learner.policy)
    fit(method, learner, task, plan, args.out, config=config, resume=args.resume, writers=writers)
    if distributed.main():
        print(f"The run is in {args.out}; workbench compare {args.out} shows it.")


def _settings(args: argparse.Namespace):
    """(method, OptimConfig, TrainConfig) as the command line sets them."""
    from workbench import methods
    from workbench.model.learner import OptimConfig
    from workbench.options import split_options, with_options
    from workbench.training.run import TrainConfig

    kind = methods.find(args.method)
    for_method, for_optimizer, for_plan = split_options(
        args.options, kind, OptimConfig, TrainConfig, fixed=("steps", "seed", "stop_after")
    )
    if args.eight_bit:
        for_optimizer = [*for_optimizer, "eight_bit=true"]
    fixed = {"steps": args.steps, "seed": args.seed, "stop_after": args.stop_after}
    for_plan = [*for_plan, *(f"{name}={value}" for name, value in fixed.items())]
    return (
        with_options(kind, for_method, args.method),
        with_options(OptimConfig, for_optimizer, "the optimiser"),
        with_options(TrainConfig, for_plan, "the plan"),
    )


def _learner(args: argparse.Namespace, optimizer):
    from workbench.model.learner import Learner
    from workbench.model.loading import load_policy

    refuse_if(
        args.teacher_adapter and not args.teacher,
        "--teacher-adapter wants a --teacher to put it on",
    )
    expert = None
    if args.teacher:
        expert = load_policy(
            args.teacher, adapter=args.teacher_adapter, frozen=True, four_bit=args.four_bit
        )
    policy = load_policy(
        args.model,
        adapter=args.adapter,
        frozen=bool(args.lora),
        four_bit=args.four_bit,
        unsloth=args.unsloth,
        template=dict(args.template),
    )
    return Learner(
        policy,
        optimizer,
        lora=args.lora,
        seed=args.seed,
        expert=expert,
        checkpointing=args.checkpointing,
        shard=args.shard,
    )


def _config(args: argparse.Namespace, method, optimizer) -> dict:
    """What the run's config.json says beside its plan."""
    return {
        "method": type(method).__name__,
        "options": asdict(method),
        "model": str(args.model),
        "task": args.task,
        "lora": args.lora,
        "four_bit": args.four_bit,
        "unsloth": args.unsloth,
        "vllm": args.vllm,
        "teacher": args.teacher,
        "corrections": args.corrections,
        "optimiser": asdict(optimizer),
    }
