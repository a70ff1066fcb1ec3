"""TRAPO against hand arithmetic, numerical minimisation, autograd, GRPO, and the released loss
written out again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
import toys

from workbench.core import Group, WorkbenchError, coordinates
from workbench.losses import shaped, trsft
from workbench.methods import trapo as module
from workbench.methods.grpo import GRPO
from workbench.methods.sft import SFT
from workbench.methods.trapo import PRESETS, TRAPO, guided
from workbench.model.batch import collate
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.tasks.arithmetic import Arithmetic
from workbench.training.run import TrainConfig, fit
from workbench.training.update import update
from workbench.viz.figures.trapo import gradient_weights, micro_groups, optima, optimum

ARMS = ("trsft", "sft", "luffy", "none")


# ---- TrSFT


@pytest.mark.parametrize("alpha", [0.02, 0.1, 0.5, 1.0])
def test_trsft_gradient_is_min_1_p_over_alpha_of_sfts(alpha):
    p = torch.tensor(
        [1e-6, 0.001, 0.0199, 0.0999, 0.1001, 0.3, 0.4999, 0.7, 1.0], dtype=torch.float64
    )
    logp = p.log().requires_grad_(True)
    loss, weight = trsft(logp, alpha)
    [grad] = torch.autograd.grad(loss.sum(), logp)
    torch.testing.assert_close(-grad, torch.clamp(p / alpha, max=1.0))
    torch.testing.assert_close(weight, -grad)
    released = logp.exp() / torch.clamp(logp.exp().detach(), min=alpha)  # maximised there
    [theirs] = torch.autograd.grad(released.sum(), logp)
    torch.testing.assert_close(-grad, theirs)


def test_trsft_value_by_hand():
    def value(p):
        return float(trsft(torch.tensor(p, dtype=torch.float64).log(), 0.1)[0])

    assert value(0.5) == pytest.approx(math.log(2))
    assert value(0.05) == pytest.approx(math.log(10) + 1 - 0.5)  # 2.803; SFT's is 2.996


@pytest.mark.parametrize("alpha", [0.02, 0.1, 0.5, 1.0])
def test_trsft_value_and_slope_meet_at_alpha(alpha):
    p = torch.tensor([alpha * (1 - 1e-7), alpha], dtype=torch.float64)
    logp = p.log().requires_grad_(True)
    value, _ = trsft(logp, alpha)
    [slope] = torch.autograd.grad(value.sum(), logp)
    assert value.tolist() == pytest.approx([-math.log(alpha)] * 2, abs=1e-6)
    assert (slope / p).tolist() == pytest.approx([-1 / alpha] * 2, rel=1e-6)  # in p


def test_trsft_without_a_region_is_sft_and_never_breaks():
    logp = torch.tensor([-90.0, -5.0, -0.1, 0.0])
    for alpha in (0.0, 1e-44):
        loss, weight = trsft(logp, alpha)
        torch.testing.assert_close(loss, -logp)
        assert (weight == 1).all()
    x = torch.tensor([-200.0, -30.0], requires_grad=True)
    trsft(x, 0.1)[0].sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() < 1e-10


def minimizer(expert, alpha=0.1):
    """argmin over the simplex of E_{c ~ expert} l(p(c)), by Adam on logits in double precision."""
    expert = torch.tensor(expert, dtype=torch.float64)
    logits = expert.log().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([logits], lr=0.02)
    for _ in range(4000):
        optimizer.zero_grad()
        (expert * trsft(logits.log_softmax(-1), alpha)[0]).sum().backward()
        optimizer.step()
    return logits.softmax(-1).detach().tolist()


def test_proposition_1_by_minimisation():
    # S = {.5, .3, .15}: lambda = .95, and .15 > .095 > .05: the last token gets nothing, the others
    # p_E/.95
    assert minimizer([0.5, 0.3, 0.15, 0.05]) == pytest.approx(
        [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.0], abs=2e-3
    )
    # all of p_E = (.6, .4) is over alpha: maximum likelihood
    assert minimizer([0.6, 0.4]) == pytest.approx([0.6, 0.4], abs=1e-3)


def test_proposition_1_where_no_set_fits():
    """p_E = (.905, .095): with S = both, lambda = 1 and .095 < .1 is out; with S = the first,
    lambda = .905 and .095 > .0905 is in. The optimum has equal slopes, .905/p = .095/.1, so p =
    .95263: the token on the boundary takes what is left.
    """
    assert minimizer([0.905, 0.095]) == pytest.approx([0.905 / 0.95, 1 - 0.905 / 0.95], abs=1e-4)
    assert pytest.approx(0.9526, abs=5e-5) == 0.905 / 0.95


@pytest.mark.parametrize(
    "expert, alpha, found",
    [
        ([0.5, 0.3, 0.15, 0.05], 0.1, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        ([0.05, 0.3, 0.15, 0.5], 0.0, [0.05, 0.3, 0.15, 0.5]),
        ([0.905, 0.095], 0.1, [0.9526, 0.0474]),
        ([0.5, 0.3, 0.2], 0.5, [5 / 6, 1 / 6, 0]),
        ([0.3, 0.7], 1.0, [0, 1]),
    ],
)
def test_the_drawn_optimum_by_hand(expert, alpha, found):
    assert optimum(expert, alpha) == pytest.approx(found, abs=5e-5)


def test_the_drawn_optimum_is_the_minimum():
    """The loss is convex in p, so its minimum is where no token has a steeper slope expert / max(p,
    alpha) than those that have some probability.
    """
    rng, boundary = np.random.default_rng(0), 0
    for _ in range(300):
        expert, alpha = rng.dirichlet(np.full(6, 0.7)), rng.uniform(0.01, 0.6)
        p = optimum(expert, alpha)
        slope, kept = expert / np.maximum(p, alpha), p > 0
        assert p.sum() == pytest.approx(1) and (p >= 0).all()
        assert np.ptp(slope[kept]) < 1e-9 and (slope <= slope[kept].max() + 1e-9).all()
        boundary += bool((kept & (p < alpha)).any())
    assert 20 < boundary < 280


# ---- who is guided


@pytest.mark.parametrize(
    "preset, helped",
    [
        ("paper", {4: (0, 1), 6: (0, 1, 2, 3, 4), 7: (0, 1, 2, 3, 4, 5, 6)}),
        ("released-code", {4: (0, 1), 6: (0, 1, 2, 3), 7: (0, 1, 2, 3, 4, 5, 6)}),
    ],
)
def test_controller_for_every_count_of_successes(preset, helped):
    first, *later = PRESETS[preset]
    assert [m.n for m in PRESETS[preset]] == [4, 2, 1, 1] and not guided(first, [])
    assert [m.ratio for m in later] == {
        "paper": [0.2, 0.5, 1.0],
        "released-code": [0.25, 0.5, 1.0],
    }[preset]
    for stage, (n, counts) in zip(later, helped.items()):
        assert (
            tuple(c for c in range(n + 1) if guided(stage, [1.0] * c + [0.0] * (n - c))) == counts
        )


def scripted(monkeypatch, rewards):
    """Rewards by problem and rollout in place of generation; returns the starts of each call."""
    calls = []

    def fake(policy, task, starts):
        calls.append(starts)
        return [
            [
                replace(
                    toys.rollout(9, rewards[s.problem.id].pop(0)),
                    origin="guided" if s.prefix else "policy",
                )
                for _ in s.seeds
            ]
            for s in starts
        ]

    monkeypatch.setattr(module, "continue_from", fake)
    return calls


def test_decisions_are_from_all_earlier_samples(tiny_policy, monkeypatch):
    """One success of 4 is .25, none of the next 2 makes .17, one more .29: guided each time.

    A problem solved at once is left alone.
    """
    task = Arithmetic(style="turned")
    hard, easy = task.problems("train", 2, 0)
    calls = scripted(monkeypatch, {hard.id: [1, 0, 0, 0, 0, 0, 1], easy.id: [1] * 8})
    groups = TRAPO().sample(Learner(tiny_policy), task, [hard, easy], (0,))
    assert len(calls) == 4 and [[len(s.seeds) for s in call] for call in calls] == [
        [4, 4],
        [2, 2],
        [1, 2],
        [0, 0],
    ]
    assert (
        groups[0].notes == {"guided_2": 1, "guided_3": 1, "guided_4": 1} and groups[1].notes == {}
    )
    assert list(groups[0].rewards) == [1, 0, 0, 0, 0, 0, 1, 1]  # the expert's trace is scored
    assert np.cumsum(groups[0].rewards)[[3, 5, 6]] / [4, 6, 7] == pytest.approx(
        [0.25, 0.17, 0.29], abs=0.005
    )
    given = [calls[i][0].prefix for i in range(4)]
    whole = tiny_policy.completion_ids(hard.solutions[0])
    assert given[0] == () and given[3] == whole and all(whole[: len(p)] == p for p in given)
    assert all(tiny_policy.decode(p).endswith("\n") for p in given[1:3])  # cut where a step ends
    assert len({seed for call in calls for s in call for seed in s.seeds}) == 7 + 8


@pytest.mark.parametrize("seventh, tokens", [(1, None), (0, 9)])
def test_the_last_rollout_is_written_ahead_and_thrown_away_if_help_is_due(
    tiny_policy, monkeypatch, seventh, tokens
):
    """After 6 of 6 the eighth rollout is written beside the seventh.

    If that fails, the mean is .857 and the expert's trace takes the place.
    """
    task = Arithmetic(style="turned")
    [problem] = task.problems("train", 1, 0)
    calls = scripted(monkeypatch, {problem.id: [1] * 6 + [seventh, 1]})
    [group] = TRAPO().sample(Learner(tiny_policy), task, [problem], (0,))
    assert [len(call[0].seeds) for call in calls] == [4, 2, 2, 0]
    assert [r.origin for r in group.rollouts] == ["policy"] * 7 + [
        "policy" if seventh else "expert"
    ]
    assert group.notes == ({} if seventh else {"guided_4": 1.0, "generated": tokens})
    alone = [coordinates(0, problem.id, j) for j in range(8)]
    # each rollout is the one it would be by itself
    assert [seed for call in calls for seed in call[0].seeds] == alone


def test_a_second_trace_and_none(tiny_policy, monkeypatch):
    task = Arithmetic(style="turned")
    one, two, none = task.problems("train", 3, 0)
    two, none = replace(two, solutions=(two.solutions[0], "Answer 1")), replace(none, solutions=())
    calls = scripted(monkeypatch, {p.id: [0] * 8 for p in (one, two, none)})
    a, b, c = TRAPO().sample(Learner(tiny_policy), task, [one, two, none], (0,))
    assert (
        a.rollouts[-1].text == one.solutions[0]
        and b.rollouts[-1].text == "Answer 1"
        and b.rollouts[-1].verdict.reward == 0
    )
    assert (
        calls[2][1].prefix
        == tiny_policy.completion_ids(two.solutions[0])[: len(calls[2][1].prefix)]
        != ()
    )
    assert c.notes == {} and all(r.origin == "policy" for r in c.rollouts) and len(c.rollouts) == 8


def test_sampling_with_a_model_that_fails(tiny_policy, monkeypatch):
    """The whole path: prefixes are the expert's tokens, own log-probs are the trainer's, and each
    stage is one generation.
    """
    task, method, counted = Arithmetic(steps=2, style="turned"), TRAPO(), []
    from workbench.rollouts import prefixes

    original = prefixes.generate
    monkeypatch.setattr(
        prefixes, "generate", lambda *a, **k: counted.append(1) or original(*a, **k)
    )
    problems = task.problems("train", 3, 0)
    record = update(method, Learner(tiny_policy), task, problems, (0,), rows=5)
    assert len(counted) == 4
    for problem, group in zip(problems, record.groups):
        expert = tiny_policy.completion_ids(problem.solutions[0])
        assert [r.origin for r in group.rollouts] == ["policy"] * 4 + ["guided"] * 3 + ["expert"]
        assert (
            group.rollouts[4].borrowed
            == group.rollouts[5].borrowed
            < group.rollouts[6].borrowed
            < group.rollouts[7].borrowed
            == len(expert)
        )
        for r in group.rollouts:
            assert (
                r.completion_ids[: r.borrowed] == expert[: r.borrowed]
                and len(r.completion_ids) <= task.max_new
            )
        assert (
            group.rollouts[7].completion_ids[-1] in tiny_policy.stop_ids
            and group.rollouts[7].verdict.correct
        )
    assert (
        record.metrics["gap_max"] < 1e-4
        and record.metrics["guided_4"] == 3
        and record.metrics["correct_unaided"] == 0
    )
    assert record.metrics["generated"] == sum(
        len(r.completion_ids) - r.borrowed for g in record.groups for r in g.rollouts
    )
    again = method.sample(Learner(toys.tiny_policy()), task, problems[::-1], (0,))
    # order does not matter
    assert [g.rollouts[5].completion_ids for g in again[::-1]] == [
        g.rollouts[5].completion_ids for g in record.groups
    ]


# ---- credit


def borrowed(rollout, k, origin="guided", start=()):
    ids = (*start, *rollout.completion_ids[len(start) :])
    return replace(
        rollout,
        borrowed=k,
        completion_ids=ids,
        logprobs=(math.nan,) * k + rollout.logprobs[k:],
        origin=origin,
    )


def mixed_group(rewards=(1, 0, 0, 0, 0, 1), seed=0):
    """Two own rollouts, two that share three expert tokens, one with a longer prefix, and a whole
    trace.
    """
    a, b, c, d, e, f = toys.group([4, 2, 6, 5, 7, 5], rewards, seed=seed).rollouts
    c = borrowed(c, 3)
    d, e = borrowed(d, 3, start=c.completion_ids[:3]), borrowed(e, 4, start=c.completion_ids[:3])
    return Group(toys.QUESTION, (a, b, c, d, e, borrowed(f, 5, "expert")))


def test_credit_by_hand():
    group = mixed_group()  # mean 1/3
    credits = TRAPO().credit([group], None)
    third = 1 / 3
    want = [
        [2 * third] * 4,
        [-third] * 2,
        [0] * 3 + [-third] * 3,
        [0] * 3 + [-third] * 2,
        [0] * 4 + [-third] * 3,
        [0] * 5,
    ]
    for credit, pg in zip(credits, want):
        assert credit.pg == pytest.approx(pg, abs=1e-6)
    nll = {"once": [0, 0, 3, 0, 4, 5], "every": [0, 0, 3, 3, 4, 5]}
    for shared, counts in nll.items():
        credits = TRAPO(shared=shared).credit([group], None)
        assert [list(c.nll) for c in credits] == [
            [1.0] * n + [0.0] * (len(c.nll) - n) for n, c in zip(counts, credits)
        ]
    assert all(not c.nll.any() for c in TRAPO(prefix="none").credit([group], None))
    shaped_credits = TRAPO(prefix="luffy").credit([group], None)
    assert [float(c.nll[0]) for c in shaped_credits] == pytest.approx(
        [0, 0, -third, -third, -third, 2 * third], abs=1e-6
    )
    other = mixed_group()  # in another group the same prefix is learned again
    assert [c.nll.any() for c in TRAPO().credit([group, other], None)] == [0, 0, 1, 0, 1, 1] * 2


@pytest.mark.parametrize("reward, prefixed", [(0.0, True), (1.0, False), (0.1, True)])
def test_groups_without_contrast(reward, prefixed):
    """All wrong: no policy gradient, but the prefixes teach.

    All right (never guided): nothing but the entropy bonus.
    """
    group = mixed_group([reward] * 6) if prefixed else toys.group([3, 2, 4], [reward] * 3)
    method = TRAPO()
    [batch] = collate(method.credit([group], None), 0)
    scores, logp, entropy = leaves(batch)
    loss = method.loss(scores, batch)
    d_logp, d_entropy = torch.autograd.grad(loss.value, (logp, entropy))
    own = torch.tensor(
        [[t >= c.rollout.borrowed for t in range(batch.mask.shape[1])] for c in batch.credits]
    )
    assert not d_logp[own].any() and bool(d_logp.any()) == prefixed
    torch.testing.assert_close(d_entropy, -0.001 * batch.mask / batch.denominators["tokens"])


def test_a_prefix_is_learned_whatever_the_reward():
    """No advantage reaches a borrowed token: its gradient is min(1, p/alpha), over the constant and
    the number of sequences, in every group.
    """
    found = []
    for rewards in ((1, 0, 0, 0, 0, 1), (0, 1, 1, 0, 1, 1), (0.0,) * 6):
        [batch] = collate(TRAPO(constant=13).credit([mixed_group(rewards)], None), 0)
        scores, logp, _ = leaves(batch)
        expert = batch.channels["nll"] != 0
        assert not batch.channels["pg"][expert].any() and int(expert.sum()) == 3 + 4 + 5
        found.append(
            -torch.autograd.grad(TRAPO(constant=13).loss(scores, batch).value, logp)[0][expert]
        )
        torch.testing.assert_close(
            found[-1], (logp.detach().exp()[expert] / 0.1).clamp(max=1.0) / (13 * 6)
        )
        torch.testing.assert_close(found[-1], found[0])
    assert found[0].min() < 0.9 / (13 * 6)  # some are under alpha


# ---- the loss


def leaves(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logp = (-4 * torch.rand(batch.mask.shape, generator=generator) * batch.mask).requires_grad_(
        True
    )
    entropy = (torch.rand(batch.mask.shape, generator=generator) * batch.mask).requires_grad_(True)
    scores = toys.scores_of(
        batch,
        {
            "logp": {
                id(c.rollout): logp.detach()[i, : len(c.pg)] for i, c in enumerate(batch.credits)
            }
        },
    )
    return replace(scores, logp=logp, entropy=entropy), logp, entropy


def with_old(batch, scores, seed=1):
    noise = 0.3 * torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(seed))
    return replace(batch, old_logp=(scores.logp.detach() + noise) * batch.mask)


def test_loss_by_hand():
    """Own token:

    A = .5, log-prob anything, rho = 1. Borrowed tokens at p = .5 (over alpha) and p = .05 (half its
    weight). H = 1, .5, 0.
    """
    right, wrong = toys.group([3, 1], [1, 0]).rollouts
    group = Group(toys.QUESTION, (borrowed(right, 2), wrong))
    method = TRAPO(constant=10, entropy=0.01)
    [batch] = collate(method.credit([group], None), 0)
    scores = toys.scores_of(
        batch,
        {
            "logp": {
                id(group.rollouts[0]): torch.tensor([0.5, 0.05, 0.3]).log(),
                id(wrong): torch.tensor([0.2]).log(),
            }
        },
    )
    entropy = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
    loss = method.loss(replace(scores, entropy=entropy), batch)
    # policy gradient: -.5 + .5 = 0. prefix: ln 2 + (ln 10 + 1 - .5). Over 10 * 2. Entropy: -.01 *
    # 1.5 / 4
    assert float(loss.value) == pytest.approx(
        (math.log(2) + math.log(10) + 0.5) / 20 - 0.00375, abs=1e-6
    )
    assert loss.per_token.sum() == pytest.approx(float(loss.value), abs=1e-6)
    torch.testing.assert_close(loss.credit, torch.tensor([[1.0, 0.5, 0.5], [-0.5, 0, 0]]) * 4 / 20)
    assert loss.metrics == pytest.approx({"expert_p": 0.275, "expert_weight": 0.75})


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("shared", ["once", "every"])
@pytest.mark.parametrize("old", [False, True])
def test_credit_is_the_gradient(arm, shared, old):
    method = TRAPO(prefix=arm, shared=shared, constant=13)
    [batch] = collate(
        method.credit([mixed_group(), mixed_group((0, 0, 0, 1, 0, 1), seed=7)], None), 0
    )
    scores, logp, _ = leaves(batch)
    loss = method.loss(scores, with_old(batch, scores) if old else batch)
    [grad] = torch.autograd.grad(loss.value, logp)
    torch.testing.assert_close(
        -grad * batch.denominators["tokens"], loss.credit, atol=1e-6, rtol=1e-5
    )
    assert not loss.credit[~batch.mask].any() and loss.credit.abs().max() > 0.01
    expert = torch.tensor(
        [[t < c.rollout.borrowed for t in range(batch.mask.shape[1])] for c in batch.credits]
    )
    assert bool(loss.credit[expert].any()) == (arm != "none")


def test_shaping_gradient():
    logp = torch.tensor([0.001, 0.1, 0.5, 1.0]).log().requires_grad_(True)
    loss, weight = shaped(logp, 0.1)
    [grad] = torch.autograd.grad(loss.sum(), logp)
    torch.testing.assert_close(weight, -grad)
    # largest, 1/4, at gamma
    assert weight.tolist() == pytest.approx(
        [0.1 * p / (p + 0.1) ** 2 for p in (0.001, 0.1, 0.5, 1.0)]
    )


@pytest.mark.parametrize("old", [False, True])
def test_without_prefixes_it_is_the_mean_centred_policy_gradient(old):
    groups = [toys.group([3, 1, 4, 2], [1, 0, 0, 1]), toys.group([5, 2], [0, 1], seed=9)]
    ours, theirs = (
        TRAPO(entropy=0.0, constant=20),
        GRPO(scale="none", aggregate="constant", constant=20, eps_lo=1.0, eps_hi=1e9),
    )
    [batch] = collate(ours.credit(groups, None), 0)
    [other] = collate(theirs.credit(groups, None), 0)
    scores, logp, _ = leaves(batch)
    if old:
        batch, other = with_old(batch, scores), with_old(other, scores)
    a, b = ours.loss(scores, batch), theirs.loss(scores, other)
    torch.testing.assert_close(
        torch.autograd.grad(a.value, logp, retain_graph=True), torch.autograd.grad(b.value, logp)
    )
    torch.testing.assert_close(a.credit, b.credit)
    assert a.credit.abs().max() > 0.05


def released_loss(logp, old, advantages, mask, prefix, learned, reshape, entropy):
    """The released formula with the flags of its script: grpo_use_std False, no clip, no token
    mean, entropy_coeff .001; off_advantages 1 for TRAPO (clip_low) and the rollout's own for LUFFY
    (p_div_p_0.1). Sum over the batch / response length - .001 masked mean of the entropy.
    """
    p = logp.exp()
    on = -advantages * (logp - old).exp()
    off = {"clip_low": -p / p.detach().clamp(min=0.1), "p_div_p_0.1": -advantages * p / (p + 0.1)}[
        reshape
    ]
    losses = off * (learned * prefix) + on * (1 - prefix)
    return (losses * mask).sum() / mask.shape[-1] - 0.001 * (entropy * mask).sum() / mask.sum()


@pytest.mark.parametrize("arm, reshape", [("trsft", "clip_low"), ("luffy", "p_div_p_0.1")])
def test_numbers_equal_the_released_losss(arm, reshape):
    groups = [mixed_group(), mixed_group((0, 1, 0, 1, 0, 1), seed=7)]
    width = 7  # the longest completion stands for the response length
    method = TRAPO(prefix=arm, constant=width)
    [batch] = collate(method.credit(groups, None), 0)
    scores, logp, entropy = leaves(batch, seed=4)
    batch = with_old(batch, scores)
    rollouts = [c.rollout for c in batch.credits]
    mean = {id(r): np.mean(g.rewards) for g in groups for r in g.rollouts}
    advantages = torch.tensor(
        [[r.verdict.reward - mean[id(r)]] for r in rollouts], dtype=torch.float32
    )
    prefix = torch.tensor([[float(t < r.borrowed) for t in range(width)] for r in rollouts])
    # the fourth of a group repeats the third's prefix
    learned = torch.tensor([[float(i % 6 != 3 or arm == "luffy")] for i in range(12)])
    theirs = released_loss(
        logp, batch.old_logp, advantages, batch.mask.float(), prefix, learned, reshape, entropy
    )
    # They sum over sequences where ours is a mean, and have the entropy bonus in the same batch
    ours = method.loss(scores, batch).value
    bonus = 0.001 * (entropy * batch.mask).sum() / batch.mask.sum()
    for leaf in (logp, entropy):
        (a,) = torch.autograd.grad((ours + bonus) * 12 - bonus, leaf, retain_graph=True)
        (b,) = torch.autograd.grad(theirs, leaf, retain_graph=True)
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert b.abs().max() > 0
    # TrSFT's released loss, p / max(p, alpha), has its gradient and not its value
    if arm == "luffy":
        assert ((ours + bonus) * 12 - bonus).item() == pytest.approx(theirs.item(), abs=1e-5)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_microbatches_padding_and_order_do_not_matter(arm, rows):
    method = TRAPO(prefix=arm)
    groups = [mixed_group(), toys.group([9, 2], [0, 1], seed=9)]
    generator = torch.Generator().manual_seed(0)
    table = {
        id(r): (
            -3 * torch.rand(len(r.completion_ids), generator=generator),
            torch.rand(len(r.completion_ids), generator=generator),
        )
        for g in groups
        for r in g.rollouts
    }

    def by_rollout(batches):
        found, value, metrics = {}, 0.0, defaultdict(float)
        for batch in batches:
            scores, entropy = (
                toys.scores_of(batch, {"logp": {key: pair[i] for key, pair in table.items()}})
                for i in (0, 1)
            )
            loss = method.loss(replace(scores, entropy=entropy.logp), batch)
            value += float(loss.value)
            for name, part in loss.metrics.items():
                metrics[name] += part
            found |= {
                id(c.rollout): (per[: len(c.pg)], credit[: len(c.pg)])
                for c, per, credit in zip(batch.credits, loss.per_token, loss.credit)
            }
        return found, value, metrics

    whole, value, metrics = by_rollout(collate(method.credit(groups, None), 0))
    parts, sum_of_values, sum_of_metrics = by_rollout(
        collate(method.credit(groups[::-1], None), 0, rows)
    )
    assert sum_of_values == pytest.approx(value, abs=1e-6) and sum_of_metrics == pytest.approx(
        metrics, abs=1e-5
    )
    for key, (per_token, credit) in whole.items():
        torch.testing.assert_close(parts[key][0], per_token)
        torch.testing.assert_close(parts[key][1], credit)


# ---- learning


def expert_chance(policy, problems) -> float:
    from workbench.model.batch import rescore
    from workbench.rollouts.prefixes import expert_rollout

    return float(
        np.mean(
            [
                logp.mean()
                for logp, _ in rescore(
                    policy,
                    [expert_rollout(policy, Arithmetic(), p, p.solutions[0]) for p in problems],
                )
            ]
        )
    )


def test_all_wrong_groups_still_learn_and_the_region_limits_it(tiny_policy):
    """An untrained model never succeeds.

    SFT on the prefixes makes the expert likelier; TrSFT hardly moves, since p/alpha is small
    everywhere.
    """
    task = Arithmetic(steps=1, style="turned")
    problems, gained = task.problems("train", 4, 0), {}
    for arm in ("sft", "trsft", "none"):
        policy = toys.tiny_policy()
        learner, before = Learner(policy, OptimConfig(lr=1e-2)), expert_chance(policy, problems)
        for step in range(4):
            update(TRAPO(prefix=arm, entropy=0.0), learner, task, problems, (0, step))
        gained[arm] = expert_chance(policy, problems) - before
    assert gained["sft"] > 0.5 and gained["sft"] > gained["trsft"] > gained["none"]


def test_sft_then_rl_is_two_runs(tmp_path, tiny_folder):
    """The second stage takes the first one's model as its own start, and as its reference."""
    task, plan = toys.FirstCharacter("7"), TrainConfig(steps=2, prompts=2, eval_every=0)
    first = Learner(load_policy(tiny_folder), OptimConfig(lr=1e-2))
    fit(SFT(), first, Arithmetic(steps=1, style="turned"), plan, tmp_path / "sft", progress=False)
    second = Learner(load_policy(tmp_path / "sft" / "model"), OptimConfig(lr=1e-2))
    for name, p in first.policy.model.named_parameters():
        torch.testing.assert_close(p, dict(second.policy.model.named_parameters())[name])
    fit(GRPO(k=8, beta=0.1), second, task, plan, tmp_path / "rl", progress=False)
    assert (tmp_path / "rl" / "model" / "config.json").exists()


