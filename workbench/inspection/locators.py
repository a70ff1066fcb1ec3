"""Where did it go wrong? Locators of the failure point of a wrong rollout, behind one protocol.

    truth                the task's own checker: the first step that was wrong when written
                         needs a task that knows
    steepest drop        the sharpest fall of Delta from one token to the next
                         needs the self-teacher's reading
    sustained negative   the first token from which Delta stays negative (a CUSUM alarm)
                         needs the self-teacher's reading
    divergence           the first step that the nearest correct sibling does not have
                         needs a correct sibling, no model
    chance               a step drawn uniformly: what every locator has to beat

Two more ask the policy to write (workbench/inspection/generative_locators.py): its own diagnosis,
and the drop of the success rate over the steps. ``locate`` runs locators on a group;
workbench/studies/locator_table.py scores them against the truth.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import NamedTuple, Protocol

import numpy as np

from workbench.core import Group, Inspection, Rollout, coordinates, refuse_if
from workbench.spans import Decode, Spans, common_prefix, shared_steps
from workbench.tasks.verify.equations import equations

_WORDS = re.compile(r"[a-z]{2,} [a-z]{2,}")
BEST = 3  # candidates that a locator names at most


class Candidate(NamedTuple):
    """A possible failure point: a step, the token in it, and a score (larger: more likely; each
    locator has its own unit).
    """

    step: int
    token: int
    score: float


class Finding(NamedTuple):
    """Candidates, best first; none where the locator cannot tell.

    ``cost``: tokens generated to find them. ``note``: what is not known of the locator on this kind
    of text; "" where it was scored on it.
    """

    candidates: tuple[Candidate, ...] = ()
    cost: int = 0
    note: str = ""


@dataclass(frozen=True)
class Case:
    """One rollout of an inspected group, to be located."""

    inspection: Inspection
    index: int
    decode: Decode

    @property
    def rollout(self) -> Rollout:
        return self.inspection.group.rollouts[self.index]

    @cached_property
    def layout(self) -> Spans:
        return Spans(self.rollout, self.decode)

    def siblings(self) -> list[Rollout]:
        """The other rollouts of the group that are correct."""
        return [self.inspection.group.rollouts[i] for i in self._right()]

    def _right(self) -> list[int]:
        right = self.inspection.group.places(correct=True)
        return [i for i in right if i != self.index]

    def sibling_deltas(self) -> list[np.ndarray]:
        """[T] Delta of the other rollouts that are correct, where the teacher read them."""
        deltas = self.inspection.layers["delta"]
        return [deltas[i] for i in self._right() if np.isfinite(deltas[i]).any()]

    def candidate(self, token: int, score: float) -> Candidate:
        return Candidate(self.layout.step_of(token), token, float(score))

    def delta(self, reader: str) -> np.ndarray:
        """[T] Delta, NaN without a teacher."""
        refuse_if(
            "delta" not in self.inspection.layers,
            f"the locator {reader!r} needs the self-teacher's reading: make the "
            "inspection with inspect_group(policy, ...)",
        )
        return self.inspection.layers["delta"][self.index]


class Locator(Protocol):
    name: str

    def locate(self, cases: Sequence[Case]) -> list[Finding]: ...


def locate(
    group: Group | Inspection,
    decode: Decode,
    locators: Iterable[Locator],
    rollouts: Sequence[int] | None = None,
) -> dict[int, dict[str, Finding]]:
    """What each locator finds in each of ``rollouts`` (None: the wrong ones).

    ``decode`` turns ids to text: ``policy.decode``.

    A bare Group, such as a recorded one, serves the locators that need no model; the others say
    what they need (WorkbenchError).
    """
    inspection = Inspection(group, {}) if isinstance(group, Group) else group
    rollouts = inspection.group.places(correct=False) if rollouts is None else rollouts
    cases = [Case(inspection, i, decode) for i in rollouts]
    found: dict[int, dict[str, Finding]] = {i: {} for i in rollouts}
    for locator in locators:
        for i, case, finding in zip(rollouts, cases, locator.locate(cases)):
            note = "" if isinstance(locator, Truth) else scope(case.layout.text)
            found[i][locator.name] = finding._replace(note=note)
    return found


def scope(text: str) -> str:
    """What a reader must know who sees a locator's answer on such a text: locators were scored on
    sums (data/locators.md), and on the stories of one small model (data/words/locators.md).
    """
    if not equations(text):
        return "not validated on text without written equations"
    return "validated on one small model's stories alone" if in_words(text) else ""


class OneByOne:
    """A locator that looks at one rollout at a time, by ``_one``."""

    def locate(self, cases: Sequence[Case]) -> list[Finding]:
        return list(map(self._one, cases))


@dataclass(frozen=True)
class Truth(OneByOne):
    """The task's own checker. Score 1."""

    name: str = "truth"

    def _one(self, case: Case) -> Finding:
        refuse_if(
            not case.inspection.first_errors,
            "the locator 'truth' needs the task's checker: make the inspection with "
            "inspect_group(policy, ...)",
        )
        wrong = case.inspection.first_errors[case.index]
        return (
            Finding()
            if wrong is None
            else Finding((Candidate(*case.layout.place(wrong.start), 1.0),))
        )


