"""Token scores against the naive way."""

import math

import pytest
import torch
import toys
from torch.autograd import gradcheck

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

    def make(*shape):
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (values * scale).to(dtype)

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
