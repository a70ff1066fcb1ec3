"""Token scores against the naive way, and the small formulas by enumeration and by hand."""

import math

import pytest
import torch
import toys
from torch.autograd import gradcheck

from workbench import losses
from workbench.model import scores


def naive(hidden, head, targets):
    log_p = (hidden @ head.T).log_softmax(-1)
    return log_p.gather(-1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


@pytest.fixture(
    params=[2**23, 3 * 11, 1], ids=["one chunk", "three rows a chunk", "one row a chunk"]
)
def chunked(request, monkeypatch):
    monkeypatch.setattr(scores, "CHUNK_ELEMENTS", request.param)


def draw(n=7, d=5, v=11, dtype=torch.float64, scale=2.0):
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: (
        torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
    ).to(dtype)  # noqa: E731
    return make(n, d), make(v, d), torch.randint(v, (n,), generator=generator)


@pytest.mark.parametrize("train_head", [True, False])
@pytest.mark.parametrize("use_entropy", [True, False])
def test_token_scores_and_gradients_equal_the_naive_way(chunked, train_head, use_entropy):
    hidden, head, targets = draw()
    weights = (
        torch.sin(torch.arange(7.0, dtype=torch.float64) + 1),
        torch.cos(torch.arange(7.0, dtype=torch.float64)) * use_entropy,
    )
    results = []
    for function in (scores.token_scores, naive):
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_(train_head)
        logp, entropy = function(h, w, targets)
        (logp @ weights[0] + entropy @ weights[1]).backward()
        results.append([logp, entropy, h.grad] + [w.grad] * train_head)
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_token_scores_gradient_by_finite_differences():
    hidden, head, targets = draw(n=3, d=4, v=6)
    assert gradcheck(
        lambda h, w: scores.token_scores(h, w, targets),
        (hidden.requires_grad_(), head.requires_grad_()),
    )


@pytest.mark.parametrize("train_head", [True, False])
def test_token_scores_never_hold_the_whole_table_of_tokens_and_words(monkeypatch, train_head):
    """For 1,000 tokens and 1,500 words no tensor holds more than a chunk of 60,000 logits, forward
    and backward; the textbook's hold 1,500,000.
    """
    monkeypatch.setattr(scores, "CHUNK_ELEMENTS", 60_000)
    largest = {}
    for function in (scores.token_scores, naive):
        hidden, head = (
            torch.randn(1000, 8, requires_grad=True),
            torch.randn(1500, 8).requires_grad_(train_head),
        )
        with toys.Memory() as memory:
            sum(
                column.sum()
                for column in function(hidden, head, torch.zeros(1000, dtype=torch.long))
            ).backward()
        largest[function] = memory.largest
    assert largest == {scores.token_scores: 60_000, naive: 1_500_000}


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_token_scores_add_up_in_fp32(chunked, dtype, tolerance):
    hidden, head, targets = draw(n=9, d=16, v=33, dtype=dtype, scale=0.7)
    logp, entropy = scores.token_scores(hidden, head, targets)
    want_logp, want_entropy = naive(hidden.double(), head.double(), targets)
    assert logp.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logp.double(), want_logp, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(entropy.double(), want_entropy, rtol=tolerance, atol=tolerance)


def test_entropy_of_known_distributions():
    """Equal logits: log V. One logit 1,000 above the others: 0, and no NaN in value or gradient."""
    hidden = torch.tensor([[0.0], [1000.0]], requires_grad=True)
    head = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    logp, entropy = scores.token_scores(hidden, head, torch.tensor([2, 0]))
    torch.testing.assert_close(entropy, torch.tensor([math.log(4), 0.0]))
    torch.testing.assert_close(logp, torch.tensor([-math.log(4), 0.0]))
    (logp.sum() + entropy.sum()).backward()
    assert hidden.grad.isfinite().all()


def test_top_k_is_the_head_of_the_sorted_log_softmax(chunked):
    hidden, head, _ = draw()
    values, ids = scores.top_k(hidden, head, 4)
    want, order = (hidden @ head.T).log_softmax(-1).sort(-1, descending=True)
    torch.testing.assert_close(values, want[:, :4])
    assert torch.equal(ids, order[:, :4])
    # more than there are: all of them, and they are a distribution
    all_values, _ = scores.top_k(hidden, head, 100)
    torch.testing.assert_close(all_values.exp().sum(-1), torch.ones(7, dtype=torch.float64))


def test_k3_has_the_kl_as_its_expectation_under_the_policy():
    """Exact: sum over the three tokens of pi(y) k3(y) = sum pi log(pi / ref).

    With pi and ref exchanged it is not.
    """
    pi, ref = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.3, 0.3, 0.4]).double()
    kl = (pi * (pi / ref).log()).sum()
    torch.testing.assert_close((pi * losses.k3(pi.log(), ref.log())).sum(), kl)
    assert (pi * losses.k3(ref.log(), pi.log())).sum() - kl > 0.04
    assert (losses.k3(pi.log(), ref.log()) >= 0).all() and losses.k3(
        pi.log(), pi.log()
    ).abs().max() == 0


def test_standardise_by_hand():
    """Rewards 1, 0, 0, 1: mean 1/2, population std 1/2, advantages 1, -1, -1, 1.

    The sample std would give 0.866.
    """
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0])
    torch.testing.assert_close(
        losses.standardize(rewards), torch.tensor([1.0, -1.0, -1.0, 1.0]), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        losses.standardize(rewards, "none"), torch.tensor([0.5, -0.5, -0.5, 0.5])
    )
    # no contrast, no advantage, no division by zero
    assert losses.standardize(torch.ones(4)).abs().max() == 0


def test_clipped_by_hand():
    """rho = 1.5, clip at 1.2: held for A > 0, passed for A < 0. rho = 0.5, clip at 0.8: passed for
    A > 0, held for A < 0.
    """
    logp = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1]).log()
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    objective, coefficient = losses.clipped(logp, torch.zeros(5), advantage, 0.2, 0.2)
    torch.testing.assert_close(objective, torch.tensor([1.2, -1.5, 0.5, -0.8, 2.2]))
    torch.testing.assert_close(coefficient, torch.tensor([0.0, -1.5, 0.5, 0.0, 2.2]))


def test_clipped_coefficient_is_the_one_autograd_finds():
    generator = torch.Generator().manual_seed(0)
    logp = (torch.randn(500, generator=generator) * 0.4).requires_grad_()
    advantage = torch.randn(500, generator=generator)
    objective, coefficient = losses.clipped(logp, torch.zeros(500), advantage, 0.2, 0.28)
    objective.sum().backward()
    torch.testing.assert_close(coefficient, logp.grad)
    assert 0 < (coefficient == 0).sum() < 250  # both kinds are there
