"""Numbers at their edges: tokens that are all but certain, in 16 bits, and ratios that overflow."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_credit_is_gradient import DISTILLED, METHODS, disturbed, some_groups

from workbench import losses
from workbench.core import Scores
from workbench.methods import scope
from workbench.model import scores
from workbench.model.batch import collate

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EXTREMES = [0.0, 1e-6, 1e2, -1e2, 1e3, -1e3, math.inf]


def words(confident: bool, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """[24, 64] hidden states, [1000, 64] head, a teacher's states and [24] targets.

    Confident: the median probability of a target is above .999.
    """
    torch.manual_seed(0)
    head = torch.randn(1000, 64)
    targets = torch.randint(1000, (24,))
    hidden = head[targets] * 0.3 + 0.02 * torch.randn(24, 64)
    hidden = hidden if confident else 0.02 * torch.randn(24, 64)
    teacher = 0.8 * hidden + 0.05 * torch.randn(24, 64)
    return hidden.to(dtype), head.to(dtype), teacher.to(dtype), targets


def slopes(value, hidden: torch.Tensor) -> torch.Tensor:
    hidden = hidden.detach().requires_grad_()
    value(hidden).backward()
    return hidden.grad.double()


def error(ours: torch.Tensor, right: torch.Tensor) -> float:
    """Relative, of all rows together."""
    return float((ours - right).norm() / right.norm())


def naive(kind: str, hidden, head, teacher, targets) -> torch.Tensor:
    """What is differentiated, by textbook formulas on logits in at least fp32."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    log_p, log_q = ((states @ head.T).to(wide).log_softmax(-1) for states in (hidden, teacher))
    p, q = log_p.exp(), log_q.exp()
    if kind == "logp":
        return log_p.gather(-1, targets[:, None]).sum()
    if kind == "entropy":
        return -(p * log_p).sum()
    if kind == "reverse":
        return (p * (log_p - log_q)).sum()
    if kind == "forward":
        return (q * (log_q - log_p)).sum()
    log_m = ((p + q) / 2).log()
    return 0.5 * (p * (log_p - log_m) + q * (log_q - log_m)).sum()


def ours(kind: str, hidden, head, teacher, targets) -> torch.Tensor:
    if kind in ("logp", "entropy"):
        return scores.token_scores(hidden, head, targets)[kind == "entropy"].sum()
    a = {"reverse": 1.0, "forward": 0.0, "middle": 0.5}[kind]
    return scores.divergence(hidden, head, teacher, head, targets, a).value.sum()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("confident", [True, False])
@pytest.mark.parametrize("kind", ["logp", "entropy", "reverse", "forward", "middle"])
@pytest.mark.parametrize("train_head", [True, False])
def test_gradients_are_as_exact_as_plain_torch_in_the_same_type(kind, confident, dtype, train_head):
    """Against fp64 on the same numbers. The rounding of the logits is everybody's. Where the policy
    is certain, next to nothing else is left of a gradient, and it is the CPU's own: with AVX-512
    that of the same products in another shape was 2.7 times as large.
    """
    given = words(confident, dtype)
    hidden, head, *rest = given
    if confident:
        certain = (hidden.double() @ head.double().T).softmax(-1).gather(-1, rest[1][:, None])
        assert certain.median() > 0.999
    head = head.requires_grad_(train_head)
    right = slopes(
        lambda h: naive(kind, h, *(x.double() for x in (head.detach(), rest[0])), rest[1]),
        hidden.double(),
    )
    plain = error(slopes(lambda h: naive(kind, h, head, *rest), hidden), right)
    mine = error(slopes(lambda h: ours(kind, h, head, *rest), hidden), right)
    assert mine <= (4 if confident else 1.5) * plain + torch.finfo(dtype).eps, (mine, plain)


def test_the_whole_kind_that_cancelled():
    """hidden 256, vocabulary 4,000, median p .999, bf16: the row's gradient points where fp64's
    does; formed in bf16 from two rounded vectors, it did not (cosine .004).
    """
    torch.manual_seed(0)
    head, targets = torch.randn(4000, 256).bfloat16(), torch.randint(4000, (64,))
    hidden = (head[targets].float() * 0.06).bfloat16()
    rows = (hidden.double(), head.double(), hidden.double(), targets)
    right = slopes(lambda h: naive("logp", h, *rows[1:]), rows[0])
    for train_head in (False, True):
        head = head.detach().requires_grad_(train_head)
        mine = slopes(lambda h: ours("logp", h, head, hidden, targets), hidden)
        assert torch.cosine_similarity(mine, right).median() > 0.99


