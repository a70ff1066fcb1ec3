"""Will self-distillation work here? The teacher's lead, before anything is trained.

    lead    = accuracy of the policy that reads the hint - accuracy of the policy that does not
    control = the same with a wrong attempt in the hint's place, presented as if it were right

The gain of self-distillation was found to be linear in the lead (arXiv 2605.30070, by its
abstract). The hint is what SDPO's teacher of the problem's first attempt reads: another right
attempt, else the feedback on this one. A problem with neither has no teacher and is left out of
both accuracies. A lead that the control shares is not about what the hint says.

    workbench lead --model data/organism/3m --task arithmetic
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from workbench.core import Group, Problem, Task, coordinates, refuse_if
from workbench.evaluation.statistics import bootstrap
from workbench.methods.sdpo import SDPO, teacher_prompt
from workbench.model.loading import load_policy
from workbench.model.policy import Policy
from workbench.options import add_flags
from workbench.paths import ORGANISM
from workbench.records import dumps, refuse_unwritable, write_atomic
from workbench.rollouts.sampling import generate, sample_groups
from workbench.tasks import load_task


def measure(
    policy: Policy, task: Task, problems: Sequence[Problem], k: int = 8, seed: int = 0
) -> dict[str, object]:
    """Shares of right answers, and their differences with 95 % intervals over problems.

    ``plain`` and ``hinted`` are of the problems that have a hint (``hints``: their share);
    ``control`` is of those that also have a wrong attempt to show. The attempts in the hints are
    others than those that are counted.

    Raises WorkbenchError where no problem has a hint.
    """
    shown = sample_groups(policy, task, problems, k, (seed, "lead", "shown"))
    counted = sample_groups(policy, task, problems, k, (seed, "lead", "plain"))
    plain = [float(np.mean([r.verdict.correct for r in group.rollouts])) for group in counted]
    hinted = _accuracies(
        policy, task, shown, [SDPO().shown(group, 0) for group in shown], k, (seed, "hint")
    )
    wrong = [_wrong_hint(group) for group in shown]
    misled = _accuracies(policy, task, shown, wrong, k, (seed, "wrong hint"))
    pairs = [(p, h) for p, h in zip(plain, hinted) if h is not None]
    refuse_if(
        not pairs,
        f"{policy.name} has no hint for any of {len(problems)} problems: no attempt was right "
        "and the task gives no feedback, so its self-teacher has nothing to read",
    )
    without, hinted_right = np.array(pairs).T
    controls = [m - p for p, m in zip(plain, misled) if m is not None]
    return {
        "problems": len(problems),
        "hints": len(pairs) / len(problems),
        "plain": float(without.mean()),
        "hinted": float(hinted_right.mean()),
        "lead": _with_interval(hinted_right - without),
        "control": _with_interval(controls) if controls else None,
    }


def _with_interval(values: Sequence[float]) -> list[float]:
    return [float(np.mean(values)), *bootstrap(values)]


def _wrong_hint(group: Group) -> tuple[str, str]:
    """As SDPO's teacher of the first attempt is shown a right one: (demonstration, feedback)."""
    wrong = [r.text for r in group.rollouts[1:] if not r.verdict.correct]
    return (wrong[0] if wrong else "", "")


def _accuracies(
    policy: Policy,
    task: Task,
    groups: Sequence[Group],
    hints: Sequence[tuple[str, str]],
    k: int,
    where: tuple[int | str, ...],
) -> list[float | None]:
    """Share of right answers after each hint; None where there is nothing to show."""
    prompts = {}
    for i, (group, hint) in enumerate(zip(groups, hints)):
        prompt = teacher_prompt(policy, group.problem, group.rollouts[0], *hint)
        if prompt is not None and len(prompt) + task.max_new <= policy.context:
            prompts[i] = prompt
    ids = {i: groups[i].problem.id for i in prompts}
    seeds = [[coordinates(*where, ids[i], j) for j in range(k)] for i in prompts]
    written = generate(policy, list(prompts.values()), seeds, max_new=task.max_new)
    accuracies: list[float | None] = [None] * len(groups)
    for i, samples in zip(prompts, written):
        texts = [policy.decode(sample.ids) for sample in samples]
        right = [task.grade(groups[i].problem, text).correct for text in texts]
        accuracies[i] = float(np.mean(right))
    return accuracies


def summary(record: dict) -> str:
    """The record in words."""
    lead = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*record["lead"])
    control = "none: no attempt was wrong"
    if record["control"]:
        control = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*record["control"])
    return (
        f"right without a hint {record['plain']:.3f}, with it {record['hinted']:.3f} "
        f"({record['hints']:.0%} of {record['problems']} problems have one)\n"
        f"lead {lead}\nwith a wrong hint {control}"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", type=Path, help="a peft adapter to put on the model")
    parser.add_argument("--out", type=Path, help="a file for the record, as JSON")
    add_flags(
        parser,
        model=str(ORGANISM / "3m"),
        task="arithmetic",
        split="validation",
        problems=100,
        k=(8, "answers of each problem, with and without the hint"),
        seed=0,
    )


def main(args: argparse.Namespace) -> None:
    if args.out:
        refuse_unwritable(args.out)
    policy = load_policy(args.model, adapter=args.adapter, frozen=True)
    task = load_task(args.task)
    problems = task.problems(args.split, args.problems, args.seed)
    what = {"model": Path(args.model).name, "task": args.task, "split": args.split}
    measured = measure(policy, task, problems, args.k, args.seed)
    if args.adapter:
        what["adapter"] = args.adapter.name
    record = {"schema_version": 1, **what, "k": args.k, "seed": args.seed, **measured}
    if args.out:
        write_atomic(args.out, dumps(record) + "\n")
    print(summary(record))
