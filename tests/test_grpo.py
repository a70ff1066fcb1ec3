"""GRPO against hand arithmetic, enumeration, autograd, TRL, and a task with a known optimum."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toys

from workbench.core import Credit, Group, WorkbenchError
from workbench.losses import k3
from workbench.methods import find
from workbench.methods.grpo import GRPO
from workbench.model.batch import collate
from workbench.model.learner import Learner, OptimConfig
from workbench.training.update import update

AGGREGATES = ("token", "sequence", "constant")


def batch_of(method: GRPO, *groups: Group, rows=None):
    return collate(method.credit(list(groups), None), 0, rows)


def random_tables(groups, *, seed=0, requires_grad=False):
    """Log-probs, old ones and the reference's for each rollout; apart enough that some tokens are
    clipped on either side.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = {"logp": {}, "old": {}, "reference": {}}
    for r in (r for g in groups for r in g.rollouts):
        logp = -2 * torch.rand(len(r.completion_ids), generator=generator) - 0.1
        tables["old"][id(r)] = logp + 0.4 * torch.randn(logp.shape, generator=generator)
        tables["reference"][id(r)] = logp + 0.5 * torch.randn(logp.shape, generator=generator)
        tables["logp"][id(r)] = logp.requires_grad_(requires_grad)
    return tables


def with_old(batch, tables):
    return replace(batch, old_logp=toys.scores_of(batch, {"logp": tables["old"]}).logp)


# ---- advantages


def test_advantages_by_hand():
    group = toys.group([1, 2, 3, 4, 5], [1, 0, 0, 1, 0])
    # mean 2/5; population variance (2 * .6^2 + 3 * .4^2) / 5 = .24, so .6/sqrt(.24) = 1.224745 and
    # -.4/sqrt(.24) = -.816497
    credits = GRPO().credit([group], None)
    assert [c.pg[0] for c in credits] == pytest.approx(
        [1.224745, -0.816497, -0.816497, 1.224745, -0.816497], abs=1e-5
    )
    assert [len(c.pg) for c in credits] == [1, 2, 3, 4, 5]
    assert all((c.pg == c.pg[0]).all() and not c.nll.any() and not c.kl.any() for c in credits)
    assert [c.pg[0] for c in GRPO(scale="none").credit([group], None)] == pytest.approx(
        [0.6, -0.4, -0.4, 0.6, -0.4]
    )


def test_advantages_are_within_the_group():
    rich, poor = toys.group([2, 2], [1, 0.5]), toys.group([2, 2], [0.5, 0])
    credits = GRPO(scale="none").credit([rich, poor], None)
    assert [c.pg[0] for c in credits] == pytest.approx([0.25, -0.25, 0.25, -0.25])


# 0.1 three times has a mean that is not 0.1 in floating point
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1])
@pytest.mark.parametrize("scale", ["std", "none"])
def test_no_contrast_no_gradient(reward, scale):
    group = toys.group([2, 3, 1], [reward] * 3)
    method = GRPO(scale=scale)
    [batch] = batch_of(method, group)
    tables = random_tables([group], requires_grad=True)
    loss = method.loss(toys.scores_of(batch, tables), with_old(batch, tables))
    loss.value.backward()
    assert loss.value == 0 and not loss.credit.any()
    assert all(not t.grad.any() for t in tables["logp"].values())
    assert batch.denominators["pg"] == 0 and batch.denominators["tokens"] == 6


# ---- the mean


# One rollout of 1 token with A = 1, one of 3 tokens with A = -1, rho = 1:
# token:     -(1 - 3) / 4 = 1/2              credit  1, -1
# sequence:  -(1/1 - 3/3) / 2 = 0            credit  4 * 1/2 = 2,  -4 * 1/3 * 1/2 = -2/3
# constant:  -(1 - 3) / (10 * 2) = 1/10      credit  4/20 = 1/5, -1/5
@pytest.mark.parametrize(
    "aggregate, value, credit",
    [("token", 0.5, (1, -1)), ("sequence", 0.0, (2, -2 / 3)), ("constant", 0.1, (0.2, -0.2))],
)
def test_aggregates_by_hand(aggregate, value, credit):
    method = GRPO(aggregate=aggregate, constant=10)
    group = toys.group([1, 3], [1, 0])
    [batch] = batch_of(method, group)
    loss = method.loss(toys.scores_of(batch, random_tables([group])), batch)  # no old: on policy
    assert float(loss.value) == pytest.approx(value, abs=1e-5)
    assert float(loss.per_token.sum()) == pytest.approx(value, abs=1e-5)
    want = torch.tensor([[credit[0], 0, 0], [credit[1]] * 3], dtype=torch.float32)
    torch.testing.assert_close(loss.credit, want, atol=1e-5, rtol=0)


