"""Your model, your data, any method: what a person chooses for one run, in one object.

    chosen = choose(model="Qwen/Qwen3-0.6B", data="problems.jsonl", method="sdpo", memory="qlora")
    chosen                                     a panel, whose controls set the very same fields
    task, learner = chosen.task(), chosen.learner()
    fit(chosen.by(), learner, task, chosen.plan(), "runs/mine", config=chosen.config())

What is left out is what suits the machine (``PRESETS``). The notebook that uses it is
notebooks/20_real_model_qlora.ipynb.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, get_args, get_type_hints

from workbench.app import memory
from workbench.core import Group, Method, Problem, Task, WorkbenchError, refuse_if
from workbench.methods import METHODS, find
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.rollouts.sampling import sample_groups
from workbench.tasks import TASKS, load_task
from workbench.tasks.loading import FILES
from workbench.training.plan import TrainConfig
from workbench.viz import display
from workbench.viz.texts import escape

ONE_OF = {"method": tuple(METHODS), "memory": memory.MODES}
LEAST = {"steps": 1, "prompts": 1, "k": 1, "new": 0, "rank": 1, "rows": 1, "seed": 0}
# what the panel and its static copy call them
LABELS = {
    "model": "model",
    "data": "data",
    "teacher": "teacher",
    "method": "method",
    "memory": "memory",
    "steps": "updates",
    "prompts": "questions in an update",
    "k": "answers to each",
    "new": "longest answer (0: the task's)",
    "lr": "learning rate (0: usual)",
    "rank": "rank of the adapter",
    "rows": "answers at a time",
    "checkpointing": "checkpointing",
    "seed": "seed",
}
RATES = {"full": 1e-5, "lora": 2e-4, "qlora": 2e-4}  # where ``lr`` is 0
LETTERS = 3  # of a token, at the least: for a prompt's length before there is a tokenizer
TEMPLATE = 50  # tokens that a chat template adds


@dataclass
class Choices:
    """Every field may be set at any time, here or in the panel; nonsense is refused at once, and
    what shows only when it is loaded (a file, a model) when it is asked for: WorkbenchError,
    in one sentence.

    ``data``: a task by name (``gym:...``, ``math:gsm8k``), a file, a hub id, or rows in memory
    (tasks/rows.py). ``reward``: a function that grades rows, a file or a hub id. ``memory``: all
    weights in 32 bits, an adapter on them as they are, or on 4 bits a weight. ``new`` and ``lr``:
    0 for the task's own, and for what is usual. ``rows``: rollouts in a micro-batch.
    """

    model: str
    data: Any
    method: str = "grpo"
    memory: str = "lora"
    steps: int = 10
    prompts: int = 4
    k: int = 4
    new: int = 0
    lr: float = 0.0
    rank: int = 16
    rows: int = 16
    checkpointing: bool = False
    teacher: str = ""
    seed: int = 0
    reward: Callable[..., Any] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        value = str(value) if isinstance(value, Path) else value
        why_not = _why_not(name, value)
        refuse_if(why_not, why_not)
        super().__setattr__(name, value)
        if "_controls" in vars(self):
            self._controls.refresh()

    # ---- what is chosen, as what ``fit`` takes

    def task(self) -> Task:
        if self._name is None:
            dials = {"max_new": self.new} if self.new else {}
            return load_task(self.data, reward=self.reward, **dials)
        return load_task(self._name)

    @property
    def _name(self) -> str | None:
        """``data`` as the command line has it; None for what is only in memory."""
        data = self.data
        kind = data.partition(":")[0] if isinstance(data, str) else ""
        refuse_if(
            kind in TASKS and self.reward,
            f"the task {kind} has a grader of its own, and a reward is for rows, a file or a hub "
            "id: set reward to None",
        )
        if not isinstance(data, str) or self.reward:
            return None
        plain = kind.endswith(".jsonl")  # a file of problems, with options or without
        if not plain and kind not in TASKS and ("/" in data or FILES.fullmatch(data)):
            data = f"math:{data}"
        return f"{data}{',' if ':' in data else ':'}max_new={self.new}" if self.new else data

    def by(self, name: str = "") -> Method:
        """The method chosen, or another with the same number of answers and the same teacher."""
        kind = find(name or self.method)
        hints = get_type_hints(kind)
        options: dict[str, Any] = {"k": self.k} if kind.samples and "k" in hints else {}
        if "n_neg" in hints:  # as many of k as are of 8 by default
            options |= {"n_pos": max(1, self.k // 4), "n_neg": max(1, self.k // 2)}
        # in a picture OPD may say that nothing has moved; trained on itself it would learn nothing
        may_read_itself = set(get_args(hints.get("teacher"))) == {"expert", "reference"}
        if may_read_itself and not self.teacher and (name or self.method != "opd"):
            options["teacher"] = "reference"
        method = kind(**options)
        refuse_if(
            method.needs_expert and not self.teacher,
            f"{name or self.method} learns from a stronger model: name one as the teacher",
        )
        return method

    def learner(self) -> Learner:
        """The model loaded, and its teacher, ready to be trained."""
        self.by()  # nothing is loaded for what cannot be
        how = {"four_bit": self.memory == "qlora"}
        expert = load_policy(self.teacher, frozen=True, **how) if self.teacher else None
        return Learner(
            load_policy(self.model, frozen=self.memory != "full", **how),
            OptimConfig(lr=self.lr or RATES[self.memory], eight_bit=self.memory == "qlora"),
            lora=0 if self.memory == "full" else self.rank,
            seed=self.seed,
            expert=expert,
            checkpointing=self.checkpointing,
        )

    def plan(self, **more) -> TrainConfig:
        """Without evaluations on the way, unless ``more`` says so."""
        of_step = {name: getattr(self, name) for name in ("steps", "seed", "prompts", "rows")}
        return TrainConfig(**{**of_step, "eval_every": 0, **more})

    def config(self) -> dict:
        """What the run is to say of itself, beside its plan and its method."""
        return {
            "model": self.model,
            "task": self._name or self.shown("data"),
            "lora": 0 if self.memory == "full" else self.rank,
            "four_bit": self.memory == "qlora",
            "teacher": self.teacher or None,
        }

    def command(self, out: str) -> str:
        """The same run from the command line; a remark where its data are only in memory."""
        if self._name is None:
            return "# What is in memory, rows or a reward, has no command: write it into a file."
        options = [f"lr={self.lr or RATES[self.memory]:g}", f"prompts={self.prompts}"]
        options += [f"rows={self.rows}", "eval_every=0"]
        method = self.by()
        for name, default in vars(find(self.method)()).items():
            value = getattr(method, name)
            options += [f"{name}={value}"] if value != default else []
        flags = [] if self.memory == "full" else ["--lora", f"{self.rank}"]
        flags += ["--4bit", "--8bit-optimizer"] if self.memory == "qlora" else []
        flags += ["--checkpointing"] if self.checkpointing else []
        flags += ["--teacher", self.teacher] if self.teacher else []
        words = ["workbench", "train", self.method, "--model", self.model, "--task", self._name]
        words += ["--steps", f"{self.steps}", "--seed", f"{self.seed}", "--out", out]
        return shlex.join([*words, *flags, "--set", *options])

    # ---- before and after

    def questions(self, task: Task, n: int = 4) -> list[Problem]:
        """Held-out ones; of the training split where there are too few others."""
        try:
            return task.problems("test", n, self.seed)
        except WorkbenchError:
            return task.problems("train", n, self.seed)

    def answers(self, learner: Learner, task: Task, n: int = 4) -> list[Group]:
        """``k`` to each of ``n`` questions, from the same random numbers whenever it is asked."""
        problems = self.questions(task, n)
        return sample_groups(learner.policy, task, problems, self.k, (self.seed, "answers"))

    def will_it_fit(self, task: Task, *others: str) -> str:
        """A step of the method and of ``others`` on four GPUs and on this machine, in words.

        Raises WorkbenchError where it does not fit here, with what would. Nothing is loaded: the
        peak is predicted from the model's configuration, and a prompt's length from its letters. On
        a CPU, which computes in 32 bits, a step takes more than is predicted.
        """
        net, sizes = memory.skeleton(self.model), self._sizes(task)
        peaks = {mode: memory.predict(net, self.by(), mode, sizes)["peak"] for mode in memory.MODES}
        gib = {mode: peak / 2**30 for mode, peak in peaks.items()}
        place, room = _room()
        what = f"an update of {self.model} by {self.method}"
        smaller = [f"{mode} ({gib[mode]:.1f})" for mode in memory.MODES if gib[mode] <= room]
        refuse_if(
            gib[self.memory] > room,
            f"{what} takes {gib[self.memory]:.1f} GiB by {self.memory}, and {place} has "
            f"{room:.1f}: take {' or '.join(smaller) or 'a smaller model or shorter answers'}",
        )
        table = memory.report(net, [self.method, *others], sizes)
        least = "at least " if place == "this machine" else ""
        return (
            f"{table}\n\nHere: {what} takes {least}{gib[self.memory]:.1f} GiB by {self.memory}, "
            f"and {place} has {room:.1f}."
        )

    def _sizes(self, task: Task) -> memory.StepSizes:
        texts = ["".join(m["content"] for m in p.messages) for p in self.questions(task)]
        return memory.StepSizes(
            prompt=max(map(len, texts)) // LETTERS + TEMPLATE,
            new=task.max_new,
            rows=self.rows,
            prompts=self.prompts,
            rank=self.rank,
            checkpointing=self.checkpointing,
            eight_bit=self.memory == "qlora",
        )

    # ---- shown

    # the controls, which cannot import this file, read them here
    labels: ClassVar = LABELS
    one_of: ClassVar = ONE_OF
    least: ClassVar = LEAST

    def shown(self, name: str) -> str:
        """A choice in words."""
        value = getattr(self, name)
        if isinstance(value, (str, int, float)):
            return str(value)
        return f"{len(value)} rows in memory" if hasattr(value, "__len__") else "rows in memory"

    def __repr__(self) -> str:
        return f"Choices({', '.join(f'{name}={self.shown(name)}' for name in LABELS)})"

    @cached_property
    def _controls(self):
        from workbench.app.chooser import Controls

        return Controls(self)

    @property
    def box(self):
        """The live panel, an ``ipywidgets.VBox``."""
        return self._controls.box

    def _ipython_display_(self) -> None:
        cells = [(label, escape(self.shown(name))) for name, label in LABELS.items()]
        rows = [f"<tr><th>{label}</th><td>{value}</td></tr>" for label, value in cells if value]
        table, twin = f"<table>{''.join(rows)}</table>", display.twin_id()
        display.show(repr(self), table, twin, lambda: self._controls.panel(twin), ImportError)


def _why_not(name: str, value: Any) -> str:
    """What is wrong with a value; "" if nothing is."""
    names = [field.name for field in fields(Choices)]
    if name not in names:
        return f"there is no choice {name!r}; there are {', '.join(names)}"
    whole = isinstance(value, int) and not isinstance(value, bool)
    number = whole or isinstance(value, float)
    if name in ONE_OF and value not in ONE_OF[name]:
        return f"{name} is one of {', '.join(ONE_OF[name])}, not {value!r}"
    if name in LEAST and not (whole and value >= LEAST[name]):
        return f"{name} is a whole number from {LEAST[name]}, not {value!r}"
    if name == "lr" and not (number and 0 <= value < math.inf):
        return f"lr is a number above 0, or 0 for what is usual, not {value!r}"
    if name == "model" and not (isinstance(value, str) and value.strip()):
        return "no model is named: a folder, a GGUF file, a hub id or smollm2"
    if name == "teacher" and not isinstance(value, str):
        return f"teacher is a name, or empty, not {value!r}"
    if name == "checkpointing" and not isinstance(value, bool):
        return f"checkpointing is True or False, not {value!r}"
    if name == "reward" and not (value is None or callable(value)):
        return f"reward is a function, not {value!r}"
    if name == "data" and (value is None or (isinstance(value, str) and not value.strip())):
        return "no data are named: a task, a file, a hub id or rows"
    return ""


def _room() -> tuple[str, float]:
    """Where it would run, and how many GiB are there."""
    import psutil
    import torch

    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        return f"the {device.name} here", device.total_memory / 2**30
    return "this machine", psutil.virtual_memory().total / 2**30


SUMS = "gym:chain_sum,min_terms=2,max_terms=3,min_digits=1,max_digits=1,think=false,max_new=16"
PRESETS = {
    "cpu": Choices("smollm2", SUMS),
    "t4": Choices(
        "Qwen/Qwen2.5-0.5B-Instruct",
        "math:gsm8k,max_new=256",
        memory="qlora",
        steps=30,
        prompts=8,
        k=8,
        rows=8,
        checkpointing=True,
    ),
    "a100": Choices("Qwen/Qwen3-0.6B", "math:gsm8k,max_new=512", steps=60, prompts=16, k=8),
}


def choose(preset: str | None = None, **given: Any) -> Choices:
    """What suits this machine, or that of a ``preset`` ("cpu", "t4" or "a100"), with what is
    ``given`` in its place; None leaves it as it is.

    Raises WorkbenchError, in one sentence, for what cannot be chosen.
    """
    refuse_if(
        preset is not None and preset not in PRESETS,
        f"there is no preset {preset!r}; there are {', '.join(PRESETS)}",
    )
    chosen = replace(PRESETS[preset or _machine()])
    for name, value in given.items():
        if value is not None:
            setattr(chosen, name, value)
    return chosen


def _machine() -> str:
    """The preset of the GPU that is here (30 GiB or more are an A100)."""
    place, room = _room()
    if place == "this machine":
        return "cpu"
    return "a100" if room >= 30 else "t4"
