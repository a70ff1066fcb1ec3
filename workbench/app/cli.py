"""The command line: a thin face on the package.

Bad input is one sentence on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from workbench.core import WorkbenchError
from workbench.options import split_options, with_options


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help says more\n")


def parser() -> argparse.ArgumentParser:
    top = Parser(
        "workbench",
        description="See, compare and change how language models learn from their own mistakes.",
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    def verb(name: str, run, text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    tour = verb(
        "tour", _tour, "Watch the embedded model learn by GRPO, and read the page that it leaves."
    )
    tour.add_argument(
        "--out", type=Path, default=Path("tour.html"), help="the page to write (default: tour.html)"
    )
    tour.add_argument("--steps", type=_positive, default=60)
    tour.add_argument("--seed", type=int, default=0)

    train = verb("train", _train, "Train a model with a method on a task; leaves a run directory.")
    train.add_argument(
        "method",
        metavar="METHOD",
        help="the name of a file in workbench/methods, such as grpo or sft",
    )
    _model(train)
    train.add_argument("--steps", type=_positive, default=60)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument(
        "--out", type=_folder, required=True, metavar="DIR", help="the run directory"
    )
    train.add_argument(
        "--lora",
        type=_positive,
        default=0,
        metavar="R",
        help="train a LoRA adapter of rank R instead of all weights",
    )
    train.add_argument(
        "--4bit",
        action="store_true",
        dest="four_bit",
        help="keep the frozen weights in 4 bits (QLoRA); with --lora",
    )
    train.add_argument(
        "--8bit-optimizer",
        action="store_true",
        dest="eight_bit",
        help="keep AdamW's moments in 8 bits",
    )
    train.add_argument(
        "--unsloth",
        action="store_true",
        help="through Unsloth's kernels, on a CUDA GPU; with --lora",
    )
    train.add_argument(
        "--vllm",
        action="store_true",
        help="let vLLM write the rollouts, on a CUDA GPU; with --lora",
    )
    train.add_argument(
        "--checkpointing",
        action="store_true",
        help="make activations again in the backward pass: less memory, a third more time",
    )
    train.add_argument(
        "--shard",
        action="store_true",
        help="under torchrun: split weights, gradients, optimiser and teacher over the "
        "processes (FSDP)",
    )
    train.add_argument(
        "--teacher",
        type=_named,
        metavar="PATH_OR_HUB_ID",
        help="a stronger model with the same tokenizer, for methods that learn from one",
    )
    train.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        dest="options",
        help="an option of the method, of the learner (lr, clip, ema, "
        "weight_decay) or of the plan (prompts, rows, updates, "
        "eval_every, ...); several, or repeated",
    )
    train.add_argument(
        "--resume", action="store_true", help="go on with the run in DIR from its last checkpoint"
    )
    train.add_argument(
        "--tensorboard", action="store_true", help="write the metrics for TensorBoard as well"
    )

    evaluate = verb(
        "eval", _eval, "Measure avg@k, pass@k, length and an interval on held-out problems."
    )
    _model(evaluate)
    evaluate.add_argument(
        "--adapter", type=Path, metavar="DIR", help="a peft adapter to put on the model"
    )
    evaluate.add_argument(
        "--4bit", action="store_true", dest="four_bit", help="load the model's weights in 4 bits"
    )
    evaluate.add_argument("--split", default="test", choices=("test", "validation", "train"))
    evaluate.add_argument("--problems", type=_positive, default=400)
    evaluate.add_argument("--samples", type=_positive, default=8)
    evaluate.add_argument("--temperature", type=_temperature, default=1.0, help="0 is greedy")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--json", action="store_true", help="print JSON")

    compare = verb("compare", _compare, "Put runs side by side.")
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    compare.add_argument(
        "--html", type=Path, metavar="F", help="write a page with the curves as well"
    )

    study = verb(
        "study",
        _study,
        "Make the comparison's runs: every method, several seeds; what is there already is kept.",
    )
    from workbench.studies.grid import add_arguments

    add_arguments(study)

    doctor = verb(
        "doctor",
        _doctor,
        "Report the environment, and which parts will work here; with --model, on which "
        "GPU a training step will fit.",
    )
    doctor.add_argument(
        "--model",
        type=_named,
        metavar="MODEL",
        help="a folder, a hub id (only its configuration is read), a GGUF file, or smollm2",
    )
    doctor.add_argument("--method", metavar="METHOD", help="one method (default: all)")
    for flag, value, text in (
        ("--lora", 16, "rank of the adapter"),
        ("--prompt", 200, "tokens of a prompt"),
        ("--new", 512, "tokens of a completion"),
        ("--rows", 8, "rollouts in a micro-batch"),
        ("--prompts", 16, "problems in a step"),
    ):
        doctor.add_argument(flag, type=_positive, default=value, help=f"{text} (default: {value})")
    doctor.add_argument(
        "--checkpointing",
        action="store_true",
        help="with activations made again in the backward pass",
    )
    doctor.add_argument(
        "--8bit-optimizer",
        action="store_true",
        dest="eight_bit",
        help="with AdamW's moments in 8 bits",
    )
    doctor.add_argument(
        "--measure", metavar="TASK", help="also make one real step by QLoRA on this GPU, on a task"
    )
    return top


def _model(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="a folder, a hub id, a GGUF file, or smollm2 (a real model without a download)",
    )
    verb.add_argument(
        "--task",
        default="arithmetic",
        metavar="NAME",
        help="arithmetic, arithmetic:steps=5,largest=99, "
        "math:gsm8k (math500, aime24, aime25, hmmt25, a file, a hub id), "
        "code:FILE, mcq:FILE, tools:FILE, gym:chain_sum,min_terms=2, or a "
        "file: "
        "problems.jsonl, problems.jsonl:max_new=64",
    )


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _named(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty")
    return text


def _folder(text: str) -> Path:
    return Path(_named(text))


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a temperature of 0 or more")
    return value


def _tour(args) -> None:
    from workbench.app.tour import tour

    tour(args.out, steps=args.steps, seed=args.seed)


def _train(args) -> None:
    from workbench import methods
    from workbench.model import distributed
    from workbench.model.learner import Learner, OptimConfig
    from workbench.model.loading import load_policy
    from workbench.rollouts import vllm
    from workbench.tasks import load_task
    from workbench.training.run import TrainConfig, fit

    distributed.start()
    kind = methods.find(args.method)
    for_method, for_optimizer, for_plan = split_options(
        args.options, kind, OptimConfig, TrainConfig, fixed=("steps", "seed")
    )
    method = with_options(kind, for_method, args.method)
    optimizer = with_options(
        OptimConfig,
        [*for_optimizer, *(["eight_bit=true"] if args.eight_bit else [])],
        "the optimiser",
    )
    plan = with_options(
        TrainConfig, [*for_plan, f"steps={args.steps}", f"seed={args.seed}"], "the plan"
    )
    if args.four_bit and not args.lora:
        raise WorkbenchError(
            "weights in 4 bits cannot be trained: add --lora R, the rank of the adapter to train"
        )
    if args.unsloth and not args.lora:
        raise WorkbenchError("Unsloth trains an adapter here: add --lora R, its rank")
    if args.vllm:
        # before anything is loaded
        vllm.names(
            lora=bool(args.lora), four_bit=args.four_bit, unsloth=args.unsloth, sharded=args.shard
        )
    task = load_task(args.task)
    expert = (
        load_policy(args.teacher, frozen=True, four_bit=args.four_bit) if args.teacher else None
    )
    learner = Learner(
        load_policy(
            args.model, frozen=bool(args.lora), four_bit=args.four_bit, unsloth=args.unsloth
        ),
        optimizer,
        lora=args.lora,
        seed=args.seed,
        expert=expert,
        checkpointing=args.checkpointing,
        shard=args.shard,
    )
    if args.vllm:
        learner.policy.engine = vllm.VLLM(learner.policy)
    writers = []
    if args.tensorboard:
        from workbench.records import TensorBoard

        writers.append(TensorBoard(args.out))
    config = {
        "model": str(args.model),
        "task": args.task,
        "lora": args.lora,
        "four_bit": args.four_bit,
        "unsloth": args.unsloth,
        "vllm": args.vllm,
        "teacher": args.teacher,
        "optimiser": asdict(optimizer),
    }
    fit(method, learner, task, plan, args.out, config=config, resume=args.resume, writers=writers)
    if distributed.main():
        print(f"The run is in {args.out}; workbench compare {args.out} shows it.")


def _eval(args) -> None:
    from workbench.evaluation.metrics import evaluate
    from workbench.model import distributed
    from workbench.model.loading import load_policy
    from workbench.tasks import load_task

    distributed.start()
    if distributed.fsdp(os.environ):
        raise WorkbenchError(
            "workbench eval samples with the whole policy on every process: start it with "
            "torchrun, or without --use_fsdp"
        )
    task = load_task(args.task)
    problems = task.problems(args.split, args.problems, args.seed)
    policy = load_policy(args.model, adapter=args.adapter, frozen=True, four_bit=args.four_bit)
    result = evaluate(policy, task, problems, args.samples, args.seed, temperature=args.temperature)
    if distributed.main():
        print(json.dumps(asdict(result)) if args.json else result)


def _compare(args) -> None:
    from workbench.app.compare import table, write_page

    print(table(args.runs))
    if args.html:
        write_page(args.runs, args.html)
        print(f"The curves are in {args.html}")


def _study(args) -> None:
    from workbench.studies.grid import main as run_study

    run_study(args)


def _doctor(args) -> None:
    from workbench import methods
    from workbench.app import doctor, memory

    if args.model is None:
        if args.method or args.measure:
            raise WorkbenchError("doctor --method and --measure want a --model")
        print(doctor.report())
        return
    names = [args.method] if args.method else methods.METHODS
    kinds = [methods.find(name) for name in names]
    print(
        f"Predicted peak of a training step of {args.model}, in GiB, and the smallest GPU "
        f"that it fits: {args.prompt} + {args.new} tokens, "
        f"{args.rows} rollouts in a micro-batch, {args.prompts} problems in a step; "
        "frozen weights in bf16 (on a T4 fp32), QLoRA's in 4 bits.\n"
    )
    print(
        memory.report(
            args.model,
            names,
            rank=args.lora,
            prompt=args.prompt,
            new=args.new,
            rows=args.rows,
            prompts=args.prompts,
            checkpointing=args.checkpointing,
            eight_bit=args.eight_bit,
        )
    )
    if args.measure:
        print(doctor.measured(args.model, kinds, args.measure, args))


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # torch, which distributed.py needs, takes a second to import
    together = os.environ.get("WORLD_SIZE", "1") != "1"
    try:
        if together and args.verb not in ("train", "eval"):
            raise WorkbenchError(
                f"workbench {args.verb} runs in one process: start it without torchrun"
            )
        args.run(args)
    except WorkbenchError as error:
        from workbench.model import distributed

        if not together or distributed.first_to_fail():
            print(f"workbench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "workbench: interrupted; a training run goes on from its last checkpoint with --resume",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
