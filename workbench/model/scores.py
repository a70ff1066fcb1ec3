"""What a model says of tokens, from its hidden states: pure tensor maths, no models, no batches.

    token_scores    log-probability of each target, entropy of each distribution
    divergence      how far the policy is from a teacher, and the credit that this gives each token
    top_k, ranks    the likeliest tokens; the place of the target among them

Shapes: N tokens, D hidden size, E the teacher's, V vocabulary, C tokens of a chunk. All in nats.

Per-token scores come straight from hidden states, a chunk of tokens at a time, so that a [N, V]
tensor of logits never exists: not in the forward pass (each chunk is reduced and dropped) and not
in the backward pass (each chunk is made again).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.losses import LEAST, STEEPEST

CHUNK_ELEMENTS = 2**23  # logits alive at once: 32 MB in fp32


def _chunks(n: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _wide(tensor: Tensor) -> torch.dtype:
    """The type to add up in: fp32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def capped(logits: Tensor, cap: float) -> Tensor:
    """Soft-capped to (-cap, cap) by tanh, or as they are for a cap of 0."""
    return (logits / cap).tanh() * cap if cap else logits


def _logits(hidden: Tensor, head: Tensor, cap: float = 0.0) -> Tensor:
    products = torch.nn.functional.linear(hidden, head.to(hidden.dtype)).to(_wide(hidden))
    return capped(products, cap)


def _through_cap(grad: Tensor, logits: Tensor, cap: float) -> Tensor:
    """The gradient at the products, in place of that at the capped logits."""
    return grad * (1 - (logits / cap).square()) if cap else grad


def _slope_buffer(ctx, hidden: Tensor) -> Tensor | None:
    """[N, D] room for d value / d hidden, where the head is not trained: then nothing else is asked
    for, and it is made in the forward pass.
    """
    return torch.empty_like(hidden) if ctx.needs_input_grad[:2] == (True, False) else None


class _TokenScores(torch.autograd.Function):
    """log p(target) and entropy for each row of ``hidden``; both have gradients.

    d logp / d logits = onehot(target) - p;   dH / d logits = -p (log p + H)

    A row's d logp / d hidden = (onehot(target) - p) head is made in the forward pass, while its
    logits are there, and scaled in the backward pass; the logits are made again only for the
    gradient of a trainable head or of the entropy. onehot - p is formed in fp32, before anything is
    rounded to 16 bits: of a confident token it is all that is left.
    """

    @staticmethod
    def forward(ctx, hidden, head, targets, cap):
        slope = _slope_buffer(ctx, hidden)
        logp = hidden.new_empty(len(hidden), dtype=_wide(hidden))
        entropy = torch.empty_like(logp)
        norm = torch.empty_like(logp)
        for rows in _chunks(len(hidden), len(head)):
            logits = _logits(hidden[rows], head, cap)
            norm[rows] = logits.logsumexp(-1)
            log_p = logits - norm[rows, None] if cap else logits.sub_(norm[rows, None])
            logp[rows] = log_p.gather(-1, targets[rows, None])[:, 0]
            p = log_p.exp()
            entropy[rows] = -log_p.mul_(p).nan_to_num_(0.0).sum(-1)
            if slope is not None:
                grad = p.neg_().scatter_(1, targets[rows, None], 0.0)
                grad.scatter_(1, targets[rows, None], -grad.sum(-1, keepdim=True))  # 1 - p(target)
                grad = _through_cap(grad, logits, cap).to(hidden.dtype)
                slope[rows] = grad @ head.to(hidden.dtype)
        ctx.save_for_backward(hidden, head, targets, norm, entropy, slope)
        ctx.cap = cap
        return logp, entropy

    @staticmethod
    def backward(ctx, grad_logp, grad_entropy):
        hidden, head, targets, norm, entropy, slope = ctx.saved_tensors
        need_hidden, need_head, *_ = ctx.needs_input_grad
        use_entropy = bool(grad_entropy.any())
        if slope is not None and not use_entropy:
            return (slope * grad_logp[:, None]).to(slope.dtype), None, None, None
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_head = torch.zeros_like(head, dtype=_wide(head)) if need_head else None
        for rows in _chunks(len(hidden), len(head)):
            log_p = _logits(hidden[rows], head, ctx.cap).sub_(norm[rows, None])
            p = log_p.exp()
            grad = p * -grad_logp[rows, None]
            if use_entropy:
                relative = log_p.nan_to_num_(0.0, neginf=0.0) + entropy[rows, None]
                grad -= grad_entropy[rows, None] * p * relative
            grad.scatter_add_(1, targets[rows, None], grad_logp[rows, None])
            if ctx.cap:
                grad = _through_cap(grad, _logits(hidden[rows], head, ctx.cap), ctx.cap)
            grad = grad.to(hidden.dtype)
            if need_hidden:
                d_hidden[rows] = grad @ head.to(hidden.dtype)
            if need_head:
                d_head += grad.T @ hidden[rows]
        return d_hidden, None if d_head is None else d_head.to(head.dtype), None, None


