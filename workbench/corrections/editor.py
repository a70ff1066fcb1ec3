"""The correction editor: one group, and for every correction composed on it what training would
see and what each method would say.

    editor = CorrectionEditor(policy, task, group, {"GRPO": GRPO()})
    draft = editor.draft(editor.compose(source=0, token=10))
    draft.verdict, draft.table    # needs one pass over the correction
    draft.credits                 # needs one for each method over the whole group
    draft.why_not    # one sentence, when it cannot be trained on
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from workbench.core import (
    Credit,
    Group,
    Method,
    Rollout,
    Task,
    TokenStats,
    Verdict,
    WorkbenchError,
    refuse_if,
)
from workbench.corrections.buffer import Correction, append
from workbench.corrections.compose import (
    Composition,
    called,
    compose,
    edit,
    keep_through,
    reconstruct,
    to_rollout,
    wrong_rollout,
)
from workbench.inspection.credit import realised_credit
from workbench.inspection.readings import token_stats
from workbench.methods.tapo import suppression
from workbench.model.batch import collate
from workbench.model.learner import FrozenLearner, Learner
from workbench.model.policy import Policy
from workbench.spans import Spans


def ood_weights(reading: TokenStats) -> np.ndarray:
    """[T] TAPO's weight of each token (``tapo.suppression``): near 1 where the token is what the
    policy would write there, near 0 where it never would.
    """
    logprobs, entropy = torch.from_numpy(reading.logprobs), torch.from_numpy(reading.entropy)
    return suppression(logprobs, entropy).numpy()


@dataclass(frozen=True)
class CorrectionEditor:
    """``learner``: a Learner, or a Policy for one that has not learned yet."""

    learner: Learner | Policy
    task: Task
    group: Group
    methods: Mapping[str, Method] = field(default_factory=dict)

    edit = staticmethod(edit)

    @property
    def policy(self) -> Policy:
        return self.learner if isinstance(self.learner, Policy) else self.learner.policy

    def wrong(self) -> list[int]:
        """The rollouts that can be corrected."""
        return self.group.places(correct=False)

    def compose(
        self, source: int, token: int, *, whole_step: bool = True, **options
    ) -> Composition:
        """``compose`` at a token of a rollout, its step kept whole (so that the mistake is seen and
        taken back) or cut before the token.
        """
        rollout = wrong_rollout(self.group, source)
        keep = keep_through(self.policy, rollout, token) if whole_step else token
        return compose(self.policy, self.group, source, keep, **options)

    def reconstruct(self, source: int, **options) -> Composition:
        """The policy writes it: ``compose.reconstruct``."""
        return reconstruct(self.policy, self.task, self.group, source, **options)

    def draft(self, composition: Composition) -> Draft:
        try:
            return Draft(self, composition, to_rollout(self.policy, self.task, composition))
        except WorkbenchError as error:
            return Draft(self, composition, None, str(error))


@dataclass(frozen=True)
class Draft:
    """A composition and what follows from it.

    ``rollout`` is None, and ``why_not`` says why, when it cannot be trained on.
    """

    desk: CorrectionEditor
    composition: Composition
    rollout: Rollout | None
    why_not: str = ""

    @property
    def verdict(self) -> Verdict | None:
        return self.rollout and self.rollout.verdict

    @cached_property
    def reading(self) -> TokenStats:
        """The policy's reading of the correction under the plain prompt."""
        return token_stats(self.desk.policy, [self._legal.prompt_ids], [self._legal])[0]

    @property
    def group(self) -> Group:
        """The group with the correction as its last rollout."""
        return replace(self.desk.group, rollouts=(*self.desk.group.rollouts, self._legal))

    @cached_property
    def credits(self) -> dict[str, tuple[np.ndarray, ...]]:
        """By method: [T] the credit of each rollout of ``group``, if this is the whole batch."""
        learner = self.desk.learner
        learner = FrozenLearner(learner) if isinstance(learner, Policy) else learner
        with learner.policy.remembering({}):  # each rollout is read once for all methods
            return {
                name: realised_credit(learner, self.group, method.for_task(self.desk.task)).credit
                for name, method in self.desk.methods.items()
            }

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row for every token of prompt and correction, as ``collate`` hands it to training:

        ``trained`` is its mask. Log-prob (nats), entropy and the OOD weight ``w`` are the policy's
        under the plain prompt.
        """
        rollout, policy, reading = self._legal, self.desk.policy, self.reading
        [batch] = collate([Credit.of(rollout)], policy.pad_id)
        ids = batch.input_ids[0].tolist()
        before = np.full(len(rollout.prompt_ids), np.nan)
        table = pd.DataFrame({"token": [policy.tokenizer.decode([i]) for i in ids], "id": ids})
        table["part"] = ["prompt"] * len(before) + self.parts
        table["trained"] = [False] * len(before) + batch.mask[0].tolist()
        table["log-prob"] = np.append(before, reading.logprobs)
        table["entropy"] = np.append(before, reading.entropy)
        table["w"] = np.append(before, ood_weights(reading))
        return table

    @cached_property
    def parts(self) -> list[str]:
        """[T] which part of the composition each completion token belongs to."""
        composition = self.composition
        transition = len(composition.prefix)
        continuation = transition + len(composition.transition)
        names = ("prefix", "transition", "continuation")
        starts = Spans(self._legal, self.desk.policy.decode).starts[:-1]
        return [names[(s >= transition) + (s >= continuation)] for s in starts] + ["end"]

    def save(self, path: str | Path) -> Correction:
        """Append the correction, with where it came from, to a buffer
        (workbench/corrections/buffer.py).
        """
        correction = Correction(self.composition, self._legal, called(self.desk.policy))
        append(path, correction)
        return correction

    @property
    def _legal(self) -> Rollout:
        refuse_if(self.rollout is None, self.why_not)
        return self.rollout
