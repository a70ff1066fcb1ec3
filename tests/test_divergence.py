"""The divergence from a teacher against hand arithmetic, the textbook formula, enumeration, finite
differences, and what it may keep in memory.
"""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from torch.autograd import gradcheck

from workbench.methods.sdpo import SDPO
from workbench.model import scores
from workbench.model.scores import divergence
from workbench.viz.figures.sdpo import HEALTH, divergence_curves, health_curves
from workbench.viz.style import INK

EVERY_A = pytest.mark.parametrize("a", [0.0, 0.3, 0.5, 1.0])


@pytest.fixture(
    params=[2**23, 3 * 11, 1], ids=["one chunk", "three rows a chunk", "one row a chunk"]
)
def chunked(request, monkeypatch):
    monkeypatch.setattr(scores, "CHUNK_ELEMENTS", request.param)


def draw(n=7, d=5, e=4, v=11, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def make(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * 1.5

    return (
        make(n, d),
        make(v, d),
        make(n, e),
        make(v, e),
        torch.randint(v, (n,), generator=generator),
    )


def of(pi, q, a, target=0, **how):
    """The divergence of two distributions written out."""
    pi, q = (torch.tensor([p], dtype=torch.float64).log() for p in (pi, q))
    eye = torch.eye(pi.shape[-1], dtype=torch.float64)
    return divergence(pi, eye, q, eye, torch.tensor([target]), a, **how)


def textbook(log_p, log_q, a):
    """From probabilities, one category a column."""
    p, q = log_p.exp(), log_q.exp()

    def kl(x, y):
        return (x * (x / y).log()).sum(-1)

    m = (1 - a) * p + a * q
    return kl(p, q) if a == 1 else kl(q, p) if a == 0 else (1 - a) * kl(p, m) + a * kl(q, m)


def with_tail(log_p, ids):
    kept = log_p.gather(-1, ids)
    return torch.cat([kept, (1 - kept.exp().sum(-1, keepdim=True)).log()], -1)


def naive(hidden, head, teacher_hidden, teacher_head, targets, a, k):
    log_p, log_q = (
        (hidden @ head.T).log_softmax(-1),
        (teacher_hidden @ teacher_head.T).log_softmax(-1),
    )
    if k:
        ids = log_p.topk(k).indices
        return textbook(with_tail(log_p, ids), with_tail(log_q, ids), a)
    return textbook(log_p, log_q, a)


def test_by_hand():
    """pi = (.5, .5), q = (.9, .1), m = (.7, .3):

    KL(pi||q) = .5 ln(5/9) + .5 ln 5 = .5108;  KL(q||pi) = .9 ln 1.8 + .1 ln .2 = .3681;  JSD = .5
    (.0872) + .5 (.1163) = .1018 credit of the first token: ln(9/5) = .5878;  .9/.5 - 1 = .8;  .5
    ln(.7/.5) = .1682
    """
    for a, value, credit in ((1.0, 0.5108, 0.5878), (0.0, 0.3681, 0.8), (0.5, 0.1018, 0.1682)):
        found = of([0.5, 0.5], [0.9, 0.1], a)
        assert float(found.value) == pytest.approx(value, abs=1e-4) and float(
            found.credit
        ) == pytest.approx(credit, abs=1e-4)
        assert float(found.teacher) == pytest.approx(math.log(0.9)) and float(
            found.entropy
        ) == pytest.approx(0.3251, abs=1e-4)


@pytest.mark.parametrize("k", [0, 1, 4])
@EVERY_A
@pytest.mark.parametrize("train_head", [True, False])
def test_value_and_gradient_equal_the_textbook(chunked, a, k, train_head):
    hidden, head, *teacher, targets = draw()
    weights = torch.sin(torch.arange(7.0, dtype=torch.float64) + 1)
    results = []
    for function in (lambda *x: divergence(*x).value, naive):
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_(train_head)
        value = function(h, w, *teacher, targets, a, k)
        (value @ weights).backward()
        results.append([value, h.grad] + [w.grad] * train_head)
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("k", [0, 2])
@EVERY_A
def test_gradient_by_finite_differences(a, k):
    hidden, head, *teacher, targets = draw(n=3, d=3, v=6)
    assert gradcheck(
        lambda h, w: divergence(h, w, *teacher, targets, a, k).value,
        (hidden.requires_grad_(), head.requires_grad_()),
    )


def test_what_else_it_says(chunked):
    hidden, head, teacher_hidden, teacher_head, targets = draw()
    log_p, log_q = (
        (hidden @ head.T).log_softmax(-1),
        (teacher_hidden @ teacher_head.T).log_softmax(-1),
    )
    found = divergence(hidden, head, teacher_hidden, teacher_head, targets, 1.0, 3)
    torch.testing.assert_close(found.teacher, log_q.gather(-1, targets[:, None])[:, 0])
    torch.testing.assert_close(found.entropy, -(log_q.exp() * log_q).sum(-1))
    torch.testing.assert_close(found.tail_mass, 1 - log_p.exp().topk(3).values.sum(-1))
    full = divergence(hidden, head, teacher_hidden, teacher_head, targets, 1.0)
    torch.testing.assert_close(full.credit, (log_q - log_p).gather(-1, targets[:, None])[:, 0])
    assert not full.tail_mass.any()


# ---- the credit is the gradient


@pytest.mark.parametrize("clip", [math.inf, 0.2])
@pytest.mark.parametrize("k", [0, 1, 2, 4])
@EVERY_A
def test_expected_credit_is_the_gradient(a, k, clip):
    """Over all five tokens: sum_y pi(y) credit(y) grad log pi(y) = - grad D.

    Exact, also for the bucket's tokens and for clipped credits.
    """
    generator = torch.Generator().manual_seed(k)
    logits, teacher = torch.randn(2, 1, 5, dtype=torch.float64, generator=generator)
    eye = torch.eye(5, dtype=torch.float64)
    total = torch.zeros(1, 5, dtype=torch.float64)
    for y in range(5):
        z = logits.clone().requires_grad_()
        found = divergence(z, eye, teacher, eye, torch.tensor([y]), a, k, clip)
        [gradient] = torch.autograd.grad(found.value.sum(), z)
        log_pi = z.log_softmax(-1)[0, y]
        [direction] = torch.autograd.grad(log_pi, z)
        total += log_pi.exp().detach() * found.credit * direction
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(total, -gradient, rtol=1e-9, atol=1e-12)


def test_clip_holds_the_gradient_and_not_the_value():
    """Reverse KL, pi = (.6, .4), q = (.2, .8): credits ln(1/3) = -1.10 and ln 2 = .69, the second
    held at .5. -dD/dz_1 = pi_1 (c_1 - E c) = .6 (-1.0986 - (.6 * -1.0986 + .4 * .5)) = -.3837
    """
    z = torch.tensor([[0.6, 0.4]], dtype=torch.float64).log().requires_grad_()
    q, eye = (
        torch.tensor([[0.2, 0.8]], dtype=torch.float64).log(),
        torch.eye(2, dtype=torch.float64),
    )
    plain = divergence(z, eye, q, eye, torch.tensor([1]), 1.0)
    held = divergence(z, eye, q, eye, torch.tensor([1]), 1.0, 0, 0.5)
    assert (
        float(held.credit) == 0.5
        and float(plain.credit) == pytest.approx(math.log(2))
        and torch.equal(held.value, plain.value)
    )
    held.value.sum().backward()
    assert z.grad[0].tolist() == pytest.approx([0.3837, -0.3837], abs=1e-4)


# ---- identities


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("k", [0, 3, 10])
@EVERY_A
def test_zero_where_the_teacher_is_the_policy(a, k, dtype):
    hidden, head, *_, targets = draw()
    hidden, head = hidden.to(dtype).requires_grad_(), head.to(dtype).requires_grad_()
    found = divergence(hidden, head, hidden.detach().clone(), head.detach().clone(), targets, a, k)
    found.value.sum().backward()
    assert (
        not found.value.any()
        and not found.credit.any()
        and not hidden.grad.any()
        and not head.grad.any()
    )


@pytest.mark.parametrize("k", [11, 12, 1000])
@EVERY_A
def test_all_tokens_or_more_is_the_full_divergence(a, k):
    arguments = draw()
    for ours, full in zip(divergence(*arguments, a, k), divergence(*arguments, a)):
        assert torch.equal(ours, full)


@EVERY_A
def test_the_bucket_loses_information_and_never_goes_negative(a):
    """Joining categories can only bring two distributions nearer; without the bucket the truncated
    forward KL of these is negative.
    """
    arguments = draw(n=200)
    full = divergence(*arguments, a).value
    for k in (1, 3, 6, 10):
        part = divergence(*arguments, a, k).value
        # a bucket of less than 1e-7 counts as 1e-7
        assert (part >= -1e-6).all() and (part <= full + 1e-6).all()
    log_p, log_q = (
        (arguments[0] @ arguments[1].T).log_softmax(-1),
        (arguments[2] @ arguments[3].T).log_softmax(-1),
    )
    ids = log_p.topk(3).indices
    bare = log_q.gather(-1, ids).exp() * (log_q - log_p).gather(-1, ids)
    assert (bare.sum(-1) < 0).float().mean() > 0.5


def test_jensen_shannon_is_at_most_log_two():
    assert (divergence(*draw(n=300), 0.5).value <= math.log(2)).all()
    assert float(of([1 - 1e-9, 1e-9], [1e-9, 1 - 1e-9], 0.5).value) == pytest.approx(
        math.log(2), abs=1e-6
    )


def test_extreme_logits_are_finite():
    hidden = torch.tensor([[60.0], [-60.0], [0.0]], requires_grad=True)
    head = torch.tensor([[1.0], [0.0], [-1.0], [0.5]], requires_grad=True)
    for a in (0.5, 1.0):
        for k in (0, 1, 2):
            found = divergence(
                hidden, head, -hidden.detach(), head.detach(), torch.tensor([0, 1, 2]), a, k
            )
            found.value.sum().backward()
            assert (
                all(column.isfinite().all() for column in found)
                and hidden.grad.isfinite().all()
                and head.grad.isfinite().all()
            )


# ---- memory


def measured(
    tokens: int, vocabulary: int, k: int, train_head: bool, function=divergence
) -> toys.Memory:
    """Forward and backward pass; what goes in is not counted."""
    hidden, head = (
        torch.randn(tokens, 8, requires_grad=True),
        torch.randn(vocabulary, 8).requires_grad_(train_head),
    )
    teacher, targets = (
        (torch.randn(tokens, 8), torch.randn(vocabulary, 8)),
        torch.zeros(tokens, dtype=torch.long),
    )
    with toys.Memory() as memory:
        function(hidden, head, *teacher, targets, 0.5, k).value.sum().backward()
    return memory


def whole(*arguments):
    return SimpleNamespace(value=naive(*arguments))


@pytest.mark.parametrize("train_head", [True, False])
@pytest.mark.parametrize("k", [0, 20])
def test_memory_does_not_grow_with_vocabulary_times_length(monkeypatch, k, train_head):
    """Vocabularies of 1,500 and 6,000 for 1,000 tokens, and of 1,500 for 4,000: no tensor holds
    more than a chunk of 60,000 logits, and what is alive at once grows by a few rows of 8 for each
    further token or word. The textbook's grows by several tables of tokens x vocabulary.
    """
    monkeypatch.setattr(scores, "CHUNK_ELEMENTS", 60_000)
    small, wide, long = (
        measured(*size, k, train_head) for size in ((1000, 1500), (1000, 6000), (4000, 1500))
    )
    assert small.largest == wide.largest == long.largest == 60_000
    assert wide.peak - small.peak <= 3 * 8 * 4500 and long.peak - small.peak <= 4 * 8 * 3000
    if not k:
        plain = [
            measured(*size, k, train_head, whole).peak for size in ((1000, 1500), (1000, 6000))
        ]
        assert plain[1] - plain[0] > 4 * 1000 * 4500 and wide.peak < plain[1] / 20


# ---- drawn


def test_the_curves_are_the_numbers_they_are_given():
    p, found = (
        np.array([0.2, 0.9]),
        {
            "reverse": (np.array([1.0, 0.0]), np.array([1.5, 0.0])),
            "forward": (np.array([2.0, 0.0]), np.array([3.5, 0.0])),
        },
    )
    left, right = divergence_curves(p, 0.9, found).axes
    for axes, which in ((left, 0), (right, 1)):
        lines = [
            line
            for line in axes.lines
            if len(line.get_xdata()) == len(p) and line.get_color() != INK
        ]
        assert [line.get_ydata().tolist() for line in lines] == [
            numbers[which].tolist() for numbers in found.values()
        ]
        assert (
            len({line.get_linestyle() for line in lines})
            == len({line.get_color() for line in lines})
            == 2
        )
    assert [line.get_label() for line in left.lines if line.get_label() in found] == list(found)


def test_health_is_drawn_for_what_was_recorded():
    """Every number that a step of SDPO logs about itself has a place; one that a run lacks (no
    right rollout was ever distilled) is left out.
    """
    names = [name for _, _, panel in HEALTH for name in panel]
    assert {
        name for name in names if f" {name} " in SDPO.health.__doc__ + SDPO.diagnose.__doc__
    } == set(names) - {"teacher_distance"}
    metrics = pd.DataFrame(
        {"step": range(9)} | {name: [float(i)] * 9 for i, name in enumerate(names)}
    ).drop(columns="delta_right")
    drawn = {
        line.get_label(): line.get_ydata()
        for axes in health_curves(metrics).axes
        for line in axes.lines
        if line.get_label() in names
    }
    assert drawn.keys() == set(names) - {"delta_right"}
    assert all(np.allclose(values, names.index(name)) for name, values in drawn.items())
