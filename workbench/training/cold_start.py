"""TAPO's cold start (arXiv 2606.18844, section 4.1): SFT on what the policy itself wrote.

Before reinforcement learning it teaches the format:

    rollouts of the policy -> pairs (y-, y+) -> reconstructions that end right -> lessons

A lesson is either the plain x and y_ref ("reflect"), or the synthesis prompt and the whole output,
for half of them ("synthesis").

The paper has 30,000 of the first and 15,000 of the second kind, 3 epochs, learning rate 5e-6. With
``share`` 0 only the first kind is left: the paper's "SFT on the same trajectories".

A reflecting lesson begins with a mistake, so too many of them teach the policy to err first and
mend then. ``eval_avg`` of the run does not show that (it may even rise); ``first_pass`` of
workbench/evaluation/reflection.py does. The organism takes a learning rate of 1e-5 and one epoch
(data/LOG.md).

    workbench cold-start --model MODEL --task arithmetic --out runs/cold
    workbench train tapo --model runs/cold/model --task arithmetic --out runs/cold-tapo

With LoRA it leaves an adapter, from which the next run goes on:

    workbench cold-start --model MODEL --lora 16 --task arithmetic --out runs/cold
    workbench train tapo --model MODEL --adapter runs/cold/adapter --lora 16 --out runs/cold-tapo
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from random import Random

from workbench.core import Message, Problem, Task, Verdict, coordinates, refuse_if
from workbench.methods.sft import SFT
from workbench.model.learner import Learner
from workbench.model.policy import Policy
from workbench.rollouts.reconstructions import Construction, construct, eligible, pairs
from workbench.rollouts.sampling import sample_groups
from workbench.tasks.base import Among
from workbench.tasks.prompts import parse_synthesis
from workbench.training.run import TrainConfig, fit

K = 8  # rollouts of a problem
MOST = 4  # of them that are rewritten


@dataclass(frozen=True)
class Lessons(Among):
    """A task whose training problems are the lessons, for SFT.

    Its held-out problems are those of ``task``, so that a run is measured on them. A lesson is the
    problem with another prompt and one solution; ``meta["lesson"]`` is "reflect" or "synthesis".
    ``generated``: tokens that were written to get them, rollouts and outputs, also those of which
    no lesson came.
    """

    generated: int = 0

    name = "cold start"

    def grade(self, problem: Problem, text: str) -> Verdict:
        """By the task; of a synthesis output, its reconstruction."""
        if problem.meta.get("lesson") != "synthesis":
            return self.task.grade(problem, text)
        parsed = parse_synthesis(text)
        return (
            self.task.grade(problem, parsed[1])
            if parsed
            else Verdict(0.0, False, "It is not one analysis and one reconstruction.")
        )


def lessons(
    policy: Policy,
    task: Task,
    problems: Sequence[Problem],
    seed: int,
    *,
    share: float = 0.5,
    writer: Policy | None = None,
) -> Lessons:
    """Sample 8 rollouts of each problem, rewrite up to 4 wrong ones where one is right, and keep
    what ends right.

    ``share``: how many synthesis lessons for each reflecting one; above 1, reflecting ones are left
    out. ``writer``: who rewrites them; None: the policy itself. Raises WorkbenchError when nothing
    usable was written.
    """
    where = (seed, "cold start")
    groups = sample_groups(policy, task, problems, K, where)
    chosen = []
    for group in groups:
        if eligible(group, 1, 1):
            chosen += pairs(group, MOST, where)
    written = construct(writer or policy, task, chosen, where)
    usable = [m for m in written if m.rollout is not None and m.rollout.verdict.correct]
    refuse_if(
        not usable,
        f"none of {len(chosen)} outputs was a reconstruction that ends right: take more "
        "or other problems, "
        "or let a stronger model write them (--writer)",
    )
    rng = Random(coordinates(seed, "lessons"))
    asked = rng.sample(usable, round(min(share, 1) * len(usable)))
    if share > 1:
        usable = rng.sample(usable, round(len(usable) / share))
    rows = [_lesson(m, m.pair.problem.messages, m.rollout.text, "reflect") for m in usable]
    for m in asked:
        messages = task.synthesis(m.pair.problem, m.pair.wrong.text, m.pair.right.text)
        rows.append(_lesson(m, messages, m.output, "synthesis"))
    sampled = sum(len(r.completion_ids) for group in groups for r in group.rollouts)
    return Lessons(task, tuple(rows), sampled + sum(m.written for m in written))


def _lesson(m: Construction, messages: tuple[Message, ...], text: str, kind: str) -> Problem:
    problem = m.pair.problem
    meta = {**problem.meta, "lesson": kind}
    return replace(problem, messages=messages, solutions=(text,), meta=meta)


@dataclass(frozen=True)
class Charged(SFT):
    """SFT whose every step is charged ``spent`` tokens.

    That is its part of what was generated to get the lessons.
    """

    spent: float = 0.0

    def diagnose(self, groups, credits) -> dict[str, float]:
        return {"generated": self.spent}


def cold_start(
    learner: Learner,
    taught: Lessons,
    out: str | Path,
    *,
    epochs: float,
    plan: TrainConfig,
    config: dict | None = None,
    **how,
) -> Path:
    """SFT on the lessons, drawn at random, for as many steps as ``epochs`` passes take;
    reinforcement learning starts from ``out``/model, or with LoRA from ``out``/adapter. ``how``
    goes to ``fit``.
    """
    steps = ceil(epochs * len(taught.rows) / plan.prompts)
    config = {
        "lessons": len(taught.rows),
        "generated": taught.generated,
        "epochs": epochs,
        **(config or {}),
    }
    return fit(
        Charged(spent=taught.generated / steps),
        learner,
        taught,
        replace(plan, steps=steps),
        out,
        config=config,
        **how,
    )


@dataclass(frozen=True)
class ColdStartConfig:
    """A whole cold start.

    Rollouts of ``problems`` problems, ``share`` synthesis lessons for each reflecting one,
    ``epochs`` passes over them.
    """

    problems: int = 400
    share: float = 0.5
    epochs: float = 1.0

    def __post_init__(self):
        refuse_if(
            self.problems < 1 or self.share < 0 or self.epochs <= 0,
            "a cold start takes problems of 1 or more, share of 0 or more, and epochs above 0",
        )

    def follow(
        self,
        learner: Learner,
        task: Task,
        plan: TrainConfig,
        out: str | Path,
        *,
        writer: Policy | None = None,
        **how,
    ) -> Path:
        """Lessons from the policy as it is now, then SFT on them.

        The number of steps is the lessons', not the plan's.
        """
        problems = task.problems("train", self.problems, coordinates(plan.seed, "cold start"))
        taught = lessons(learner.policy, task, problems, plan.seed, share=self.share, writer=writer)
        return cold_start(learner, taught, out, epochs=self.epochs, plan=plan, **how)
