"""What the browser gets of a group: plain lists and numbers as JSON, all text already visible.

``view.js`` draws them. Texts are named by their place in one list that all groups share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from workbench.core import Inspection, Rollout, TokenStats
from workbench.viz.texts import prose
from workbench.viz.tokens import Layer, Token

Place = Callable[[Any], int]  # where a text is in the list of texts


def group_data(
    inspection: Inspection,
    rows: Sequence[Sequence[Token]],
    layers: Sequence[Layer],
    wrong: Sequence[int | None],
    place: Callable[[str], int],
    likeliest: Callable[[int], int],
) -> dict:
    """One group: its question, its layers and its rollouts.

    ``rows`` are the tokens of each rollout, ``wrong`` the first wrong step of each. ``place`` finds
    a shown text in the list of texts, ``likeliest`` that of a token id.
    """
    rollouts = []
    for i, (rollout, row) in enumerate(zip(inspection.group.rollouts, rows)):
        sides = {}
        for side in ("student", "teacher"):
            readings = getattr(inspection, side)
            if readings and readings[i] is not None:
                sides[side] = _side(readings[i], likeliest)
        rollouts.append(_rollout(rollout, row, wrong[i], sides, place))
    messages = inspection.group.problem.messages
    return {
        "messages": [[message["role"], prose(message["content"])] for message in messages],
        "layers": list(map(_layer, layers)),
        "rollouts": rollouts,
    }


def _rollout(
    rollout: Rollout, row: Sequence[Token], wrong: int | None, sides: dict, place: Place
) -> dict:
    _, starts = np.unique([token.step for token in row], return_index=True)
    return {
        "reward": rollout.verdict.reward if rollout.verdict.known else None,
        "correct": rollout.verdict.correct,
        "origin": rollout.origin,
        "borrowed": rollout.borrowed,
        "finished": rollout.finished,
        "wrong": wrong,
        "ids": [token.id for token in row],
        "texts": [place(token.shown) for token in row],
        "sides": sides,
        "starts": starts.tolist(),  # the first token of each step
    }


def _side(reading: TokenStats, place: Place) -> dict:
    """What one side says of every token, and the tokens it finds likeliest there."""
    top = [[place(int(token)) for token in ids] for ids in reading.top_ids]
    return {
        "logprob": _short(reading.logprobs),
        "entropy": _short(reading.entropy),
        "rank": np.asarray(reading.rank).astype(int).tolist(),
        "top": top,
        "top_ids": np.asarray(reading.top_ids).tolist(),
        "top_logprob": list(map(_short, reading.top_logprobs)),
    }


def _layer(layer: Layer) -> dict:
    channel = layer.channel
    sizes = np.abs(np.concatenate(layer.values, dtype=float))
    largest = max(sizes[np.isfinite(sizes)], default=0) or 1
    robust, most = _short((layer.limit, largest))
    return {
        "name": channel.name,
        "unit": channel.unit,
        "up": channel.up,
        "down": channel.down,
        "signed": channel.signed,
        "robust": robust,
        "max": most,
        "values": list(map(_short, layer.values)),
    }


def _short(numbers: Iterable[float]) -> list[float | None]:
    """Four digits: what a reader sees, in a third of the bytes. JSON has no NaN."""
    return [float(f"{number:.4g}") if math.isfinite(number) else None for number in numbers]
