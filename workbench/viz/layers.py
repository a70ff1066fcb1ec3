"""The layers of a group: every number per token that an inspection holds or that follows from it,
and what each of them means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from workbench.core import Inspection, Rollout, Step
from workbench.viz import tokens
from workbench.viz.tokens import Channel

PARTS = ("pg", "nll", "kl")
# What a layer's numbers are, by the last word of its name: "GRPO credit" is a credit.
KINDS = {
    "credit": tokens.CREDIT,
    "pg": Channel("", "weight in the policy-gradient term", "pushed up", "pushed down"),
    "nll": Channel("", "weight in the imitation term", "imitated", "unlearned"),
    "kl": Channel("", "weight in the distillation term", "pulled to the teacher", "pushed away"),
    "mask": Channel("", "1: the token has a weight in some term", "trained on", "", False),
    "delta": Channel(
        "",
        "log-prob of the teacher minus that of the student, nats",
        "the teacher finds it likelier",
        "less likely",
    ),
    "log-prob": Channel("", "nats", "", "less likely"),
    "ratio": Channel(
        "",
        "importance ratio π / μ of policy and sampler, minus 1",
        "likelier than when sampled",
        "less likely",
    ),
    "entropy": Channel("", "nats", "less sure", "", False),
    "rank": Channel(
        "", "log₂ of the place in the model's list; 0: its first choice", "further down", "", False
    ),
    "borrowed": Channel("", "1: not written by the policy", "borrowed", "", False),
}
OTHER = Channel("", "as given", "positive", "negative")


def channel_of(name: str) -> Channel:
    return replace(KINDS.get(name.rsplit(" ", 1)[-1], OTHER), name=name)


def all_layers(inspection: Inspection) -> dict[str, tuple[np.ndarray, ...]]:
    """The layers of the inspection and those that follow from it: name -> one [T] array a rollout,
    NaN where there is no number.
    """
    group, found = inspection.group, dict(inspection.layers)
    for name in [name for name in found if name.rsplit(" ", 1)[-1] in PARTS]:
        mask = name.rsplit(" ", 1)[0] + " mask" if " " in name else "mask"
        before = found.get(mask, [np.zeros(len(r.completion_ids)) for r in group.rollouts])
        found[mask] = tuple(
            np.maximum(b, np.nan_to_num(np.asarray(v, float)) != 0)
            for b, v in zip(before, found[name])
        )
    sampled = [np.array(r.logprobs) for r in group.rollouts]
    if inspection.student:
        if any(inspection.teacher):
            delta = zip(
                _read(inspection, "teacher", "logprobs"), _read(inspection, "student", "logprobs")
            )
            found.setdefault("delta", tuple(teacher - student for teacher, student in delta))
        found["ratio"] = tuple(
            np.expm1(now - then)
            for now, then in zip(_read(inspection, "student", "logprobs"), sampled)
        )
    else:
        found["log-prob"] = tuple(sampled)
    for side, prefix in (("student", ""), ("teacher", "teacher ")):
        if any(getattr(inspection, side)):
            found[f"{prefix}log-prob"] = _read(inspection, side, "logprobs")
            found[f"{prefix}entropy"] = _read(inspection, side, "entropy")
            found[f"{prefix}rank"] = tuple(
                np.log2(rank) for rank in _read(inspection, side, "rank")
            )
    if any(r.borrowed for r in group.rollouts):
        found["borrowed"] = tuple(
            (np.arange(len(r.completion_ids)) < r.borrowed).astype(float) for r in group.rollouts
        )
    return found


def _read(inspection: Inspection, side: str, what: str) -> tuple[np.ndarray, ...]:
    """A number per token from the readings of one side; NaN for a rollout that this side did not
    read.
    """
    return tuple(
        np.full(len(rollout.completion_ids), np.nan)
        if reading is None
        else np.asarray(getattr(reading, what), float)
        for rollout, reading in zip(inspection.group.rollouts, getattr(inspection, side))
    )


def step_of(error: Step | None, rollout: Rollout, row: Sequence[tokens.Token]) -> int | None:
    """The line, as ``heat.tokens`` counts them, in which a step begins.

    By line breaks: the pieces of a token may not add up to the text.
    """
    if error is None:
        return None
    breaks, before = rollout.text.count("\n", 0, error.start), 0
    for token in row:
        if before >= breaks:
            return token.step
        before += token.text.count("\n")
    return row[-1].step