@dataclass(frozen=True)
class SteepestDrop(OneByOne):
    """The largest fall Delta_(t-1) - Delta_t (before the first token Delta is 0), the largest of
    each step. Score: the fall in nats.
    """

    name: str = "steepest drop"

    def _one(self, case: Case) -> Finding:
        fall = -np.diff(case.delta(self.name), prepend=0.0)
        return best_of_steps(
            case.candidate(int(t), fall[t]) for t in np.argsort(-fall, kind="stable") if fall[t] > 0
        )


@dataclass(frozen=True)
class SustainedNegative(OneByOne):
    """Page's CUSUM on Delta:

    S_t = max(0, S_(t-1) - Delta_t - drift), an alarm when S reaches ``alarm``. The point is the
    token at which S last left 0 before the first alarm. One unlikely token (a third as likely to
    the teacher) suffices, and so do many slightly unlikely ones. Score: the largest S before it is
    0 again.

    In free text the teacher, who has read other words, disagrees with right answers as well. So
    there the group's right rollouts are the baseline: an alarm is above the median of the highest S
    that each of them reaches.
    """

    drift: float = 0.05  # nats a token that are forgiven
    alarm: float = 1.0  # nats
    name: str = "sustained negative"

    def _one(self, case: Case) -> Finding:
        delta = case.delta(self.name)
        baseline = case.sibling_deltas() if in_words(case.layout.text) else []
        alarm = max(self.alarm, float(np.median([*map(self._highest, baseline)] or [0.0])))
        onset, peak, before = 0, 0.0, 0.0
        for t, total in enumerate(self._sums(delta)):
            if before == 0.0:
                if peak >= alarm:
                    break
                onset, peak = t, 0.0
            peak, before = max(peak, total), total
        return Finding((case.candidate(onset, peak),)) if peak >= alarm else Finding()

    def _highest(self, delta: np.ndarray) -> float:
        return max(self._sums(delta), default=0.0)

    def _sums(self, delta: np.ndarray) -> Iterator[float]:
        """S of each token."""
        total = 0.0
        for value in np.nan_to_num(delta):
            total = max(0.0, total - float(value) - self.drift)
            yield total


@dataclass(frozen=True)
class Divergence(OneByOne):
    """The first step in which the rollout leaves the nearest correct sibling: the one with the most
    leading steps in common.

    Free text leaves it at the first written equation whose result the sibling never has; elsewhere
    steps are the same when they hold the same numbers (without numbers: the same words), and the
    point is the first character in which they differ. Score: steps (results) in common.
    """

    name: str = "divergence"

    def _one(self, case: Case) -> Finding:
        siblings = [Spans(sibling, case.decode) for sibling in case.siblings()]
        text = case.layout.text
        by_results = in_words(text) and equations(text)
        leaves = self._by_results if by_results else self._by_steps
        candidates = [leaves(case, sibling) for sibling in siblings]
        return best_of_steps(sorted(candidates, key=lambda candidate: -candidate.score))

    def _by_results(self, case: Case, sibling: Spans) -> Candidate:
        """Where a result is the sibling's, the way to it is not asked."""
        theirs = {equation.result for equation in equations(sibling.text)}
        text = case.layout.text
        for shared, equation in enumerate(equations(text)):
            if equation.result not in theirs:
                return case.candidate(case.layout.token_at(equation.start), shared)
        # the results are right, so what was made of them is not: the last thing said
        return case.candidate(case.layout.token_at(len(text.rstrip()) - 1), len(equations(text)))

    def _by_steps(self, case: Case, sibling: Spans) -> Candidate:
        layout = case.layout
        shared = shared_steps(layout.lines, sibling.lines)
        if shared == len(layout.steps):
            return case.candidate(len(layout.starts) - 1, shared)
        own = layout.steps[shared]
        same = (
            common_prefix(layout.lines[shared], sibling.lines[shared])
            if shared < len(sibling.steps)
            else 0
        )
        return case.candidate(layout.token_at(min(own.start + same, own.end - 1)), shared)


def in_words(text: str) -> bool:
    """Free text, whose wording says nothing of its reckoning."""
    return bool(_WORDS.search(text))


@dataclass(frozen=True)
class Chance(OneByOne):
    """A step drawn uniformly. Score 0."""

    seed: int = 0
    name: str = "chance"

    def _one(self, case: Case) -> Finding:
        step = Random(
            coordinates(self.seed, "chance", case.inspection.group.problem.id, case.index)
        ).randrange(max(1, len(case.layout.steps)))
        return Finding((Candidate(step, case.layout.first_token(step), 0.0),))


def best_of_steps(candidates: Iterable[Candidate], cost: int = 0) -> Finding:
    """The first candidate of each step, ``BEST`` at most, in the order given."""
    found: dict[int, Candidate] = {}
    for candidate in candidates:
        found.setdefault(candidate.step, candidate)
    return Finding(tuple(found.values())[:BEST], cost)
