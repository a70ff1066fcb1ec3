"""The layers of a group: every number per token that an inspection holds or that follows from it,
and what each of them means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from workbench.core import CHANNELS, Inspection, Rollout, Step
from workbench.spans import step_places
from workbench.viz.tokens import CREDIT, Channel

Values = tuple[np.ndarray, ...]  # one [T] array a rollout; NaN where there is no number

# What a layer's numbers are, by the last word of its name: "GRPO credit" is a credit.
SIGNED = {
    "credit": CREDIT,
    "pg": Channel("", "weight in the policy-gradient term", "pushed up", "pushed down"),
    "nll": Channel("", "weight in the imitation term", "imitated", "unlearned"),
    "kl": Channel("", "weight in the distillation term", "pulled to the teacher", "pushed away"),
    "delta": Channel(
        "",
        "log-prob of the teacher minus that of the student, nats",
        "the teacher finds it likelier",
        "less likely",
    ),
    "advantage": Channel(
        "",
        "change of the chance of ending right",
        "a token to write more often",
        "less often",
    ),
    "log-prob": Channel("", "nats", "", "less likely"),
    "ratio": Channel(
        "",
        "importance ratio π / μ of policy and sampler, minus 1",
        "likelier than when sampled",
        "less likely",
    ),
}
SIZES = {
    "mask": Channel("", "1: the token has a weight in some term", "trained on", "", False),
    "entropy": Channel("", "nats", "less sure", "", False),
    "rank": Channel(
        "", "log₂ of the place in the model's list; 0: its first choice", "further down", "", False
    ),
    "borrowed": Channel("", "1: not written by the policy", "borrowed", "", False),
}
OTHER = Channel("", "as given", "positive", "negative")


def channel_of(name: str) -> Channel:
    kind = name.rsplit(" ", 1)[-1]
    return replace(SIGNED.get(kind) or SIZES.get(kind, OTHER), name=name)


def all_layers(inspection: Inspection) -> dict[str, Values]:
    """The layers of the inspection and those that follow from it, by name."""
    rollouts = inspection.group.rollouts
    layers = {**inspection.layers, **_masks(inspection.layers)}
    sampled = tuple(np.array(rollout.logprobs) for rollout in rollouts)
    if inspection.student:
        student = _numbers(inspection, "student", "logprobs")
        if any(inspection.teacher):
            teacher = _numbers(inspection, "teacher", "logprobs")
            layers.setdefault("delta", tuple(map(np.subtract, teacher, student)))
        layers["ratio"] = tuple(np.expm1(now - then) for now, then in zip(student, sampled))
    else:
        layers["log-prob"] = sampled
    for side, prefix in (("student", ""), ("teacher", "teacher ")):
        if any(getattr(inspection, side)):
            layers[f"{prefix}log-prob"] = _numbers(inspection, side, "logprobs")
            layers[f"{prefix}entropy"] = _numbers(inspection, side, "entropy")
            layers[f"{prefix}rank"] = tuple(map(np.log2, _numbers(inspection, side, "rank")))
    if any(rollout.borrowed for rollout in rollouts):
        layers["borrowed"] = tuple(
            (np.arange(len(rollout.completion_ids)) < rollout.borrowed).astype(float)
            for rollout in rollouts
        )
    return layers


def _masks(layers: Mapping[str, Values]) -> dict[str, Values]:
    """For every method whose channels are there, "METHOD mask": 1 where one of them is not 0."""
    masks: dict[str, Values] = {}
    for name, values in layers.items():
        if name.rpartition(" ")[2] in CHANNELS:
            mask = f"{name.rpartition(' ')[0]} mask".strip()
            weighted = [(np.nan_to_num(np.asarray(v, float)) != 0).astype(float) for v in values]
            masks[mask] = tuple(
                map(np.maximum, masks.get(mask, layers.get(mask, weighted)), weighted)
            )
    return masks


def _numbers(inspection: Inspection, side: str, what: str) -> Values:
    """A number per token from the readings of one side; NaN for a rollout that this side did not
    read.
    """
    return tuple(
        np.full(len(rollout.completion_ids), np.nan)
        if reading is None
        else np.asarray(getattr(reading, what), float)
        for rollout, reading in zip(inspection.group.rollouts, getattr(inspection, side))
    )


def step_of(error: Step | None, rollout: Rollout) -> int | None:
    """The written step, as ``tokens`` counts them, in which an error begins."""
    return None if error is None else step_places(rollout.text, [error.start])[0]
