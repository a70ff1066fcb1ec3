"""What a method says of one token: each formula with the weight with which grad log pi enters.

All are per token, of any shape: log-probabilities in nats. None overflows: a ratio of two
probabilities, and with it the weight of a token, counts at most exp(30) = 1.07e13 (as if the two
were no further apart), a log-probability at least -10,000 (so does -inf, of a token that cannot be
written; then without a gradient). Both are far beyond what a healthy run sees.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST = -1e4  # nats that a log-probability counts at least: no sum over words meets -inf
STEEPEST = 30.0  # nats: a ratio of probabilities counts up to exp(30)


def _log_ratio(over: Tensor, under: Tensor) -> Tensor:
    return over.clamp(min=LEAST) - under.clamp(min=LEAST)


def _with_slope(value: Tensor, slope: Tensor, of: Tensor) -> Tensor:
    """``value``, whose derivative by ``of`` is ``slope``."""
    return value.detach() + slope.detach() * (of - of.detach())


def excess(logp: Tensor, reference: Tensor) -> Tensor:
    """r - 1 with r = reference/pi, exact where the two are close: k3's weight of grad log pi.

    Without gradient.
    """
    return _log_ratio(reference, logp).detach().clamp(max=STEEPEST).expm1()


def k3(logp: Tensor, reference: Tensor) -> Tensor:
    """Schulman's k3 estimator of KL(pi || reference), from y ~ pi.

    r - 1 - log r with r = reference/pi, in nats; its expectation under pi is the KL.
    """
    log_ratio, slope = _log_ratio(reference, logp), excess(logp, reference)
    return _with_slope(slope - log_ratio.clamp(max=STEEPEST), slope, log_ratio)


def standardize(rewards: Tensor, scale: str = "std") -> Tensor:
    """[K] group-relative advantages of [K] rewards.

    Minus the mean, over the population standard deviation (``scale="std"``) or not (``"none"``).
    """
    centered = rewards - rewards.mean()
    return centered / (rewards.std(correction=0) + 1e-6) if scale == "std" else centered


def clipped(
    logp: Tensor, old: Tensor, advantage: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """PPO's per-token objective min(rho A, clip(rho, 1 - low, 1 + high) A), rho = pi/old.

    And the coefficient of grad logp in it: rho A, or 0 where the clip holds the gradient back.
    """
    rho = ratio(logp, old)
    plain = rho * advantage
    bounded = rho.clamp(1 - low, 1 + high) * advantage
    passes = ((rho >= 1 - low) | (advantage >= 0)) & ((rho <= 1 + high) | (advantage <= 0))
    return torch.minimum(plain, bounded), torch.where(passes, plain, 0.0).detach()


def trsft(logp: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Trust-region SFT (arXiv 2512.17636, eq. 3): the loss l(p), and the weight min(1, p/alpha).

    With that weight grad logp enters -grad l. l(p) = -log p where p >= alpha, else
    -log alpha + 1 - p/alpha: value and slope agree at alpha. 0 is SFT, 1 weights by p.
    """
    logp = logp.clamp(min=LEAST)
    p = logp.exp()
    if alpha == 0:
        return -logp, torch.ones_like(p)
    inside = p >= alpha
    loss = torch.where(inside, -logp, 1 - math.log(alpha) - p / alpha)
    return loss, torch.where(inside, 1.0, p / alpha).detach()


def shaped(logp: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """LUFFY's policy shaping (arXiv 2504.14945): the loss -p/(p + gamma), and its weight.

    With the weight gamma p/(p + gamma)^2 grad logp enters the negative gradient of the loss.
    """
    p = logp.exp()
    return -p / (p + gamma), (gamma * p / (p + gamma).square()).detach()


def ratio(logp: Tensor, old_logp: Tensor | None) -> Tensor:
    """rho = pi / pi_old of each token, with gradient; 1 where pi_old is the policy itself, None."""
    log_ratio = _log_ratio(logp, logp.detach() if old_logp is None else old_logp)
    value = log_ratio.clamp(max=STEEPEST).exp()
    return _with_slope(value, value, log_ratio)
