"""Readings against the model's own logits; what the self-teacher is shown; inspections that leave no trace in the learner."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
import toys
from workbench import ops, readings
from workbench.core import Group, Problem, Rollout, Verdict, WorkbenchError
from workbench.methods.grpo import GRPO
from workbench.methods.sft import SFT
from workbench.policy import Learner
from workbench.readings import inspect_group, read, teacher_prompt
from workbench.tasks.arithmetic import Arithmetic
from workbench.tasks.prompts import AGAIN

TASK = Arithmetic(steps=2)
PROBLEM = TASK.problem("47+85-29")
RIGHT = PROBLEM.solutions[0]
WRONG = "47+85=122\n122-29=93\nAnswer 93"


def written(policy, text: str, problem: Problem = PROBLEM) -> Rollout:
    ids = policy.completion_ids(text)
    return Rollout(policy.prompt_ids(problem.messages), ids, (-1.0,) * len(ids), text, TASK.grade(problem, text))


def group_of(policy, *texts: str) -> Group:
    return Group(PROBLEM, tuple(written(policy, text) for text in texts))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_reading_is_what_the_model_says(family, monkeypatch):
    policy = tiny.policy(family)
    rollouts = [toys.rollout(n, seed=n) for n in (5, 1, 9)]
    prompts = [(7, 8), (9,), (10, 11, 12, 13)]  # other prompts than they were sampled with, other lengths
    for rows in (32, 2):  # the order of the answers does not depend on the batches
        monkeypatch.setattr(readings, "ROWS", rows)
        for prompt, rollout, reading in zip(prompts, rollouts, read(policy, prompts, rollouts, k=4), strict=True):
            ids = torch.tensor([prompt + rollout.completion_ids])
            logits = policy.model(ids).logits[0, len(prompt) - 1: -1].log_softmax(-1)
            own = logits.gather(-1, torch.tensor(rollout.completion_ids)[:, None])[:, 0]
            assert reading.prompt_ids == prompt
            np.testing.assert_allclose(reading.logprobs, own, atol=1e-4)
            np.testing.assert_allclose(reading.entropy, -(logits.exp() * logits).sum(-1), atol=1e-4)
            best = logits.topk(4)
            np.testing.assert_array_equal(reading.top_ids, best.indices)
            np.testing.assert_allclose(reading.top_logprobs, best.values, atol=1e-4)
            np.testing.assert_array_equal(reading.rank, [1 + int((row > x).sum()) for row, x in zip(logits, own)])


def test_rank_by_hand():
    hidden, head = torch.eye(2), torch.tensor([[3.0, 1.0], [2.0, 1.0], [1.0, 5.0]])  # logits: rows (3, 2, 1) and (1, 1, 5)
    assert ops.ranks(hidden, head, torch.tensor([1, 2])).tolist() == [2, 1]
    assert ops.ranks(hidden[1:], head, torch.tensor([0])).tolist() == [2]  # ties do not count against it


def test_nothing_to_read_and_too_much_to_read(tiny_policy):
    assert read(tiny_policy, [], []) == []
    with pytest.raises(WorkbenchError, match="18 tokens, more than the model's context of 16"):
        read(toys.tiny_policy(context=16), [(7,) * 8], [toys.rollout(10)])


def test_a_teacher_that_reads_the_same_prompt_agrees_everywhere(tiny_policy):
    prompt = tiny_policy.prompt_ids(toys.QUESTION.messages)
    group = Group(toys.QUESTION, tuple(replace(toys.rollout(4, r, seed=i), text=str(i), prompt_ids=prompt) for i, r in enumerate((1.0, 0.0, 1.0))))
    found = inspect_group(tiny_policy, group, toys.FirstCharacter())  # its reprompt is the plain prompt
    for delta in found.layers["delta"]:
        np.testing.assert_allclose(delta, 0.0, atol=1e-6)


def shown(policy, group, i, **options) -> str | None:
    ids = teacher_prompt(policy, TASK, group, i, **options)
    return None if ids is None else policy.tokenizer.decode(list(ids))


def test_what_the_self_teacher_is_shown(tiny_policy):
    other = RIGHT + "\nWait, 132-29=103\nAnswer 103"  # right, in other words
    group = group_of(tiny_policy, WRONG, RIGHT, RIGHT, other)
    feedback = group.rollouts[0].verdict.feedback
    assert any(text in shown(tiny_policy, group, 0) for text in (RIGHT, other)) and feedback not in shown(tiny_policy, group, 0)
    assert other in shown(tiny_policy, group, 1)  # never its own words, also not from the mouth of another
    assert shown(tiny_policy, group, 3).count(RIGHT) == 1 and other not in shown(tiny_policy, group, 3)
    alone = group_of(tiny_policy, WRONG, WRONG, RIGHT)
    assert RIGHT in shown(tiny_policy, alone, 0)
    assert shown(tiny_policy, alone, 2) is None  # a lone success, and no feedback on it
    assert feedback in shown(tiny_policy, group_of(tiny_policy, WRONG, WRONG), 0)
    assert feedback in shown(tiny_policy, group, 0, show=("feedback",)) and RIGHT not in shown(tiny_policy, group, 0, show=("feedback",))
    assert shown(tiny_policy, group_of(tiny_policy, WRONG), 0, show=("solution",)) is None
    assert shown(tiny_policy, group, 0) == shown(tiny_policy, group, 0)  # the same at every call


def test_thoughts_are_not_shown(tiny_policy):
    thoughtful = replace(written(tiny_policy, RIGHT), text=f"<think>\n1+1\n</think>\n{RIGHT}")
    text = shown(tiny_policy, Group(PROBLEM, (written(tiny_policy, WRONG), thoughtful)), 0)
    assert RIGHT in text and "think" not in text and "1+1" not in text


def test_a_long_demonstration_loses_its_end_and_never_the_instruction():
    group = group_of(toys.tiny_policy(), WRONG, RIGHT)
    whole = teacher_prompt(toys.tiny_policy(), TASK, group, 0)
    size = len(whole) + len(group.rollouts[0].completion_ids)
    policy = toys.tiny_policy(context=size - 3)
    text = shown(policy, group, 0)
    assert AGAIN in text and PROBLEM.id in text and RIGHT[:-3] in text and RIGHT[:-2] not in text
    assert len(teacher_prompt(policy, TASK, group, 0)) + len(group.rollouts[0].completion_ids) == policy.context
    assert teacher_prompt(toys.tiny_policy(context=size - len(RIGHT)), TASK, group, 0) is None


def test_an_inspection_holds_every_layer_and_leaves_no_trace():
    learner = Learner(toys.tiny_policy())
    before = {name: p.clone() for name, p in learner.policy.model.named_parameters()}
    group = group_of(learner.policy, WRONG, RIGHT, RIGHT, RIGHT)
    found = inspect_group(learner, group, TASK, {"GRPO": GRPO(k=4, beta=0.1), "SFT": SFT()}, k=3)
    assert set(found.layers) == {"delta", "GRPO credit", "GRPO pg", "SFT credit", "SFT nll"}
    # By hand: mean 3/4, population standard deviation sqrt(3)/4, so advantages -sqrt(3) and 1/sqrt(3); the reference is the policy, so k3 adds 0.
    for credit, rollout, expected in zip(found.layers["GRPO credit"], group.rollouts, (-(3**0.5), 3**-0.5, 3**-0.5, 3**-0.5)):
        np.testing.assert_allclose(credit, np.full(len(rollout.completion_ids), expected), atol=1e-5)
    assert all((credit == 1).all() for credit in found.layers["SFT credit"])
    assert found.first_errors[0].index == 0 and found.first_errors[1:] == (None, None, None)
    assert found.student[0].top_ids.shape == (len(group.rollouts[0].completion_ids), 3)
    assert found.teacher[1] is None and np.isnan(found.layers["delta"][1]).all()  # all correct siblings say the same
    np.testing.assert_allclose(found.layers["delta"][0], found.teacher[0].logprobs - found.student[0].logprobs)
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in learner.policy.model.named_parameters())
    assert not learner.optimiser.state


def test_a_policy_stands_for_a_learner_that_has_not_learned(tiny_policy):
    group = group_of(tiny_policy, WRONG, RIGHT)
    methods = {"GRPO": GRPO(k=2, beta=0.5)}  # asks for the reference
    plain = inspect_group(tiny_policy, group, TASK, methods)
    learned = inspect_group(Learner(tiny_policy), group, TASK, methods, teacher="teacher")
    for name in plain.layers:
        for a, b in zip(plain.layers[name], learned.layers[name]):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_rollout_that_a_method_leaves_out_has_no_numbers(tiny_policy):
    class OnlyRight(SFT):
        def credit(self, groups, learner):
            return [c for c in super().credit(groups, learner) if c.rollout.verdict.correct]

    found = inspect_group(tiny_policy, group_of(tiny_policy, WRONG, RIGHT), TASK, {"m": OnlyRight()})
    assert np.isnan(found.layers["m credit"][0]).all() and (found.layers["m credit"][1] == 1).all()


def test_the_verdict_of_a_hostile_text_is_read_like_any_other(tiny_policy):
    group = group_of(tiny_policy, "<script>alert(1)</script>", RIGHT)
    found = inspect_group(tiny_policy, group, TASK)
    assert np.isfinite(found.layers["delta"][0]).all() and isinstance(group.rollouts[0].verdict, Verdict)
