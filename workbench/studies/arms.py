"""The arms of the study: what is run, on which task, from which model, how often.

An arm is what one would write about it in a paper: a method with its options, or two in turn. The
plan that they follow, and why each of them is there, is data/study/PLAN.md. All arms of a task
start from the same checkpoint and see the same problems in the same steps (but those with a larger
step: ``prompts=64``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

TASK = "arithmetic:largest=26"  # measured before the plan: data/study/dial.json
HARDER = "arithmetic:largest=34"
TURNED = f"{TASK},style=turned"  # expert solutions in a style that the organism does not write
TEACHER = "data/organism/teacher"
STRONG_TEACHER = "data/organism/teacher-26"  # the same, trained on TASK, too
TEACHERS = ("teacher", "teacher-26")  # their names as models, measured unaided
# what the organism could do before, and may forget
READING = "arithmetic:largest=99,shown=solution"


class Stage(NamedTuple):
    """One training of an arm.

    ``method``: the name of a file in workbench/methods, or a method's own dataclass. ``options``:
    key=value, of the method, the optimiser or the plan. ``share``: times the updates of a run.
    "coldstart" is a ColdStartConfig: it has steps of its own.
    """

    method: str | type
    options: tuple[str, ...] = ()
    share: float = 1.0


@dataclass(frozen=True)
class Arm:
    """One line of the study. Without stages: the model as it is.

    ``many``: also measured with many samples a problem, for pass@32. ``tuned``: at its method's own
    learning rate, not at the common one.
    """

    name: str
    stages: tuple[Stage, ...] = ()
    task: str = TASK
    model: str = "3m"
    teacher: str = ""
    seeds: int = 10
    many: bool = False
    tuned: bool = False

    def cell(self, seed: int) -> str:
        return f"{self.name}-{self.model}-seed{seed}"


def _arm(name: str, method: str = "", *options: str, **more) -> Arm:
    """Of one stage, whose method has the arm's name if no other is named."""
    return Arm(name, (Stage(method or name, options),), **more)


# as many solutions, or rollouts of one a problem, as the other arms have rollouts in a step
WIDE = "prompts=64"
_GRPO = _arm("grpo")
_SDPO = _arm("sdpo")
PAPER = ("scale=none", "eps_hi=0.28")  # SDPO's baseline
_TAUGHT = {"teacher": TEACHER, "many": True}
_STRONGLY_TAUGHT = {"teacher": STRONG_TEACHER, "many": True}
_PROGRAMS = {"task": "programs", "model": "programmer", "seeds": 5}
# The most lessons with which first-pass accuracy stays at 80 % of the base's (data/LOG.md).
COLD_START = Stage("coldstart", ("problems=200", "epochs=1", "prompts=16", "lr=1e-5"))
# 800 problems x 8: as many rollouts as 100 updates have
LESSONS = Stage("coldstart", ("problems=800", "share=0", "epochs=1", "prompts=16"))

# In the order in which they run; those of a block seed by seed.
BLOCKS: dict[str, tuple[Arm, ...]] = {
    "1a": (
        Arm("base", many=True),
        _GRPO,
        _arm("grpo-paper", "grpo", *PAPER),
        _SDPO,
    ),
    "1b": (_arm("trapo"),),
    "1c": (
        _arm("scope", **_TAUGHT),
        _arm("opd-1", "opd", "k=1", WIDE, **_TAUGHT),
        Arm("base", model="teacher", many=True),
    ),
    "1d": (
        Arm("grpo-cold", (COLD_START, Stage("grpo"))),
        Arm("tapo-cold", (COLD_START, Stage("tapo"))),
    ),
    "2": (
        _arm("luffy"),
        _arm("sft", "sft", WIDE),
        Arm("sft-then-rl", (Stage("sft", (WIDE,), 1 / 3), Stage("grpo", (), 2 / 3))),
    ),
    # planned later than the others, and to run before them
    "11": (
        Arm("base", model="teacher-26", many=True),
        _arm("scope-strong", "scope", **_STRONGLY_TAUGHT),
        _arm("opd-1-strong", "opd", "k=1", WIDE, **_STRONGLY_TAUGHT),
    ),
    "3": (
        _arm("scope-tuned", "scope", **_TAUGHT, tuned=True),
        _arm("opd-1-tuned", "opd", "k=1", WIDE, **_TAUGHT, tuned=True),
    ),
    "4": (
        _arm("sdpo-token", "sdpo", "form=token"),
        _arm("scope-uniform", "scope", "correct=uniform", "wrong=uniform", teacher=TEACHER),
        _arm("trapo-sft", "trapo", "prefix=sft"),
        Arm("tapo-lessons", (COLD_START, LESSONS)),
    ),
    "5": (
        Arm("sdpo", (Stage("sdpo", (), 3.0),), model="1m", seeds=5),
        Arm("sdpo-live", (Stage("sdpo", ("teacher=live",), 3.0),), model="1m", seeds=5),
    ),
    # if hours are left
    "6": (
        Arm("grpo-paper", (Stage("grpo", PAPER, 0.6),), **_PROGRAMS),
        Arm("sdpo-rich", (Stage("sdpo", ("a=1", "top_k=20", "ema=0.01"), 0.6),), **_PROGRAMS),
    ),
    "7": (_arm("grpo-34", "grpo", task=HARDER), _arm("trapo-34", "trapo", task=HARDER)),
    "8": (_arm("trapo-turned", "trapo", task=TURNED),),
    "9": (replace(_GRPO, model="0.4m", seeds=5), replace(_SDPO, model="0.4m", seeds=5)),
    "10": (
        _arm("sdpo-frozen", "sdpo", "teacher=frozen"),
        _arm("trapo-none", "trapo", "prefix=none"),
        _arm("trapo-luffy", "trapo", "prefix=luffy"),
    ),
}
GRID = tuple(arm for arms in BLOCKS.values() for arm in arms)
QUICK = (Arm("base"), _GRPO, _SDPO)


def _teacher_of(method: str) -> str:
    return TEACHER if method in ("scope", "opd") else ""


# Does true credit predict what a method gains? One rate for all, and no test of it before
# data/true_credit/prediction.md was written.
_TRUTH = {
    "grpo": ("grpo",),
    "scope": ("scope",),
    "opd": ("opd", "k=8"),
    "sdpo": ("sdpo",),
    "sdpo-reverse": ("sdpo", "a=1"),
    "sdpo-forward": ("sdpo", "a=0"),
    "sdpo-token": ("sdpo", "form=token"),
    "srpo": ("sdpo", "srpo=true"),
    "sc-sdpo": ("sdpo", "by_pass_rate=true"),
    "antisd": ("sdpo", "form=token", "ascend=true"),
    "rosd": ("sdpo", "a=1", "onset=true"),
    "rlsd": ("rlsd",),
    "rlcsd": ("rlcsd",),
    "rlrt": ("rlrt",),
    "cast": ("cast",),
    "credit": ("credit",),
}
TRUTH = tuple(
    _arm(
        f"truth-{name}",
        method,
        "lr=1e-4",
        *options,
        task="arithmetic",
        teacher=_teacher_of(method),
        seeds=3,
    )
    for name, (method, *options) in _TRUTH.items()
)