def token_scores(
    hidden: Float[Tensor, "N D"],
    head: Float[Tensor, "V D"],
    targets: Int[Tensor, N],
    cap: float = 0.0,
) -> tuple[Float[Tensor, N], Float[Tensor, N]]:
    """Log-probability of each target and entropy of each distribution softmax(hidden @ head.T).

    In nats, fp32, both differentiable. ``cap``: the logits are soft-capped to it (0: they are not).
    """
    return _TokenScores.apply(hidden, head, targets, cap)


class Divergence(NamedTuple):
    """What a comparison with a teacher says of each of N tokens. Only ``value`` has a gradient.

    ``credit`` is the coefficient of grad log pi(target) in -grad value: E over target ~ pi of
    credit * grad log pi(target) is -grad value. At most exp(30) is shown of one.
    """

    value: Float[Tensor, N]  # D_a(pi || q), nats
    credit: Float[Tensor, N]
    teacher: Float[Tensor, N]  # log q(target), nats
    # the policy's probability outside its k likeliest tokens; 0 where all are compared
    tail_mass: Float[Tensor, N]
    entropy: Float[Tensor, N]  # of the teacher, nats


def divergence(
    hidden: Float[Tensor, "N D"],
    head: Float[Tensor, "V D"],
    teacher_hidden: Float[Tensor, "N E"],
    teacher_head: Float[Tensor, "V F"],  # as wide, or half as wide with ``trust``
    targets: Int[Tensor, N],
    a: float,
    k: int = 0,
    clip: float = math.inf,
    caps: tuple[float, float] = (0.0, 0.0),
    trust: float | None = None,
) -> Divergence:
    """D_a of the policy pi = softmax(hidden @ head.T) from a teacher q, which is a constant.

    Differentiable in ``hidden`` and ``head``.

    a = 1: KL(pi || q); a = 0: KL(q || pi); between: (1-a) KL(pi || m) + a KL(q || m) with m = (1-a)
    pi + a q (arXiv 2601.20802 and its code). ``k`` > 0: over the policy's k likeliest tokens and
    one bucket for all others (eq. 11); without the bucket it could be negative. ``clip``: largest
    credit of any token of the vocabulary; it changes the gradient and not the value. ``caps``: what
    the policy's and the teacher's logits are soft-capped to. ``trust``: the teacher's logits are
    (1 - trust) of those of the first half of its states and trust of those of the second.
    """
    teacher = (teacher_hidden, teacher_head)
    options = (a, k, clip)
    return Divergence(*_Divergence.apply(hidden, head, *teacher, targets, options, caps, trust))


def _teacher_logits(hidden: Tensor, head: Tensor, cap: float, trust: float | None) -> Tensor:
    if trust is None:
        return _logits(hidden, head, cap)
    shared = head.shape[1] < hidden.shape[1]  # both halves go with one head
    heads = (head, head) if shared else head.chunk(2, dim=-1)
    halves = zip(hidden.chunk(2, dim=-1), heads)
    return torch.lerp(*(_logits(half, matrix, cap) for half, matrix in halves), trust)


class _Divergence(torch.autograd.Function):
    """With c_v the credit of token v, d D / d logit_v = -pi_v (c_v - sum_u pi_u c_u), for any c up
    to a constant:

        a = 1      c = log q - log pi
        a = 0      c = q / pi - 1
        between    c = (1 - a) (log m - log pi)

    All tokens of the bucket have the bucket's credit. For a = 0 pi_v c_v is formed as q_v - pi_v:
    the quotient overflows where the policy has all but excluded a token, and just there it counts.
    Chunks are made again in the backward pass, or, where the head is not trained, reduced to
    d D / d hidden in the forward pass.
    """

    @staticmethod
    def forward(ctx, hidden, head, teacher_hidden, teacher_head, targets, options, caps, trust):
        slope = _slope_buffer(ctx, hidden)
        value = hidden.new_empty(len(hidden), dtype=_wide(hidden))
        credit, teacher, tail, entropy = (torch.empty_like(value) for _ in range(4))
        for rows in _chunks(len(hidden), len(head)):
            logits = _logits(hidden[rows], head, caps[0])
            log_p = _log_softmax(logits)
            log_q = _log_softmax(
                _teacher_logits(teacher_hidden[rows], teacher_head, caps[1], trust)
            )
            value[rows], credits, pushed, tail[rows] = _credits(log_p, log_q, *options)
            credit[rows] = credits.gather(-1, targets[rows, None])[:, 0]
            teacher[rows] = log_q.gather(-1, targets[rows, None])[:, 0]
            entropy[rows] = -(log_q.exp() * log_q).sum(-1)
            if slope is not None:
                grad = _through_cap(_slope(log_p, credits, pushed), logits, caps[0])
                slope[rows] = grad.to(hidden.dtype) @ head.to(hidden.dtype)
        ctx.save_for_backward(hidden, head, teacher_hidden, teacher_head, slope)
        ctx.options, ctx.caps, ctx.trust = options, caps, trust
        ctx.mark_non_differentiable(credit, teacher, tail, entropy)
        return value, credit, teacher, tail, entropy

    @staticmethod
    def backward(ctx, grad_value, *_):
        hidden, head, teacher_hidden, teacher_head, slope = ctx.saved_tensors
        if slope is not None:
            return (slope * grad_value[:, None]).to(slope.dtype), *(None,) * 7
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_head = torch.zeros_like(head, dtype=_wide(head))
        for rows in _chunks(len(hidden), len(head)):
            logits = _logits(hidden[rows], head, ctx.caps[0])
            log_p = _log_softmax(logits)
            taught = _teacher_logits(teacher_hidden[rows], teacher_head, ctx.caps[1], ctx.trust)
            _, credits, pushed, _ = _credits(log_p, _log_softmax(taught), *ctx.options)
            grad = _slope(log_p, credits, pushed) * grad_value[rows, None]
            grad = _through_cap(grad, logits, ctx.caps[0]).to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[rows] = grad @ head.to(hidden.dtype)
            d_head += grad.T @ hidden[rows]
        return d_hidden, d_head.to(head.dtype), *(None,) * 6


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1).clamp_(min=LEAST)


