"""``workbench doctor``: what is installed, what the machine has, and which parts of the workbench
will work here.
"""

from __future__ import annotations

import argparse
import platform
import shutil
from functools import partial
from importlib import metadata, util

from workbench.app.arguments import ADAPTER, add, named, positive, switch
from workbench.core import refuse_if
from workbench.paths import ORGANISM
from workbench.tasks.sandbox import outside

# what a user can do with which packages
PARTS = {
    "train and evaluate": ("torch", "transformers", "safetensors"),
    "LoRA adapters": ("peft",),
    "data sets and their graders": ("datasets", "math-verify", "reasoning-gym"),
    "notebooks": ("jupyterlab", "ipywidgets", "matplotlib", "pandas"),
    "notebook tests": ("pytest", "nbmake"),
    "4-bit and 8-bit weights": ("bitsandbytes",),
    "TensorBoard": ("tensorboard",),
    "Unsloth": ("unsloth",),
    "generation by vLLM": ("vllm",),
}
NEEDS_CUDA = ("Unsloth", "generation by vLLM")

SIZES = {  # of a training step, as memory.StepSizes has them
    "--lora": ("rank", 16, "rank of the adapter"),
    "--prompt": ("prompt", 200, "tokens of a prompt"),
    "--new": ("new", 512, "tokens of a completion"),
    "--rows": ("rows", 8, "rollouts in a micro-batch"),
    "--prompts": ("prompts", 16, "problems in a step"),
}
ARGUMENTS = {
    "--model": {
        "type": named,
        "metavar": "MODEL",
        "help": "a folder, a hub id (only its configuration is read), a GGUF file, or smollm2",
    },
    **ADAPTER,
    "--method": {"metavar": "METHOD", "help": "one method (default: all)"},
    "--checkpointing": switch("with activations made again in the backward pass"),
    "--8bit-optimizer": switch("with AdamW's moments in 8 bits", "eight_bit"),
    "--measure": {
        "metavar": "TASK",
        "help": "also make one real step by QLoRA on this GPU, on a task",
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, ARGUMENTS)
    for flag, (name, n, text) in SIZES.items():
        parser.add_argument(
            flag, type=positive, default=n, dest=name, help=f"{text} (default: {n})"
        )


def main(args: argparse.Namespace) -> None:
    if args.model is None:
        refuse_if(
            args.method or args.measure or args.adapter,
            "doctor --method, --measure and --adapter want a --model",
        )
        print(report())
        return
    from workbench.app import memory
    from workbench.methods import METHODS
    from workbench.model.adapters import read_config

    if args.adapter:  # it would be trained further
        args.rank = read_config(args.adapter, args.model).get("r", args.rank)
    names = [args.method] if args.method else list(METHODS)
    sizes = memory.StepSizes(
        args.prompt,
        args.new,
        args.rows,
        args.prompts,
        args.rank,
        args.checkpointing,
        args.eight_bit,
    )
    table = memory.report(memory.skeleton(args.model), names, sizes)
    print(
        f"Predicted peak of a training step of {args.model}, in GiB, and the smallest GPU "
        f"that it fits: {args.prompt} + {args.new} tokens, "
        f"{args.rows} rollouts in a micro-batch, {args.prompts} problems in a step; "
        "frozen weights in 16 bits (on a T4 fp16, else bf16), QLoRA's in 4.\n"
    )
    print(table)
    if args.measure:
        print(measured(args.model, names, args.measure, sizes))


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def line() -> str:
    """Where this runs, in one line."""
    import torch

    place = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    return f"Python {platform.python_version()}, {packages}, {place}"


def report() -> str:
    """The machine, then a line for each part: does it work here, and if not, why."""
    compiler = shutil.which("g++") or shutil.which("clang++") or "none"
    lines = [
        f"python        {platform.python_version()} on {platform.system()} {platform.machine()}",
        *_devices(),
        f"C++ compiler  {compiler} (only rebuilding the organism uses one, by torch.compile)",
        "",
        *(_part(name, packages) for name, packages in PARTS.items()),
        _embedded_models(),
        outside.report(),
    ]
    return "\n".join(lines)


def _devices() -> list[str]:
    if not util.find_spec("torch"):
        return []
    import torch

    lines = [f"torch         {torch.__version__}, {torch.get_num_threads()} CPU threads"]
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        lines.append(f"GPU           {device.name}, {device.total_memory / 2**30:.0f} GiB")
    if len(lines) == 1:
        lines.append("GPU           none: everything runs on the CPU")
    return lines


def _part(name: str, packages: tuple[str, ...]) -> str:
    missing = [package for package in packages if version(package) is None]
    if missing:
        return f"[ no ] {name}: not installed: {', '.join(missing)}"
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    if name in NEEDS_CUDA:
        import torch

        if not torch.cuda.is_available():
            return f"[ no ] {name}: {versions}, but there is no CUDA GPU"
    return f"[ ok ] {name}: {versions}"


def _embedded_models() -> str:
    # a folder that begins with a dot is half-written
    models = sorted(file.parent.name for file in ORGANISM.glob("[!.]*/config.json"))
    if not models:
        return "[ no ] embedded models: none here; make organism builds them"
    return f"[ ok ] embedded models: {', '.join(models)}"


def measured(model: str, methods: list[str], task: str, sizes) -> str:
    """One real step of each method by QLoRA on the GPU that is here; ``sizes`` as in memory.py."""
    import torch

    from workbench.app.memory import measure
    from workbench.methods import find
    from workbench.model.learner import Learner, OptimConfig
    from workbench.model.loading import load_policy
    from workbench.tasks import load_task

    refuse_if(not torch.cuda.is_available(), "there is no GPU here to measure on")
    lines = [f"\nMeasured on {torch.cuda.get_device_name()} with {task}, by QLoRA:"]
    load = partial(load_policy, model, four_bit=True, frozen=True)
    for name in methods:
        method = find(name)()
        expert = load() if method.needs_expert else None
        learner = Learner(
            load(),
            OptimConfig(eight_bit=sizes.eight_bit),
            lora=sizes.rank,
            expert=expert,
            checkpointing=sizes.checkpointing,
        )
        peak = measure(learner, method, load_task(task), sizes.rows, sizes.prompts)
        lines.append(f"{name:8} {peak / 2**30:.1f} GiB")
    return "\n".join(lines)