# ---- pictures


def test_the_picture_says_who_was_helped_and_why():
    rewards = (1, 0, 0, 0, 0, 0, 1, 1)
    helped = [
        borrowed(toys.rollout(9, reward, seed=i), k)
        for i, (reward, k) in enumerate(zip(rewards, (0, 0, 0, 0, 3, 3, 5, 9)))
    ]
    [axes] = micro_groups(
        [Group(toys.QUESTION, tuple(helped)), toys.group([9] * 8, [1] * 8)], PRESETS["paper"]
    ).axes
    texts = [text.get_text() for text in axes.texts]
    assert [t for t in texts if "<" in t] == ["0.25 < 0.5 ▸", "0.17 < 0.7 ▸", "0.29 < 0.9 ▸"]
    assert [t for t in texts if "≥" in t] == ["1.00 ≥ 0.5", "1.00 ≥ 0.7", "1.00 ≥ 0.9"]
    assert texts.count("✓") == 3 + 8 and texts.count("✗") == 5
    assert sorted(
        patch.get_width() for patch in axes.patches if patch.get_hatch()
    ) == pytest.approx([0.3, 0.3, 0.5, 0.9])


def test_the_pictures_of_weights_draw_what_they_are_given():
    p = np.geomspace(1e-3, 1, 20)
    lines = gradient_weights(p, {"SFT": np.ones(20), "DFT": p}).axes[0].lines
    assert [line.get_label() for line in lines] == ["SFT", "DFT"] and (
        lines[1].get_ydata() == p
    ).all()
    for axes, alpha in zip(optima([0.905, 0.095], [0.09, 0.1]).axes, (0.09, 0.1)):
        filled = [bar for bar in axes.patches if bar.get_fill()]
        assert [bar.get_height() for bar in filled] == pytest.approx(optimum([0.905, 0.095], alpha))
        assert [bool(bar.get_hatch()) for bar in filled] == [False, alpha == 0.1]


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "mine"},
        {"prefix": "dft"},
        {"shared": "all"},
        {"alpha": 1.5},
        {"gamma": 0.0},
        {"entropy": -1.0},
        {"constant": 0},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(WorkbenchError, match=next(iter(options))):
        TRAPO(**options)
