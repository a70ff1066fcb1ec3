"""Readings against the model's own logits; what the self-teacher is shown; inspections that leave
no trace in the learner.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import toys

from workbench import methods
from workbench.core import Group, Problem, Rollout, Verdict, WorkbenchError
from workbench.inspection import readings
from workbench.inspection.credit import realised_credit
from workbench.inspection.readings import inspect_group, token_stats
from workbench.methods import find, sdpo
from workbench.methods.grpo import GRPO
from workbench.methods.sdpo import SDPO
from workbench.methods.sft import SFT
from workbench.model import batch
from workbench.model import scores as ops
from workbench.model.batch import collate, score
from workbench.model.learner import Learner, OptimConfig
from workbench.records import dumps, group_from_dict, group_to_dict
from workbench.tasks.arithmetic import Arithmetic

TASK = Arithmetic(steps=2)
PROBLEM = TASK.problem("47+85-29")
RIGHT = PROBLEM.solutions[0]
WRONG = "47+85=122\n122-29=93\nAnswer 93"


def written(policy, text: str, problem: Problem = PROBLEM) -> Rollout:
    ids = policy.completion_ids(text)
    return Rollout(
        policy.prompt_ids(problem.messages),
        ids,
        (-1.0,) * len(ids),
        text,
        TASK.grade(problem, text),
    )


def group_of(policy, *texts: str) -> Group:
    return Group(PROBLEM, tuple(written(policy, text) for text in texts))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_reading_is_what_the_model_says(family, monkeypatch):
    policy = tiny.policy(family)
    rollouts = [toys.rollout(n, seed=n) for n in (5, 1, 9)]
    # other prompts than they were sampled with, other lengths
    prompts = [(7, 8), (9,), (10, 11, 12, 13)]
    for rows in (32, 2):  # the order of the answers does not depend on the batches
        monkeypatch.setattr(readings, "ROWS", rows)
        for prompt, rollout, reading in zip(
            prompts, rollouts, token_stats(policy, prompts, rollouts, k=4), strict=True
        ):
            ids = torch.tensor([prompt + rollout.completion_ids])
            logits = policy.model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            own = logits.gather(-1, torch.tensor(rollout.completion_ids)[:, None])[:, 0]
            assert reading.prompt_ids == prompt
            np.testing.assert_allclose(reading.logprobs, own, atol=1e-4)
            np.testing.assert_allclose(reading.entropy, -(logits.exp() * logits).sum(-1), atol=1e-4)
            best = logits.topk(4)
            np.testing.assert_array_equal(reading.top_ids, best.indices)
            np.testing.assert_allclose(reading.top_logprobs, best.values, atol=1e-4)
            np.testing.assert_array_equal(
                reading.rank, [1 + int((row > x).sum()) for row, x in zip(logits, own)]
            )


def test_rank_by_hand():
    # logits: rows (3, 2, 1) and (1, 1, 5)
    hidden, head = torch.eye(2), torch.tensor([[3.0, 1.0], [2.0, 1.0], [1.0, 5.0]])
    assert ops.ranks(hidden, head, torch.tensor([1, 2])).tolist() == [2, 1]
    # ties do not count against it
    assert ops.ranks(hidden[1:], head, torch.tensor([0])).tolist() == [2]


def test_nothing_to_read_and_too_much_to_read(tiny_policy):
    assert token_stats(tiny_policy, [], []) == []
    with pytest.raises(WorkbenchError, match="18 tokens, more than the model's context of 16"):
        token_stats(toys.tiny_policy(context=16), [(7,) * 8], [toys.rollout(10)])


def test_a_teacher_that_reads_the_same_prompt_agrees_everywhere(tiny_policy, monkeypatch):
    monkeypatch.setattr(sdpo, "reprompt", lambda problem, **_: problem.messages)
    for delta in inspect_group(
        tiny_policy, group_of(tiny_policy, WRONG, RIGHT, RIGHT), TASK
    ).layers["delta"]:
        np.testing.assert_allclose(delta, 0.0, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"demonstration": "reference"},
        {"feedback": "always"},
        {"demonstration": "none"},
        {"srpo": True},
    ],
    ids=str,
)
def test_the_self_teacher_that_is_drawn_is_the_one_that_is_trained_on(options):
    """The very prompts of SDPO's credits, and its Delta."""
    learner, method = Learner(toys.tiny_policy()), SDPO(form="token", **options)
    for texts in ((WRONG, RIGHT, RIGHT + "\nAnswer 103", "1"), (WRONG, "47"), (WRONG, RIGHT)):
        group = group_of(learner.policy, *texts)
        credits = method.credit([group], learner)
        found = inspect_group(
            learner, group, TASK, {"GRPO": GRPO(), "SDPO": method}, teacher="teacher"
        )
        assert [reading and reading.prompt_ids for reading in found.teacher] == [
            credit.teacher_prompt_ids for credit in credits
        ]
        [batch] = collate(credits, learner.policy.pad_id)
        scores = score(learner, batch, method)
        for i, (credit, delta) in enumerate(zip(credits, found.layers["delta"])):
            if credit.teacher_prompt_ids is None:
                assert np.isnan(delta).all()
            else:
                np.testing.assert_allclose(
                    delta, (scores.teacher - scores.logp)[i, : len(delta)].detach(), atol=1e-5
                )