# ---- the clip


@pytest.mark.parametrize(
    "ratio, advantage, objective, coefficient",
    [
        (1.50, 1.0, 1.28, 0.0),  # already likelier than 1 + eps_hi: no more
        (0.50, 1.0, 0.50, 0.5),  # too unlikely, and good: pulled up
        (1.50, -1.0, -1.50, -1.5),  # too likely, and bad: pushed down
        (0.50, -1.0, -0.80, 0.0),  # already less likely than 1 - eps_lo: no more
        (1.25, 1.0, 1.25, 1.25),  # inside: eps_hi is not eps_lo
        (0.85, -1.0, -0.85, -0.85),
    ],
)
def test_clip_by_hand(ratio, advantage, objective, coefficient):
    method = GRPO(eps_lo=0.2, eps_hi=0.28)
    rollout = toys.rollout(1)
    [batch] = collate([Credit.of(rollout, pg=advantage)], 0)
    logp = torch.tensor([-1.0], requires_grad=True)
    batch = replace(batch, old_logp=torch.tensor([[-1.0 - np.log(ratio)]], dtype=torch.float32))
    loss = method.loss(toys.scores_of(batch, {"logp": {id(rollout): logp}}), batch)
    loss.value.backward()
    assert loss.value.item() == pytest.approx(-objective, abs=1e-6)
    assert float(-logp.grad) == pytest.approx(coefficient, abs=1e-6)
    assert float(loss.credit) == pytest.approx(coefficient, abs=1e-6)
    assert loss.metrics["clipped"] == (coefficient == 0)
    assert loss.metrics["ratio"] == pytest.approx(ratio, abs=1e-5)


# ---- exact expectations, three tokens


def two_step_policy(seed: int):
    """pi(y1) and pi(y2 | y1) over three tokens from a table of logits, in double precision."""
    return torch.randn(
        4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).requires_grad_(True)


def sequence_logp(logits, y):
    table = logits.log_softmax(-1)
    return torch.stack([table[0, y[0]], table[1 + y[0], y[1]]])


@pytest.mark.parametrize("k", [2, 3])
def test_expected_gradient_is_the_gradient_of_expected_reward(k):
    """Over all groups of k rollouts, weighted with their probability, GRPO's gradient (no std, no
    clip) is (k - 1)/k times that of E[r]: the baseline holds the rollout's own reward with weight
    1/k. Dr.GRPO's mean divides it by the constant.
    """
    method = GRPO(k=k, scale="none", aggregate="constant", constant=4, eps_lo=1.0, eps_hi=1e9)
    logits = two_step_policy(1)
    outcomes = list(product(range(3), repeat=2))
    rewards = dict(zip(outcomes, (0.0, 1.0, 0.5, 0.25, 0.0, 2.0, 1.0, 0.75, 0.0)))
    log_p = {y: sequence_logp(logits, y) for y in outcomes}

    expected = sum(log_p[y].sum().exp() * rewards[y] for y in outcomes)
    [truth] = torch.autograd.grad(expected, logits, retain_graph=True)

    total = 0.0
    for ys in product(outcomes, repeat=k):
        group = toys.group([2] * k, [rewards[y] for y in ys])
        [batch] = batch_of(method, group)
        tables = {"logp": {id(r): log_p[y] for r, y in zip(group.rollouts, ys)}}
        chance = torch.stack([log_p[y].sum() for y in ys]).sum().exp().detach()
        total = total - chance * method.loss(toys.scores_of(batch, tables), batch).value
    [estimate] = torch.autograd.grad(total, logits)
    assert truth.abs().max() > 0.05
    torch.testing.assert_close(estimate, truth * (k - 1) / k / 4, atol=1e-7, rtol=1e-5)


