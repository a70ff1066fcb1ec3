"""TAPO's cold start (arXiv 2606.18844, section 4.1): before reinforcement learning, SFT teaches the format, on what the policy itself wrote.

    rollouts of the policy -> pairs (y-, y+) -> reconstructions that end right -> lessons   plain x -> y_ref
                                                                                            synthesis prompt -> whole output, for half of them

The paper has 30,000 of the first and 15,000 of the second kind, 3 epochs, learning rate 5e-6. With ``share`` 0 only the first kind is left: the
paper's "SFT on the same trajectories".

    python -m workbench.coldstart --model MODEL --task arithmetic --out runs/cold
    workbench train tapo --model runs/cold/model --task arithmetic --out runs/cold-tapo
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from random import Random

from workbench.core import Message, Problem, Step, Task, Verdict, WorkbenchError, coordinates
from workbench.methods.sft import SFT
from workbench.policy import Learner, Optimiser, Policy, load_policy
from workbench.rollout import sample_groups
from workbench.synthesis import construct, eligible, pairs
from workbench.tasks import load_task
from workbench.tasks.prompts import parse_synthesis
from workbench.train import Plan, fit


@dataclass(frozen=True)
class Lessons:
    """A task whose training problems are the lessons, for SFT, and whose held-out problems are those of ``task``, so that a run is measured on them.

    A lesson is the problem with another prompt and one solution; ``meta["lesson"]`` is "reflect" or "synthesis".
    """

    task: Task
    rows: tuple[Problem, ...]

    name = "cold start"

    @property
    def max_new(self) -> int:
        return self.task.max_new

    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        """Lessons at random, all different while there are enough; other splits are the task's."""
        if split != "train":
            return self.task.problems(split, n, seed)
        rng = Random(seed)
        return rng.sample(self.rows, n) if n <= len(self.rows) else rng.choices(self.rows, k=n)

    def grade(self, problem: Problem, text: str) -> Verdict:
        """By the task; of a synthesis output, its reconstruction."""
        if problem.meta.get("lesson") != "synthesis":
            return self.task.grade(problem, text)
        parsed = parse_synthesis(text)
        return self.task.grade(problem, parsed[1]) if parsed else Verdict(0.0, False, "It is not one analysis and one reconstruction.")

    def first_error(self, problem: Problem, text: str) -> Step | None:
        return self.task.first_error(problem, text)

    def reprompt(self, problem: Problem, **parts: str) -> tuple[Message, ...]:
        return self.task.reprompt(problem, **parts)


def lessons(policy: Policy, task: Task, problems: Sequence[Problem], seed: int, *, k: int = 8, most: int = 4, share: float = 0.5,
            writer: Policy | None = None) -> Lessons:
    """Sample ``k`` rollouts of each problem, rewrite up to ``most`` wrong ones where one is right, and keep what ends right.

    ``share``: how many synthesis lessons for each reflecting one. ``writer``: who rewrites them; None: the policy itself. Raises WorkbenchError when
    nothing usable was written.
    """
    groups = sample_groups(policy, task, problems, k, (seed, "cold start"))
    chosen = [pair for group in groups if eligible(group, 1, 1) for pair in pairs(group, most, (seed, "cold start"))]
    made = [m for m in construct(writer or policy, task, chosen, (seed, "cold start")) if m.rollout is not None and m.rollout.verdict.correct]
    if not made:
        raise WorkbenchError(f"none of {len(chosen)} outputs was a reconstruction that ends right: take more or other problems, "
                             "or let a stronger model write them (--writer)")
    rows = [_lesson(m.pair.problem, m.pair.problem.messages, m.rollout.text, "reflect") for m in made]
    made = Random(coordinates(seed, "lessons")).sample(made, round(share * len(made)))
    rows += [_lesson(m.pair.problem, task.synthesis(m.pair.problem, m.pair.wrong.text, m.pair.right.text), m.output, "synthesis") for m in made]
    return Lessons(task, tuple(rows))


def _lesson(problem: Problem, messages: tuple[Message, ...], text: str, kind: str) -> Problem:
    return replace(problem, messages=messages, solutions=(text,), meta={**problem.meta, "lesson": kind})


def cold_start(learner: Learner, made: Lessons, out: str | Path, *, epochs: float = 3, plan: Plan = Plan(), config: dict | None = None) -> Path:
    """SFT on the lessons, drawn at random, for as many steps as ``epochs`` passes take. Reinforcement learning starts from ``out``/model."""
    steps = ceil(epochs * len(made.rows) / plan.prompts)
    return fit(SFT(), learner, made, replace(plan, steps=steps), out, config={"lessons": len(made.rows), "epochs": epochs, **(config or {})})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=400, help="how many to sample rollouts of")
    parser.add_argument("--share", type=float, default=0.5, help="synthesis lessons for each reflecting one")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--lr", type=float, default=Optimiser.lr)
    parser.add_argument("--lora", type=int, default=0)
    parser.add_argument("--writer", help="a model that writes the reconstructions instead")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        _run(args)
    except WorkbenchError as error:
        parser.exit(2, f"workbench: {error}\n")


def _run(args) -> None:
    policy, task = load_policy(args.model), load_task(args.task)
    problems = task.problems("train", args.problems, coordinates(args.seed, "cold start"))
    made = lessons(policy, task, problems, args.seed, share=args.share, writer=load_policy(args.writer) if args.writer else None)
    print(f"{len(made.rows)} lessons from {len(problems)} problems")
    learner = Learner(policy, Optimiser(lr=args.lr), lora=args.lora, seed=args.seed)
    cold_start(learner, made, args.out, epochs=args.epochs, plan=Plan(seed=args.seed), config={"model": args.model, "task": args.task})


if __name__ == "__main__":
    main()
