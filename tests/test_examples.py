"""The worked group in data/examples: its hand arithmetic holds together, and the package computes
the same numbers.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from workbench.core import Credit, Group, Problem, Rollout, Scores, Verdict
from workbench.methods.grpo import GRPO
from workbench.model.batch import collate

EXAMPLE = json.loads(
    (Path(__file__).parent.parent / "data" / "examples" / "worked_group.json").read_text()
)


def group() -> Group:
    rollouts = [
        Rollout(
            (1,), tuple(range(1, len(row) + 1)), (0.0,) * len(row), "", Verdict(float(r), r == 1)
        )
        for row, r in zip(EXAMPLE["tokens"], EXAMPLE["rewards"])
    ]
    return Group(Problem("worked", ({"role": "user", "content": "?"},), ""), tuple(rollouts))


def loss(aggregate: str = "token", ratios: bool = True):
    method = GRPO(k=5, aggregate=aggregate, constant=EXAMPLE["constant"], **EXAMPLE["settings"])
    (batch,) = collate(method.credit([group()], None), pad_id=0)
    logp = torch.zeros(batch.mask.shape)
    for i, row in enumerate(EXAMPLE["tokens"]):
        for t, token in enumerate(row):
            logp[i, t] = torch.tensor(token["ratio"] if ratios else 1.0).log()
    logp.requires_grad_(True)
    result = method.loss(
        Scores(logp, torch.zeros_like(logp)), replace(batch, old_logp=torch.zeros_like(logp))
    )
    return result, logp, batch


def flat(name: str) -> torch.Tensor:
    return torch.tensor([token[name] for row in EXAMPLE["tokens"] for token in row])


def test_the_hand_arithmetic_holds_together():
    low, high = 1 - EXAMPLE["settings"]["eps_lo"], 1 + EXAMPLE["settings"]["eps_hi"]
    for row, advantage in zip(EXAMPLE["tokens"], EXAMPLE["advantages"]):
        for token in row:
            assert token["unclipped"] == pytest.approx(token["ratio"] * advantage)
            assert token["clipped"] == pytest.approx(
                min(max(token["ratio"], low), high) * advantage
            )
            assert token["objective"] == min(token["unclipped"], token["clipped"])
            assert token["credit"] == (
                token["unclipped"] if token["objective"] == token["unclipped"] else 0
            )


def test_advantages():
    credits: list[Credit] = GRPO(k=5).credit([group()], None)
    assert [float(c.pg[0]) for c in credits] == pytest.approx(EXAMPLE["advantages"], abs=1e-5)


@pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
def test_loss(aggregate):
    assert loss(aggregate)[0].value.item() == pytest.approx(EXAMPLE["loss"][aggregate], abs=1e-5)


@pytest.mark.parametrize("aggregate", ["token", "sequence"])
def test_loss_of_the_first_update(aggregate):
    assert loss(aggregate, ratios=False)[0].value.item() == pytest.approx(
        EXAMPLE["first_update"]["loss"][aggregate], abs=1e-5
    )


def test_objective_and_credit_of_every_token():
    result, logp, batch = loss()
    count = float(batch.mask.sum())
    assert torch.allclose(-result.per_token[batch.mask] * count, flat("objective"), atol=1e-5)
    assert torch.allclose(result.credit[batch.mask], flat("credit"), atol=1e-5)
    # the credit is the gradient: -dL / d log pi, times the number of tokens
    result.value.backward()
    assert torch.allclose(-logp.grad[batch.mask] * count, flat("credit"), atol=1e-5)
