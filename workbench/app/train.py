"""``workbench train``: a method, a model and a task make a run directory."""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields

from workbench.app.arguments import add_model_and_task, add_switches, folder, named, positive
from workbench.core import WorkbenchError

SWITCHES = {
    "--4bit": ("four_bit", "keep the frozen weights in 4 bits (QLoRA); with --lora"),
    "--8bit-optimizer": ("eight_bit", "keep AdamW's moments in 8 bits"),
    "--checkpointing": (
        "checkpointing",
        "make activations again in the backward pass: less memory, a third more time",
    ),
    "--shard": (
        "shard",
        "under torchrun: split weights, gradients, optimiser and teacher over the processes (FSDP)",
    ),
    "--unsloth": ("unsloth", "through Unsloth's kernels, on a CUDA GPU; with --lora"),
    "--vllm": ("vllm", "let vLLM write the rollouts, on a CUDA GPU; with --lora"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "method",
        metavar="METHOD",
        help="the name of a file in workbench/methods, such as grpo or sft",
    )
    add_model_and_task(parser)
    parser.add_argument("--steps", type=positive, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=folder, required=True, metavar="DIR", help="the run directory"
    )
    parser.add_argument(
        "--teacher",
        type=named,
        metavar="PATH_OR_HUB_ID",
        help="a stronger model with the same tokenizer, for methods that learn from one",
    )
    parser.add_argument(
        "--corrections",
        type=named,
        metavar="FILE",
        help="corrections saved by the composer: they join the rollouts of their problems, in up "
        "to a quarter of each step",
    )
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        dest="options",
        help="an option of the method, of the learner (lr, clip, ema, weight_decay) or of the plan "
        "(prompts, rows, updates, eval_every, ...); several, or repeated",
    )
    record = {
        "--resume": ("resume", "go on with the run in DIR from its last checkpoint"),
        "--tensorboard": ("tensorboard", "write the metrics for TensorBoard as well"),
    }
    add_switches(parser, record)
    resources = parser.add_argument_group("memory and speed")
    resources.add_argument(
        "--lora",
        type=positive,
        default=0,
        metavar="R",
        help="train a LoRA adapter of rank R instead of all weights",
    )
    add_switches(resources, SWITCHES)


def main(args: argparse.Namespace) -> None:
    from workbench.corrections.replay import WithCorrections
    from workbench.model import distributed
    from workbench.records import TensorBoard
    from workbench.rollouts import vllm
    from workbench.tasks import load_task
    from workbench.training.run import fit

    distributed.start()
    method, optimizer, plan = _settings(args)
    _refuse_what_needs_an_adapter(args)
    task = load_task(args.task)
    learner = _learner(args, optimizer)
    if args.vllm:
        learner.policy.engine = vllm.VLLM(learner.policy)
    config = {
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
    if args.corrections:
        method = WithCorrections.from_file(method, args.corrections, learner.policy)
    writers = [TensorBoard(args.out)] if args.tensorboard else []
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
    optimizer_keys = tuple(field.name for field in fields(OptimConfig))
    for_method, for_optimizer, for_plan = split_options(args.options, kind, optimizer_keys)
    if args.eight_bit:
        for_optimizer = [*for_optimizer, "eight_bit=true"]
    for_plan = [*for_plan, f"steps={args.steps}", f"seed={args.seed}"]
    return (
        with_options(kind, for_method, args.method),
        with_options(OptimConfig, for_optimizer, "the optimiser"),
        with_options(TrainConfig, for_plan, "the plan"),
    )


def _refuse_what_needs_an_adapter(args: argparse.Namespace) -> None:
    """Before anything is loaded."""
    from workbench.rollouts import vllm

    if args.four_bit and not args.lora:
        raise WorkbenchError(
            "weights in 4 bits cannot be trained: add --lora R, the rank of the adapter to train"
        )
    if args.unsloth and not args.lora:
        raise WorkbenchError("Unsloth trains an adapter here: add --lora R, its rank")
    if args.vllm:
        vllm.names(
            lora=bool(args.lora), four_bit=args.four_bit, unsloth=args.unsloth, sharded=args.shard
        )


def _learner(args: argparse.Namespace, optimizer):
    from workbench.model.learner import Learner
    from workbench.model.loading import load_policy

    expert = None
    if args.teacher:
        expert = load_policy(args.teacher, frozen=True, four_bit=args.four_bit)
    policy = load_policy(
        args.model, frozen=bool(args.lora), four_bit=args.four_bit, unsloth=args.unsloth
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