@pytest.mark.parametrize("a", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("clip", [math.inf, 5.0])
@pytest.mark.parametrize("far", [1e2, 1e3])
def test_a_teacher_that_wants_what_the_policy_excludes(a, k, clip, far):
    """Forward KL without a clip: d D / d logits is p - q, whatever q / p is."""
    logits = torch.tensor([[far, 0.0, 1.0, -1.0, 2.0], [0.0, far, 1.0, -1.0, 2.0]])
    other = torch.tensor([[0.0, far, 1.0, -1.0, 2.0], [0.0, far - 0.5, 1.0, -1.0, 2.0]])
    hidden, eye = logits.clone().requires_grad_(), torch.eye(5)
    found = scores.divergence(hidden, eye, other, eye, torch.tensor([1, 0]), a, k, clip)
    found.value.sum().backward()
    assert all(column.isfinite().all() for column in found) and hidden.grad.isfinite().all()
    if a == 0 and not k and clip == math.inf:
        right = logits.double().softmax(-1) - other.double().softmax(-1)
        torch.testing.assert_close(hidden.grad.double(), right, atol=1e-6, rtol=1e-5)
        assert float(found.value[0]) == pytest.approx(far, rel=1e-5)


def test_a_word_that_both_exclude_changes_nothing():
    """As where a vocabulary is padded and the padding is masked by -inf."""
    log_p, log_q = torch.tensor([[0.7, 0.3, 0.0]]).log(), torch.tensor([[0.2, 0.8, 0.0]]).log()
    for a in (0.0, 0.5, 1.0):
        padded = scores._credits(*(x.clamp(min=scores.LEAST) for x in (log_p, log_q)), a, 0, 1e9)
        plain = scores._credits(log_p[:, :2], log_q[:, :2], a, 0, 1e9)
        torch.testing.assert_close(padded[0], plain[0])
        torch.testing.assert_close(padded[1][:, :2], plain[1])


@pytest.mark.parametrize("apart", EXTREMES)
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
def test_losses_of_far_ratios_are_finite_and_their_credit_is_the_slope(apart, advantage):
    """Of log-probs ``apart``, in both directions; an advantage of 0 does not become NaN."""
    for top, bottom in ((-1.0, -1.0 - apart), (-1.0 - apart, -1.0)):
        logp = torch.tensor([top], requires_grad=True)
        other = torch.tensor([bottom])
        objective, credit = losses.clipped(logp, other, torch.tensor([advantage]), 0.2, 0.2)
        rho = losses.ratio(logp, other)
        penalty = losses.k3(logp, other)
        wanted = {
            objective: credit,
            advantage * rho: advantage * rho.detach(),
            penalty: -losses.excess(logp, other),
        }
        for value, slope in wanted.items():
            [gradient] = torch.autograd.grad(value.sum(), logp, retain_graph=True)
            assert value.isfinite() and gradient.isfinite() and slope.isfinite()
            if top > losses.LEAST:
                torch.testing.assert_close(gradient, slope)
        assert penalty >= 0 and 0 <= rho <= math.exp(30) * 1.0001


@pytest.mark.parametrize("logp", [0.0, -1e-6, -1e2, -1e3, -math.inf])
def test_imitation_of_what_is_impossible_is_finite(logp):
    for loss in (
        lambda x: losses.trsft(x, 0.0),
        lambda x: losses.trsft(x, 0.1),
        lambda x: losses.shaped(x, 0.1),
    ):
        value = torch.tensor([logp], requires_grad=True)
        result, weight = loss(value)
        result.sum().backward()
        assert result.isfinite() and weight.isfinite() and value.grad.isfinite()


@pytest.mark.parametrize("apart", [1e-6, 1e-5, 1e-4, 1e-3])
def test_k3_of_two_that_are_close(apart):
    """x^2 / 2 and its slope, where exp(x) - 1 - x in fp32 is noise. The difference of the two
    log-probs has its own rounding.
    """
    logp = torch.tensor([-1e-3], requires_grad=True)
    other = torch.tensor([-1e-3 + apart])
    x = float(other.double() - logp.detach().double())
    value = losses.k3(logp, other)
    value.sum().backward()
    assert float(value) == pytest.approx(math.expm1(x) - x, rel=2e-3, abs=1e-13)
    assert float(logp.grad) == pytest.approx(-math.expm1(x), rel=1e-4)


@pytest.mark.parametrize("apart", [1e2, -1e2, 1e3, -1e3])
@pytest.mark.parametrize("method", [*METHODS.values(), *DISTILLED.values()], ids=str)
def test_every_method_is_finite_on_far_scores(method, apart):
    """The old policy, the reference and the teacher ``apart`` nats from the policy."""
    credits = method.credit(some_groups(), disturbed()[0])
    for batch in collate(credits, 0, None):
        mask = batch.mask.float()
        logp = (-1.0 * mask - max(-apart, 0.0) * mask).requires_grad_()
        far = (logp.detach() - apart) * mask
        rest = torch.rand(mask.shape) * mask
        given = Scores(logp, rest, far, far, 0.3 * logp, far - logp.detach(), rest, rest)
        loss = method.loss(given, replace(batch, old_logp=far))
        [gradient] = torch.autograd.grad(loss.value, logp)
        for number in (loss.value, loss.per_token, loss.credit, gradient):
            assert number.isfinite().all()


def test_scope_weights_of_what_nobody_would_write():
    sure, unlikely, impossible = ([0.0, -1e-6], [-1e2, -1e3], [-1e3, -math.inf])
    perplexities = [scope.perplexity(row) for row in (sure, unlikely, impossible)]
    for power in (1.0, -1.0, 0.0, 50.0):
        shares = scope.weights(perplexities, power)
        assert shares.sum() == pytest.approx(1) and (shares >= 0).all()
    assert perplexities[0] < perplexities[1] < math.inf
