"""Rollouts kept with what was right to tell each token and what every method tells it.

So that they are drawn and scored again without the model: a record of ``workbench credit --keep``
holds them under "kept", a row a problem.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from workbench.core import Group
from workbench.inspection.credit import RealisedCredit
from workbench.inspection.credit_scores import decisive
from workbench.inspection.true_credit import TrueCredit
from workbench.model.policy import Policy
from workbench.records import group_from_dict, group_to_dict

DIGITS = 4
Rows = tuple[np.ndarray, ...]  # [T] numbers for each rollout


def kept_rows(
    truths: Sequence[TrueCredit], policy: Policy, credits: Mapping[str, Sequence[RealisedCredit]]
) -> list[dict]:
    """The rows of a record, with the credit of those methods that credit these very rollouts (and
    not some that they add).
    """
    rows = [_row(truth, policy) for truth in truths]
    written = [_written(truth.group) for truth in truths]
    for name, by_group in credits.items():
        if [_written(credit.group) for credit in by_group] == written:
            for row, credit in zip(rows, by_group):
                row["credit"][name] = _rounded(credit.credit)
    return rows


def _row(truth: TrueCredit, policy: Policy) -> dict:
    ids = {i for rollout in truth.group.rollouts for i in rollout.completion_ids}
    return {
        **group_to_dict(truth.group),
        "words": {str(i): policy.tokenizer.decode([i]) for i in sorted(ids)},
        "truth": _rounded(truth.advantage),
        "errors": _rounded(truth.errors),
        "credit": {},
    }


def _written(group: Group) -> list[tuple[int, ...]]:
    return [rollout.completion_ids for rollout in group.rollouts]


def _rounded(rows: Sequence[np.ndarray]) -> list[list[float]]:
    return [row.astype(float).round(DIGITS).tolist() for row in rows]


# ---- read again


@dataclass(frozen=True)
class KeptGroup:
    """One row: ``credit`` by method, ``decode`` the text of one of its token ids."""

    group: Group
    truth: Rows
    errors: Rows
    credit: Mapping[str, Rows]
    decode: Callable[[int], str]

    @classmethod
    def of(cls, row: Mapping) -> KeptGroup:
        words = {int(i): word for i, word in row["words"].items()}
        credit = {name: _arrays(rows) for name, rows in row["credit"].items()}
        truth, errors = _arrays(row["truth"]), _arrays(row["errors"])
        return cls(group_from_dict(row), truth, errors, credit, words.__getitem__)

    def of_attempt(self, place: int) -> dict[str, tuple[Group, list[np.ndarray]]]:
        """One attempt for ``viz.png.credit_columns``: "the truth" first, then every method."""
        group = replace(self.group, rollouts=(self.group.rollouts[place],))
        rows = {"the truth": self.truth, **self.credit}
        return {name: (group, [of[place]]) for name, of in rows.items()}

    def wrong_turn(self) -> int | None:
        """The first wrong attempt with a token that surely lost much, in a group with a right one.

        The rule by which a picture's attempt is chosen.
        """
        if not any(self.group.rewards > 0):
            return None
        for i, rollout in enumerate(self.group.rollouts):
            lost = decisive(self.truth[i], self.errors[i]) & (self.truth[i] < 0)
            if not rollout.verdict.correct and lost.any():
                return i
        return None


def _arrays(rows: Sequence[Sequence[float | None]]) -> Rows:
    return tuple(np.array(row, float) for row in rows)


def wrong_turns(record: Mapping) -> list[tuple[KeptGroup, int]]:
    """Of each problem that has one the group and the place of its ``wrong_turn``, in order."""
    pairs = []
    for kept in map(KeptGroup.of, record["kept"]):
        place = kept.wrong_turn()
        if place is not None:
            pairs.append((kept, place))
    return pairs
