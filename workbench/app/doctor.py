"""What is installed, what the machine has, and which parts of the workbench will work here."""

from __future__ import annotations

import platform
import shutil
from importlib import metadata, util

PARTS = (  # what a user can do, the packages that it needs, and whether it needs CUDA
    ("train and evaluate", ("torch", "transformers", "safetensors"), False),
    ("LoRA adapters", ("peft",), False),
    ("data sets and their graders", ("datasets", "math-verify", "reasoning-gym"), False),
    ("notebooks", ("jupyterlab", "ipywidgets", "matplotlib", "pandas"), False),
    ("notebook tests", ("pytest", "nbmake"), False),
    ("4-bit and 8-bit weights", ("bitsandbytes",), False),
    ("TensorBoard", ("tensorboard",), False),
    ("Unsloth", ("unsloth",), True),
    ("generation by vLLM", ("vllm",), True),
)


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def line() -> str:
    """Where this runs, in one line."""
    import torch

    place = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return (
        f"Python {platform.python_version()}, "
        + ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "peft"))
        + f", {place}"
    )


def report() -> str:
    lines = [
        f"python        {platform.python_version()} on {platform.system()} {platform.machine()}"
    ]
    cuda = False
    if util.find_spec("torch"):
        import torch

        cuda = torch.cuda.is_available()
        lines.append(f"torch         {torch.__version__}, {torch.get_num_threads()} CPU threads")
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        lines += [f"GPU           {d.name}, {d.total_memory / 2**30:.0f} GiB" for d in devices] or [
            "GPU           none: everything runs on the CPU"
        ]
    lines.append(
        f"C++ compiler  {shutil.which('g++') or shutil.which('clang++') or 'none'} (only "
        "rebuilding the organism uses one, by torch.compile)"
    )
    lines.append("")
    for part, packages, needs_cuda in PARTS:
        missing = [p for p in packages if version(p) is None]
        have = ", ".join(f"{p} {version(p)}" for p in packages if version(p))
        if missing:
            lines.append(f"[ no ] {part}: not installed: {', '.join(missing)}")
        elif needs_cuda and not cuda:
            lines.append(f"[ no ] {part}: {have}, but there is no CUDA GPU")
        else:
            lines.append(f"[ ok ] {part}: {have}")
    from workbench.paths import ORGANISM

    found = (
        sorted(
            folder.name for folder in ORGANISM.glob("[!.]*") if (folder / "config.json").is_file()
        )
        if ORGANISM.is_dir()
        else []
    )
    lines.append(
        f"[ ok ] embedded models: {', '.join(found)}"
        if found
        else "[ no ] embedded models: none here; make organism builds them"
    )
    return "\n".join(lines)


def measured(model: str, methods: list[type], task: str, args) -> str:
    """One real step of each method by QLoRA on the GPU that is here, as ``args`` of the command
    line say.
    """
    import torch

    from workbench.app.memory import measure
    from workbench.core import WorkbenchError
    from workbench.model.learner import Learner, OptimConfig
    from workbench.model.loading import load_policy
    from workbench.tasks import load_task

    if not torch.cuda.is_available():
        raise WorkbenchError("there is no GPU here to measure on")
    lines = [f"\nMeasured on {torch.cuda.get_device_name()} with {task}, by QLoRA:"]
    for method in methods:
        expert = (
            load_policy(model, four_bit=True, frozen=True)
            if getattr(method(), "teacher", "") == "expert"
            else None
        )
        learner = Learner(
            load_policy(model, four_bit=True, frozen=True),
            OptimConfig(eight_bit=args.eight_bit),
            lora=args.lora,
            expert=expert,
            checkpointing=args.checkpointing,
        )
        lines.append(
            f"{method.__name__.lower():8} "
            f"{measure(learner, method(), load_task(task), args.rows, args.prompts) / 2**30:.1f} GiB"
        )
    return "\n".join(lines)