def _slope(log_p: Tensor, credits: Tensor, pushed: Tensor | None) -> Tensor:
    """[C, V] d D / d logits. ``pushed``: pi_v c_v, where it is not simply that product."""
    p = log_p.exp()
    if pushed is None:
        return p * ((p * credits).sum(-1, keepdim=True) - credits)
    return p * pushed.sum(-1, keepdim=True) - pushed


def _credits(
    log_p: Tensor, log_q: Tensor, a: float, k: int, clip: float
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """[C] divergences, [C, V] credits, for a = 0 [C, V] pi_v c_v, and [C] tail masses, from [C, V]
    log-probabilities.
    """
    vocabulary, whole = log_p.shape[-1], log_p
    ids = log_p.topk(k, sorted=False).indices if 0 < k < vocabulary else None
    if ids is not None:
        log_p, log_q = _bucketed(log_p, ids), _bucketed(log_q, ids)
    p, q, delta = log_p.exp(), log_q.exp(), log_q - log_p
    pushed = None
    if a == 1:
        value, credits = -(p * delta).sum(-1), delta
    elif a == 0:
        value, credits = (q * delta).sum(-1), delta.clamp(max=STEEPEST).expm1()
        pushed = q - p if clip == math.inf else torch.minimum(q - p, clip * p)
    else:  # log m - log pi, from the larger of the two; exactly 0 where delta is
        from_p = (a * delta.expm1()).log1p()
        from_q = delta + ((1 - a) * (-delta).expm1()).log1p()
        above = torch.where(delta <= 0, from_p, from_q)
        value = a * (q * (delta - above)).sum(-1) - (1 - a) * (p * above).sum(-1)
        credits = (1 - a) * above
    credits = credits.clamp(max=clip)
    if ids is None:
        return value, credits, pushed, torch.zeros_like(value)
    by_token = credits[:, -1:].repeat(1, vocabulary).scatter_(-1, ids, credits[:, :-1])
    if pushed is not None:
        pushed = (whole.exp() * credits[:, -1:]).scatter_(-1, ids, pushed[:, :-1])
    return value, by_token, pushed, p[:, -1]


def _bucketed(log_p: Tensor, ids: Tensor) -> Tensor:
    """[C, k + 1] the log-probabilities at ``ids``, and that of all others together.

    A k that holds everything leaves 1e-7, as in the authors' code.
    """
    likeliest = log_p.gather(-1, ids)
    rest = (-likeliest.logsumexp(-1, keepdim=True).clamp(max=-1e-7).expm1()).log()
    return torch.cat([likeliest, rest], dim=-1)


@torch.no_grad()
def top_k(
    hidden: Float[Tensor, "N D"], head: Float[Tensor, "V D"], k: int, cap: float = 0.0
) -> tuple[Float[Tensor, "N k"], Int[Tensor, "N k"]]:
    """The k most likely tokens of each row, most likely first: log-probabilities and ids.

    The log-probabilities are normalised over the whole vocabulary, not over the k.
    """
    k = min(k, len(head))
    log_probs, tokens = [], []
    for rows in _chunks(len(hidden), len(head)):
        logits = _logits(hidden[rows], head, cap)
        values, ids = logits.topk(k, dim=-1)
        log_probs.append(values - logits.logsumexp(-1, keepdim=True))
        tokens.append(ids)
    return torch.cat(log_probs), torch.cat(tokens)


@torch.no_grad()
def ranks(
    hidden: Float[Tensor, "N D"], head: Float[Tensor, "V D"], targets: Int[Tensor, N]
) -> Int[Tensor, N]:
    """1 + the number of tokens more likely than the target: 1 where it is the first choice."""
    parts = []
    for rows in _chunks(len(hidden), len(head)):
        logits = _logits(hidden[rows], head)
        parts.append(1 + (logits > logits.gather(-1, targets[rows, None])).sum(-1))
    return torch.cat(parts)