def test_expected_k3_is_the_kl_of_policy_from_reference():
    policy, reference = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
    # KL(pi || ref) = .634, the other way round .685
    forward = float((policy.exp() * (policy - reference)).sum())
    backward = float((reference.exp() * (reference - policy)).sum())
    assert float((policy.exp() * k3(policy, reference)).sum()) == pytest.approx(forward, abs=1e-6)
    assert abs(forward - backward) > 0.01

    method, rollouts = GRPO(beta=0.1), [toys.rollout(1, seed=i) for i in range(3)]
    [batch] = collate([Credit.of(r) for r in rollouts], 0)
    loss = method.loss(
        toys.scores_of(
            batch,
            {
                "logp": {id(r): policy[i : i + 1] for i, r in enumerate(rollouts)},
                "reference": {id(r): reference[i : i + 1] for i, r in enumerate(rollouts)},
            },
        ),
        batch,
    )
    assert float((loss.per_token[:, 0] * 3 * policy.exp()).sum()) == pytest.approx(
        0.1 * forward, abs=1e-6
    )
    assert loss.metrics["kl_reference"] == pytest.approx(
        float(k3(policy, reference).mean()), abs=1e-6
    )


# ---- the credit is the gradient


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_credit_is_the_gradient(aggregate, beta):
    method = GRPO(aggregate=aggregate, beta=beta, eps_hi=0.28, constant=7)
    groups = [toys.group([3, 1, 4, 2], [1, 0, 0, 1]), toys.group([5, 2], [0, 1], seed=9)]
    [batch] = batch_of(method, *groups)
    tables = random_tables(groups)
    scores = toys.scores_of(batch, tables)
    logp = scores.logp.requires_grad_(True)
    loss = method.loss(scores, with_old(batch, tables))
    [grad] = torch.autograd.grad(loss.value, logp)
    torch.testing.assert_close(
        -grad * batch.denominators["tokens"], loss.credit, atol=1e-5, rtol=1e-5
    )
    clipped = (loss.credit == 0) & batch.mask
    assert not loss.credit[~batch.mask].any()
    # the inputs reach both branches
    assert beta or (clipped.any() and clipped.sum() != batch.mask.sum())


# ---- order, padding, micro-batches


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_microbatches_padding_and_order_do_not_matter(aggregate, rows):
    method = GRPO(aggregate=aggregate, beta=0.1, constant=7)
    groups = [toys.group([3, 1, 4, 2], [1, 0, 0, 1]), toys.group([9, 2], [0, 1], seed=9)]
    tables = random_tables(groups)

    def by_rollout(batches):
        found, value, metrics = {}, 0.0, defaultdict(float)
        for batch in batches:
            loss = method.loss(toys.scores_of(batch, tables), with_old(batch, tables))
            value += float(loss.value)
            for name, part in loss.metrics.items():
                metrics[name] += part
            found |= {
                id(c.rollout): (per[: len(c.pg)], credit[: len(c.pg)])
                for c, per, credit in zip(batch.credits, loss.per_token, loss.credit)
            }
        return found, value, metrics

    whole, value, metrics = by_rollout(batch_of(method, *groups))
    parts, sum_of_values, sum_of_metrics = by_rollout(
        batch_of(method, *reversed(groups), rows=rows)
    )
    assert sum_of_values == pytest.approx(value, abs=1e-6)
    assert sum_of_metrics == pytest.approx(metrics, abs=1e-5)
    for key, (per_token, credit) in whole.items():
        torch.testing.assert_close(parts[key][0], per_token)
        torch.testing.assert_close(parts[key][1], credit)


# ---- TRL


