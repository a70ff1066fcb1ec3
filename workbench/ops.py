"""Pure tensor maths: no models, no batches. Shapes: N tokens, D hidden size, V vocabulary.

Per-token scores come straight from hidden states, a chunk of tokens at a time, so that a [N, V] tensor of logits never exists: not in the
forward pass (each chunk is reduced and dropped) and not in the backward pass (each chunk is made again).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_ELEMENTS = 2**23  # logits alive at once: 32 MB in fp32


def _chunks(n: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _wide(tensor: Tensor) -> torch.dtype:
    """The type to add up in: fp32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _logits(hidden: Tensor, head: Tensor) -> Tensor:
    return torch.nn.functional.linear(hidden, head.to(hidden.dtype)).to(_wide(hidden))


class _TokenScores(torch.autograd.Function):
    """log p(target) and entropy for each row of ``hidden``; both have gradients.

    d logp / d logits = onehot(target) - p;   dH / d logits = -p (log p + H)

    A row's d logp / d hidden = (onehot(target) - p) head is made in the forward pass, while its logits are there, and scaled in the backward pass;
    the logits are made again only for the gradient of a trainable head or of the entropy.
    """

    @staticmethod
    def forward(ctx, hidden, head, targets):
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] and not ctx.needs_input_grad[1] else None
        logp = hidden.new_empty(len(hidden), dtype=_wide(hidden))
        entropy, norm = torch.empty_like(logp), torch.empty_like(logp)
        for rows in _chunks(len(hidden), len(head)):
            log_p = _logits(hidden[rows], head)
            norm[rows] = log_p.logsumexp(-1)
            log_p -= norm[rows, None]
            logp[rows] = log_p.gather(-1, targets[rows, None])[:, 0]
            p = log_p.exp()
            entropy[rows] = -log_p.mul_(p).nan_to_num_(0.0).sum(-1)
            if slope is not None:
                slope[rows] = head[targets[rows]] - p.to(hidden.dtype) @ head.to(hidden.dtype)
        ctx.save_for_backward(hidden, head, targets, norm, entropy, slope)
        return logp, entropy

    @staticmethod
    def backward(ctx, grad_logp, grad_entropy):
        hidden, head, targets, norm, entropy, slope = ctx.saved_tensors
        want_hidden, want_head, _ = ctx.needs_input_grad
        use_entropy = bool(grad_entropy.any())
        if slope is not None and not use_entropy:
            return slope * grad_logp[:, None].to(slope.dtype), None, None
        d_hidden = torch.empty_like(hidden) if want_hidden else None
        d_head = torch.zeros_like(head, dtype=_wide(head)) if want_head else None
        for rows in _chunks(len(hidden), len(head)):
            log_p = _logits(hidden[rows], head).sub_(norm[rows, None])
            p = log_p.exp()
            grad = p * -grad_logp[rows, None]
            if use_entropy:
                grad -= grad_entropy[rows, None] * p * (log_p.nan_to_num_(0.0, neginf=0.0) + entropy[rows, None])
            grad.scatter_add_(1, targets[rows, None], grad_logp[rows, None])
            grad = grad.to(hidden.dtype)
            if want_hidden:
                d_hidden[rows] = grad @ head.to(hidden.dtype)
            if want_head:
                d_head += grad.T @ hidden[rows]
        return d_hidden, None if d_head is None else d_head.to(head.dtype), None


def token_scores(hidden: Float[Tensor, "N D"], head: Float[Tensor, "V D"], targets: Int[Tensor, "N"]
                 ) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Log-probability of each target and entropy of each distribution softmax(hidden @ head.T), in nats, fp32, both differentiable."""
    return _TokenScores.apply(hidden, head, targets)


@torch.no_grad()
def top_k(hidden: Float[Tensor, "N D"], head: Float[Tensor, "V D"], k: int) -> tuple[Float[Tensor, "N k"], Int[Tensor, "N k"]]:
    """The k most likely tokens of each row: log-probabilities (normalised over the whole vocabulary) and ids, most likely first."""
    k = min(k, len(head))
    parts = []
    for rows in _chunks(len(hidden), len(head)):
        logits = _logits(hidden[rows], head)
        values, ids = logits.topk(k, dim=-1)
        parts.append((values - logits.logsumexp(-1, keepdim=True), ids))
    return torch.cat([values for values, _ in parts]), torch.cat([ids for _, ids in parts])


@torch.no_grad()
def ranks(hidden: Float[Tensor, "N D"], head: Float[Tensor, "V D"], targets: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
    """1 + the number of tokens more likely than the target: 1 where it is the first choice."""
    parts = []
    for rows in _chunks(len(hidden), len(head)):
        logits = _logits(hidden[rows], head)
        parts.append(1 + (logits > logits.gather(-1, targets[rows, None])).sum(-1))
    return torch.cat(parts)


def k3(logp: Tensor, reference: Tensor) -> Tensor:
    """Schulman's k3 estimator of KL(pi || reference) from y ~ pi: r - 1 - log r with r = reference/pi. Its expectation under pi is the KL."""
    log_ratio = reference - logp
    return log_ratio.exp() - 1 - log_ratio


def standardise(rewards: Tensor, scale: str = "std", eps: float = 1e-6) -> Tensor:
    """Group-relative advantages of [K] rewards: minus the mean, over the population standard deviation (``scale="std"``) or not (``"none"``)."""
    centred = rewards - rewards.mean()
    return centred / (rewards.std(correction=0) + eps) if scale == "std" else centred


def clipped(logp: Tensor, old: Tensor, advantage: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """PPO's per-token objective min(rho A, clip(rho, 1 - low, 1 + high) A), and the coefficient of grad logp in it: rho A, or 0 where
    the clip holds the gradient back."""
    ratio = (logp - old).exp()
    plain, held = ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage
    passes = ((ratio >= 1 - low) | (advantage >= 0)) & ((ratio <= 1 + high) | (advantage <= 0))
    return torch.minimum(plain, held), torch.where(passes, plain, 0.0).detach()
