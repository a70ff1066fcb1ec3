"""Training on corrections, by any method: alone, or beside what the method samples.

Replay(SFT(), groups)              groups that are already there, instead of fresh samples
WithCorrections(TAPO(), groups)    fresh samples, and corrections in the groups of their problems
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from random import Random

from workbench.core import Group, Method, coordinates, refuse_if
from workbench.corrections import buffer
from workbench.model.policy import Policy


@dataclass(frozen=True)
class _SamplesOtherwise(Method):
    """A method as it is, in all but what it samples."""

    method: Method
    groups: tuple[Group, ...]

    samples = property(attrgetter("method.samples"))
    needs_reference = property(attrgetter("method.needs_reference"))
    needs_expert = property(attrgetter("method.needs_expert"))
    distil = property(attrgetter("method.distil"))
    credit = property(attrgetter("method.credit"))
    loss = property(attrgetter("method.loss"))
    diagnose = property(attrgetter("method.diagnose"))

    def for_task(self, task) -> Method:
        return replace(self, method=self.method.for_task(task))


@dataclass(frozen=True)
class Replay(_SamplesOtherwise):
    """A method on recorded groups, such as those of a buffer: ``Replay(SFT(), groups)``.

    A step takes those of its problems, and all of them when it has no problems.
    """

    def sample(self, learner, task, problems, seed) -> list[Group]:
        asked = {problem.id for problem in problems}
        return [group for group in self.groups if not asked or group.problem.id in asked]


@dataclass(frozen=True)
class WithCorrections(_SamplesOtherwise):
    """A method that samples as ever, with corrections in its groups:
    ``WithCorrections(TAPO(), groups)``.

    In each step up to a quarter of the problems (one, of fewer than eight) are replaced by problems
    that have corrections, drawn with the seed. The corrections join the group of their problem
    after the method's own rollouts; they keep their origin and are marked as borrowed. Wrong ones
    stay out where the method would imitate them (``takes_wrong``). Where the method samples nothing
    for a problem (SFT without an expert's solution) its corrections are left out, too.
    """

    @classmethod
    def from_file(cls, method: Method, path: str | Path, policy: Policy) -> WithCorrections:
        """With all corrections of a buffer.

        Raises WorkbenchError when there are none, or when ``policy`` has another tokenizer.
        """
        groups = buffer.groups(buffer.load(path), policy)
        refuse_if(not groups, f"there are no corrections in the buffer {path}")
        return cls(method, tuple(groups))

    def sample(self, learner, task, problems, seed) -> list[Group]:
        corrected = self._drawn(len(problems) // 4 or 1, seed)
        others = [problem for problem in problems if problem.id not in corrected]
        asked = [*(group.problem for group in corrected.values()), *others][: len(problems)]
        groups = self.method.sample(learner, task, asked, seed)
        return [self._joined(group, corrected.get(group.problem.id)) for group in groups]

    def _drawn(self, most: int, seed: tuple[int, ...]) -> dict[str, Group]:
        """At most ``most`` groups of corrections, by the id of their problem."""
        draw = Random(coordinates(*seed, "buffer"))
        chosen = draw.sample(self.groups, min(most, len(self.groups)))
        return {group.problem.id: group for group in chosen}

    def _joined(self, group: Group, corrections: Group | None) -> Group:
        if corrections is None:
            return group
        usable = [r for r in corrections.rollouts if self.method.takes_wrong or r.verdict.correct]
        return replace(group, rollouts=(*group.rollouts, *usable))