def trl_loss(batch, logp, reference, method, loss_type):
    """GRPOTrainer._compute_loss itself, on given log-probs: an instance without __init__, with the
    attributes that the method reads.
    """
    GRPOTrainer = pytest.importorskip(
        "trl", minversion="1.16", reason="TRL 1.16 is not installed"
    ).GRPOTrainer

    class Given(GRPOTrainer):
        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            return logp, torch.zeros_like(logp), None

    trainer = Given.__new__(Given)
    trainer.__dict__.update(
        loss_type=loss_type,
        beta=method.beta,
        epsilon_low=method.eps_lo,
        epsilon_high=method.eps_hi,
        max_completion_length=method.constant,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        _metrics=defaultdict(lambda: defaultdict(list)),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
    )
    mask = batch.mask.long()
    return trainer._compute_loss(
        None,
        {
            "prompt_ids": batch.input_ids[:, :1],
            "prompt_mask": torch.ones_like(batch.input_ids[:, :1]),
            "completion_ids": batch.targets,
            "completion_mask": mask,
            "advantages": batch.channels["pg"][:, 0],
            "old_per_token_logps": batch.old_logp,
            "ref_per_token_logps": reference,
            "num_items_in_batch": mask.sum(),
        },
    )


@pytest.mark.parametrize("beta", [0.0, 0.05])
@pytest.mark.parametrize(
    "aggregate, loss_type",
    [("sequence", "grpo"), ("token", "dapo"), ("token", "bnpo"), ("constant", "dr_grpo")],
)
def test_loss_and_gradient_equal_trl(aggregate, loss_type, beta):
    method = GRPO(aggregate=aggregate, beta=beta, eps_lo=0.2, eps_hi=0.28, constant=64)
    groups = [
        toys.group([7, 1, 12, 3], [1, 0, 0.5, 1]),
        toys.group([2, 20, 5, 8], [0, 1, 0, 0], seed=50),
    ]
    [batch] = batch_of(method, *groups)
    tables = random_tables(groups, seed=3)
    batch, scores = with_old(batch, tables), toys.scores_of(batch, tables)
    ours = scores.logp.clone().requires_grad_(True)
    theirs = scores.logp.clone().requires_grad_(True)
    value = method.loss(replace(scores, logp=ours), batch).value
    wanted = trl_loss(batch, theirs, scores.reference, method, loss_type)
    value.backward()
    wanted.backward()
    assert abs(wanted.item()) > 1e-3
    torch.testing.assert_close(value, wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-7, rtol=1e-5)


# ---- a known optimum


def chance(policy, character: str) -> float:
    ids = torch.tensor([policy.prompt_ids(toys.QUESTION.messages)])
    with torch.no_grad():
        p = policy.model(input_ids=ids).logits[0, -1].float().softmax(-1)
    return float(p[policy.tokenizer.convert_tokens_to_ids(character)])


def test_the_loop_finds_a_known_optimum(tiny_policy):
    """A bandit: reward 1 for the first token "7" and 0 for any other.

    The probability must go to 1, and with inverted rewards to 0.
    """
    learner = Learner(tiny_policy, OptimConfig(lr=1e-2))
    method, before = GRPO(k=32), chance(tiny_policy, "7")
    assert before < 0.05
    for inverted, reached in ((False, lambda p: p > 0.9), (True, lambda p: p < 0.05)):
        task = toys.FirstCharacter("7", inverted)
        for step in range(60):
            record = update(
                method,
                learner,
                task,
                task.problems("train", 4, step),
                (int(inverted), step),
                rows=None,
            )
            assert record.metrics["length"] == 1 and record.metrics["gap_max"] < 1e-4
            if step % 5 == 4 and reached(chance(tiny_policy, "7")):
                break
        assert reached(chance(tiny_policy, "7"))


# ---- bad input


@pytest.mark.parametrize(
    "options",
    [
        {"k": 1},
        {"scale": "mean"},
        {"aggregate": "sum"},
        {"beta": -0.1},
        {"eps_lo": -0.1},
        {"constant": 0},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(WorkbenchError, match=next(iter(options))):
        GRPO(**options)


def test_methods_are_found_by_name():
    assert find("grpo") is GRPO
    with pytest.raises(WorkbenchError, match="no method 'ppo'; there are .*grpo.*sft"):
        find("ppo")
