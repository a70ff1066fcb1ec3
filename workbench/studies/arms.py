"""The arms of the comparison: what is run, on which task, from which model, how often.

An arm is what one would write about it in a paper: a method with its options, or two in turn. All
arms of a task start from the same checkpoint and see the same problems in the same steps (but those
with a larger step: ``prompts=128``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

TEACHER = "data/organism/teacher"
PROGRAMMER_TEACHER = "data/organism/programmer-teacher"
# what the organism could do before, and may forget
READING = "arithmetic:largest=99,shown=solution"
TURNED = "arithmetic:style=turned"  # expert solutions in a style that the organism does not write
# numbers that the 3m rarely gets right: three groups of four are all wrong at the start
HARD = "arithmetic:largest=40,style=turned"
# the same problems, solved in the style that the organism writes itself
HARD_OWN = "arithmetic:largest=40"


class Stage(NamedTuple):
    """One training of an arm.

    ``method``: the name of a file in workbench/methods, or a method's own dataclass. ``options``:
    key=value, of the method, the optimiser or the plan. ``share``: of the arm's steps. "coldstart"
    is a ColdStartConfig: it has steps of its own, which the record numbers below 0.
    """

    method: str | type
    options: tuple[str, ...] = ()
    share: float = 1.0


@dataclass(frozen=True)
class Arm:
    """One line of the comparison. Without stages: the model as it is."""

    name: str
    stages: tuple[Stage, ...] = ()
    task: str = "arithmetic"
    model: str = "3m"
    teacher: str = ""
    seeds: int = 3

    def cell(self, seed: int) -> str:
        return f"{self.name}-{self.model}-seed{seed}"


def _arm(name: str, method: str = "", *options: str, **more) -> Arm:
    """Of one stage, whose method has the arm's name if no other is named."""
    return Arm(name, (Stage(method or name, options),), **more)


def _teacher_of(method: str) -> str:
    return TEACHER if method in ("scope", "opd", "kd") else ""


_ALONE = (
    Arm("base"),
    _arm("grpo"),
    _arm("grpo-tokens", "grpo", "k=9"),  # as many tokens as TAPO writes: 1.12 times those of k=8
    _arm("sdpo"),
    _arm("tapo"),
)
_TAUGHT = (
    _arm("scope", teacher=TEACHER),
    _arm("opd", "opd", "k=8", teacher=TEACHER),
    _arm("opd-1", "opd", "k=1", teacher=TEACHER),
    _arm("kd", "kd", "k=8", teacher=TEACHER),
)
SFT = ("prompts=128",)  # as many solutions in a step as the others have rollouts
_SHOWN = (
    _arm("luffy", task=TURNED),
    _arm("sft", "sft", *SFT, task=TURNED),
    Arm("sft-then-rl", (Stage("sft", SFT, 1 / 3), Stage("grpo", (), 2 / 3)), task=TURNED),
)
_ORDER = (*_ALONE, _arm("trapo", task=TURNED), *_TAUGHT, *_SHOWN, _arm("srpo", "sdpo", "srpo=true"))
METHODS = tuple(replace(arm, seeds=5) for arm in _ORDER)

_SDPO = (
    _arm("sdpo-frozen", "sdpo", "teacher=frozen"),
    _arm("sdpo-mixed", "sdpo", "teacher=mixed"),
    _arm("sdpo-live", "sdpo", "teacher=live"),
    _arm("sdpo-token", "sdpo", "form=token"),
    _arm("sdpo-sequence", "sdpo", "form=sequence"),
)
_SCOPE = (
    _arm("scope-uniform", "scope", "correct=uniform", "wrong=uniform", teacher=TEACHER),
    _arm("scope-correct-only", "scope", "wrong=off", teacher=TEACHER),
    _arm("scope-wrong-only", "scope", "correct=off", teacher=TEACHER),
    _arm("scope-low", "scope", "correct=low", teacher=TEACHER),
)
_TRAPO = (
    _arm("trapo-none", "trapo", "prefix=none", task=TURNED),
    _arm("trapo-sft", "trapo", "prefix=sft", task=TURNED),
    _arm("trapo-luffy", "trapo", "prefix=luffy", task=TURNED),
)
_TAPO = (
    _arm("tapo-no-reference", "tapo", "reference=false"),
    _arm("tapo-no-dae", "tapo", "dae=false"),
    _arm("tapo-no-ots", "tapo", "ots=false"),
    _arm("tapo-no-negatives", "tapo", "negatives=false"),
    _arm("tapo-no-prefix", "tapo", "prefix=none"),
    _arm("tapo-sft", "tapo", "sft=true"),
)
ABLATIONS = (*_SDPO, *_SCOPE, *_TRAPO, *_TAPO)
# The most lessons with which first-pass accuracy stays at 80 % of the base's (data/LOG.md).
COLD_START = Stage("coldstart", ("problems=200", "epochs=1", "lr=1e-5"))
COLD = (
    Arm("tapo-cold", (COLD_START, Stage("tapo")), seeds=5),
    Arm("grpo-cold", (COLD_START, Stage("grpo")), seeds=5),
)
HARDER = (
    Arm("hard-base", task=HARD),
    _arm("hard-grpo", "grpo", task=HARD),
    _arm("hard-trapo", "trapo", task=HARD),
    _arm("hard-luffy", "luffy", task=HARD),
    _arm("hard-trapo-own", "trapo", task=HARD_OWN),
)
# The self-teacher reads another right program, or (where there is none, or always) what the sandbox
# said of the attempt.
PROGRAMS = tuple(
    replace(arm, task="programs", model="programmer")
    for arm in (
        Arm("base"),
        _arm("grpo"),
        _arm("sdpo"),
        _arm("sdpo-feedback", "sdpo", "demonstration=none"),
        _arm("sdpo-both", "sdpo", "feedback=always"),
        _arm("scope", teacher=PROGRAMMER_TEACHER),
    )
)
_SIZED = tuple(arm for arm in METHODS if arm.name in ("base", "grpo", "sdpo", "tapo"))
SIZES = tuple(replace(arm, model=model, seeds=3) for model in ("1m", "0.4m") for arm in _SIZED)
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
    _arm(f"truth-{name}", method, "lr=1e-4", *options, teacher=_teacher_of(method))
    for name, (method, *options) in _TRUTH.items()
)
GRID = (*METHODS, *ABLATIONS, *COLD, *HARDER, *PROGRAMS, *SIZES)
QUICK = tuple(arm for arm in METHODS if arm.name in ("base", "grpo", "sdpo"))