def test_what_the_self_teacher_is_shown(tiny_policy):
    group = group_of(tiny_policy, WRONG, RIGHT)
    feedback = group.rollouts[0].verdict.feedback

    def shown(group, **options) -> list[str | None]:
        found = inspect_group(tiny_policy, group, TASK, **options)
        return [
            reading and tiny_policy.tokenizer.decode(list(reading.prompt_ids))
            for reading in found.teacher
        ]

    for options in ({}, {"show": ("solution", "feedback")}, {"show": ("solution",)}):
        wrong, right = shown(group, **options)
        # a lone success, and no feedback on it
        assert RIGHT in wrong and feedback not in wrong and right is None
    wrong, right = shown(group, show=("feedback",))
    assert feedback in wrong and RIGHT not in wrong and right is None
    failed = group_of(tiny_policy, WRONG, WRONG)
    assert shown(failed, show=("solution",)) == [None, None] and feedback in shown(failed)[0]
    with pytest.raises(WorkbenchError, match="show takes some of"):
        shown(group, show=("attempt",))


def test_an_inspection_holds_every_layer_and_leaves_no_trace():
    learner = Learner(toys.tiny_policy())
    before = {name: p.clone() for name, p in learner.policy.model.named_parameters()}
    group = group_of(learner.policy, WRONG, RIGHT, RIGHT, RIGHT)
    found = inspect_group(learner, group, TASK, {"GRPO": GRPO(k=4, beta=0.1), "SFT": SFT()}, k=3)
    assert set(found.layers) == {"delta", "GRPO credit", "GRPO pg", "SFT credit", "SFT nll"}
    # By hand: mean 3/4, population standard deviation sqrt(3)/4, so advantages -sqrt(3) and
    # 1/sqrt(3); the reference is the policy, so k3 adds 0.
    for credit, rollout, expected in zip(
        found.layers["GRPO credit"], group.rollouts, (-(3**0.5), 3**-0.5, 3**-0.5, 3**-0.5)
    ):
        np.testing.assert_allclose(
            credit, np.full(len(rollout.completion_ids), expected), atol=1e-5
        )
    assert all((credit == 1).all() for credit in found.layers["SFT credit"])
    assert found.first_errors[0].index == 0 and found.first_errors[1:] == (None, None, None)
    assert found.student[0].top_ids.shape == (len(group.rollouts[0].completion_ids), 3)
    np.testing.assert_allclose(
        found.layers["delta"][0], found.teacher[0].logprobs - found.student[0].logprobs
    )
    assert all(
        p.grad is None and torch.equal(p, before[name])
        for name, p in learner.policy.model.named_parameters()
    )
    assert not learner.optimizer.state


def test_a_policy_stands_for_a_learner_that_has_not_learned(tiny_policy):
    group = group_of(tiny_policy, WRONG, RIGHT)
    methods = {"GRPO": GRPO(k=2, beta=0.5)}  # asks for the reference
    plain = inspect_group(tiny_policy, group, TASK, methods)
    learned = inspect_group(Learner(tiny_policy), group, TASK, methods, teacher="teacher")
    for name in plain.layers:
        for a, b in zip(plain.layers[name], learned.layers[name]):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_rollout_is_read_once_for_all_methods(tiny_policy, monkeypatch):
    """On a model of 135M each method had the whole group read again, which took a minute."""
    read = []
    real = batch._states
    monkeypatch.setattr(batch, "_states", lambda p, rows: read.extend(rows.rows) or real(p, rows))
    group = group_of(tiny_policy, WRONG, RIGHT, WRONG + " ")
    several = {"GRPO": GRPO(k=3, beta=0.5), "SDPO": SDPO(k=3), "SFT": SFT(), "again": SDPO(a=1.0)}
    inspect_group(tiny_policy, group, TASK, several)
    assert len(read) == len(set(read)) == 3 + 2, "as student; with a right one to read, as teacher"
    assert tiny_policy.memory is None
    read.clear()
    inspect_group(tiny_policy, group, TASK)
    assert len(read) == 5, "nothing is kept: the policy may have learned meanwhile"


