"""Locators that let the policy write: its own diagnosis, and the success rate from every step on.

For the others see workbench/inspection/locators.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from random import Random
from typing import NamedTuple

from workbench.core import Task, WorkbenchError, coordinates
from workbench.evaluation.statistics import wilson
from workbench.inspection.locators import Candidate, Case, Finding, best_of_steps
from workbench.model.policy import Policy
from workbench.rollouts.sampling import Sample, generate
from workbench.spans import common_prefix
from workbench.tasks.prompts import parse_synthesis


class Rate(NamedTuple):
    """Successes out of samples, with Wilson's 95 % interval."""

    successes: int
    samples: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.successes / self.samples

    @classmethod
    def of(cls, successes: int, samples: int) -> Rate:
        return cls(successes, samples, *wilson(successes, samples))


@dataclass(frozen=True)
class ValueDrop:
    """The step over which the chance of ending right falls most:

    V(before the step) - V(after it). Score: the fall.

    V is the success rate of ``samples`` fresh continuations of the prompt and the tokens before a
    step; after the last step V is 0, because the rollout was wrong. All steps of all rollouts are
    continued in one call. Equal falls: the earlier step.
    """

    policy: Policy
    task: Task
    samples: int = 8
    seed: int = 0
    name: str = "value drop"

    def locate(self, cases: Sequence[Case]) -> list[Finding]:
        found = []
        for case, (rates, cost) in zip(cases, self.values(cases)):
            values = [rate.value for rate in rates] + [0.0]
            falls = [(values[s] - values[s + 1], s) for s in range(len(rates))]
            found.append(
                best_of_steps(
                    (
                        Candidate(s, case.layout.first_token(s), fall)
                        for fall, s in sorted(falls, key=lambda f: -f[0])
                        if fall > 0
                    ),
                    cost,
                )
            )
        return found

    def values(self, cases: Sequence[Case]) -> list[tuple[list[Rate], int]]:
        """For each case, the success rate before each of its steps, and the tokens generated to
        measure them.
        """
        prefixes = [
            [
                case.rollout.completion_ids[: case.layout.first_token(step.index)]
                for step in case.layout.steps
            ]
            for case in cases
        ]
        places = [(case, prefix) for case, row in zip(cases, prefixes) for prefix in row]
        prompts = [case.rollout.prompt_ids + prefix for case, prefix in places]
        seeds = [
            [
                coordinates(self.seed, "value", case.inspection.group.problem.id, prefix, j)
                for j in range(self.samples)
            ]
            for case, prefix in places
        ]
        made = iter(generate(self.policy, prompts, seeds, max_new=self.task.max_new))
        return [
            self._rates(case, [(prefix, next(made)) for prefix in row])
            for case, row in zip(cases, prefixes)
        ]

    def _rates(
        self, case: Case, continued: Sequence[tuple[tuple[int, ...], Sequence[Sample]]]
    ) -> tuple[list[Rate], int]:
        problem = case.inspection.group.problem
        right = [
            sum(
                self.task.grade(problem, self.policy.decode(prefix + s.ids)).correct
                for s in samples
            )
            for prefix, samples in continued
        ]
        return [Rate.of(n, self.samples) for n in right], sum(
            len(s.ids) for _, samples in continued for s in samples
        )


@dataclass(frozen=True)
class OwnDiagnosis:
    """TAPO's synthesis prompt (arXiv 2606.18844, section 3.3.2): the policy reads the question, the
    wrong attempt and a correct sibling, and writes the attempt again up to and including its
    mistake, then the correction. The point is the last step that it copied.

    No answer without a correct sibling, or when the output does not parse or copies nothing. Score:
    the mean probability of a written token.
    """

    policy: Policy
    task: Task
    seed: int = 0
    name: str = "own diagnosis"

    def locate(self, cases: Sequence[Case]) -> list[Finding]:
        if not hasattr(self.task, "synthesis"):
            raise WorkbenchError(
                f"the locator {self.name!r} needs a task with a synthesis prompt, and "
                f"{self.task.name} has none"
            )
        rights = [[sibling.text for sibling in case.siblings()] for case in cases]
        asked = [i for i, texts in enumerate(rights) if texts]
        prompts, seeds = [], []
        for i in asked:
            where = (self.seed, "diagnosis", cases[i].inspection.group.problem.id, cases[i].index)
            right = Random(coordinates(*where)).choice(rights[i])
            prompts.append(
                self.policy.prompt_ids(
                    self.task.synthesis(
                        cases[i].inspection.group.problem, cases[i].layout.text, right
                    )
                )
            )
            seeds.append([coordinates(*where, "sample")])
        written = (
            generate(self.policy, prompts, seeds, max_new=2 * self.task.max_new) if asked else []
        )
        found = dict(zip(asked, written))
        return [
            self._read(case, found[i][0]) if i in found else Finding()
            for i, case in enumerate(cases)
        ]

    def _read(self, case: Case, sample: Sample) -> Finding:
        parsed = parse_synthesis(self.policy.decode(sample.ids))
        copied = (
            case.layout.text[: common_prefix(case.layout.text, parsed[1])].rstrip()
            if parsed
            else ""
        )
        if not copied:
            return Finding(cost=len(sample.ids))
        step = case.layout.step_at(len(copied) - 1)
        sure = exp(sum(sample.logprobs) / len(sample.logprobs))
        return Finding((Candidate(step, case.layout.first_token(step), sure),), len(sample.ids))
