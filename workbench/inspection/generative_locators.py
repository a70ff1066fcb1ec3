"""Locators that let the policy write: its own diagnosis, and the success rate from every step on.

For the others see workbench/inspection/locators.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import exp
from random import Random
from typing import NamedTuple

from workbench.core import Task, coordinates, refuse_if
from workbench.evaluation.statistics import wilson
from workbench.inspection.locators import Candidate, Case, Finding, best_of_steps
from workbench.model.policy import Policy
from workbench.rollouts.sampling import Sample, generate
from workbench.spans import common_prefix
from workbench.tasks.prompts import parse_synthesis
from workbench.thoughts import said_aloud, spoken


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
        return [
            best_of_steps(self._falls(case, rates), cost)
            for case, (rates, cost) in zip(cases, self.values(cases))
        ]

    @staticmethod
    def _falls(case: Case, rates: Sequence[Rate]) -> list[Candidate]:
        """The steps after which success is rarer, the largest fall first."""
        values = [*(rate.value for rate in rates), 0.0]
        candidates = []
        for step in range(len(rates)):
            fall = values[step] - values[step + 1]
            if fall > 0:
                candidates.append(Candidate(step, case.layout.first_token(step), fall))
        return sorted(candidates, key=lambda candidate: -candidate.score)

    def values(self, cases: Sequence[Case]) -> list[tuple[list[Rate], int]]:
        """For each case the success rate before each of its steps, and the tokens it took."""
        prefixes, prompts, seeds = [], [], []
        for case in cases:
            ids, problem = case.rollout.completion_ids, case.inspection.group.problem
            starts = [case.layout.first_token(step.index) for step in case.layout.steps]
            prefixes.append([ids[:start] for start in starts])
            for prefix in prefixes[-1]:
                where = (self.seed, "value", problem.id, prefix)
                prompts.append(case.rollout.prompt_ids + prefix)
                seeds.append([coordinates(*where, j) for j in range(self.samples)])
        written = iter(generate(self.policy, prompts, seeds, max_new=self.task.max_new))
        results = []
        for case, row in zip(cases, prefixes):
            tails = [next(written) for _ in row]
            cost = sum(len(tail.ids) for samples in tails for tail in samples)
            results.append((list(map(partial(self._rate, case), row, tails)), cost))
        return results

    def _rate(self, case: Case, prefix: tuple[int, ...], tails: Sequence[Sample]) -> Rate:
        right = 0
        for tail in tails:
            text = self.policy.opening(case.rollout.prompt_ids)
            text += self.policy.decode(prefix + tail.ids)
            right += self.task.grade(case.inspection.group.problem, text).correct
        return Rate.of(right, self.samples)


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
        refuse_if(
            not hasattr(self.task, "synthesis"),
            f"the locator {self.name!r} needs a task with a synthesis prompt, and "
            f"{self.task.name} has none",
        )
        prompts: dict[int, tuple[int, ...]] = {}
        seeds = []
        for place, case in enumerate(cases):
            right = [spoken(sibling.text) for sibling in case.siblings()]
            if not right:
                continue
            problem = case.inspection.group.problem
            where = (self.seed, "diagnosis", problem.id, case.index)
            solution = Random(coordinates(*where)).choice(right)
            messages = self.task.synthesis(problem, case.layout.text, solution)
            prompts[place] = self.policy.prompt_ids(messages)
            seeds.append([coordinates(*where, "sample")])
        findings = [Finding()] * len(cases)
        if prompts:
            max_new = 2 * self.task.max_new
            written = generate(self.policy, list(prompts.values()), seeds, max_new=max_new)
            for place, [sample] in zip(prompts, written):
                opening = self.policy.opening(prompts[place])
                findings[place] = self._read(cases[place], sample, opening)
        return findings

    def _read(self, case: Case, sample: Sample, opening: str) -> Finding:
        parsed = parse_synthesis(said_aloud(opening + self.policy.decode(sample.ids)))
        cost = len(sample.ids)
        text = case.layout.text
        copied = text[: common_prefix(text, parsed[1])].rstrip() if parsed else ""
        if not copied:
            return Finding(cost=cost)
        step = case.layout.step_at(len(copied) - 1)
        sure = exp(sum(sample.logprobs) / len(sample.logprobs))
        return Finding((Candidate(step, case.layout.first_token(step), sure),), cost)