def test_what_one_set_of_weights_read_is_not_said_of_another():
    """A learner whose policy, reference and teacher have come apart."""
    torch.manual_seed(0)
    learner = Learner(toys.tiny_policy(), OptimConfig(ema=0.5))
    group = group_of(learner.policy, WRONG, RIGHT, WRONG + " ")
    learner.update_teacher()
    with torch.no_grad():
        for p in learner.parameters:
            p.add_(0.5 * torch.randn_like(p))
    learner.update_teacher()
    frozen = SDPO(k=3, teacher="frozen")
    several = {"GRPO": GRPO(k=3, beta=0.5), "ema": SDPO(k=3), "frozen": frozen, "SFT": SFT()}
    found = inspect_group(learner, group, TASK, several)
    for name, method in several.items():
        alone = realised_credit(learner, group, method.for_task(TASK)).credit
        for a, b in zip(found.layers[f"{name} credit"], alone):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    pairs = zip(found.layers["ema credit"], found.layers["frozen credit"])
    assert any(np.abs(a - b).max() > 1e-3 for a, b in pairs), "the teachers differ"


def recorded(policy) -> dict[str, Group]:
    """Groups as runs leave them: own rollouts; one prefixed, one by an expert and a correction
    beside them; expert solutions only.
    """
    own = group_of(policy, WRONG, RIGHT, WRONG + " ", RIGHT)
    a, b, c = own.rollouts[1:]
    foreign = [
        replace(r, origin=origin, borrowed=n, logprobs=(math.nan,) * n + r.logprobs[n:])
        for r, origin, n in (
            (a, "guided", 4),
            (b, "correction", 0),
            (c, "expert", len(c.completion_ids)),
        )
    ]
    made = {
        "own": own,
        "mixed": replace(own, rollouts=(*own.rollouts, *foreign)),
        "expert": replace(own, rollouts=(foreign[-1],)),
    }
    return {
        name: group_from_dict(json.loads(dumps(group_to_dict(group))))
        for name, group in made.items()
    }


@pytest.mark.parametrize("name", list(methods.METHODS))
def test_every_method_paints_every_recorded_group_or_says_what_it_needs(name, tiny_policy):
    method, learner = find(name)(), Learner(tiny_policy, expert=toys.tiny_policy(seed=1))
    for kind, group in recorded(tiny_policy).items():
        layers = inspect_group(learner, group, TASK, {name: method}).layers
        for credit, rollout in zip(layers[f"{name} credit"], group.rollouts, strict=True):
            assert credit.shape == (len(rollout.completion_ids),) and np.isfinite(credit).all()
        if kind == "own":
            assert any(credit.any() for credit in layers[f"{name} credit"])
        if name in ("opd", "scope"):  # a bare policy has no expert
            with pytest.raises(
                WorkbenchError,
                match=f"^{name.upper()} learns from a stronger model with the same tokenizer",
            ) as error:
                inspect_group(tiny_policy, group, TASK, {name: method})
            assert len(str(error.value).splitlines()) == 1
        else:
            for a, b in zip(
                inspect_group(tiny_policy, group, TASK, {name: method}).layers[f"{name} credit"],
                layers[f"{name} credit"],
            ):
                np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_rollout_that_a_method_leaves_out_has_no_numbers(tiny_policy):
    class OnlyRight(SFT):
        def credit(self, groups, learner):
            return [c for c in super().credit(groups, learner) if c.rollout.verdict.correct]

    found = inspect_group(
        tiny_policy, group_of(tiny_policy, WRONG, RIGHT), TASK, {"m": OnlyRight()}
    )
    assert np.isnan(found.layers["m credit"][0]).all() and (found.layers["m credit"][1] == 1).all()


def test_the_verdict_of_a_hostile_text_is_read_like_any_other(tiny_policy):
    group = group_of(tiny_policy, "<script>alert(1)</script>", RIGHT)
    found = inspect_group(tiny_policy, group, TASK)
    assert np.isfinite(found.layers["delta"][0]).all() and isinstance(
        group.rollouts[0].verdict, Verdict
    )
