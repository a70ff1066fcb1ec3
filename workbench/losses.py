"""What a method says of one token: each formula with the weight with which grad log pi enters.

All are per token, of any shape: log-probabilities in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def k3(logp: Tensor, reference: Tensor) -> Tensor:
    """Schulman's k3 estimator of KL(pi || reference), from y ~ pi.

    r - 1 - log r with r = reference/pi, in nats; its expectation under pi is the KL.
    """
    log_ratio = reference - logp
    return log_ratio.exp() - 1 - log_ratio


def standardize(rewards: Tensor, scale: str = "std", eps: float = 1e-6) -> Tensor:
    """[K] group-relative advantages of [K] rewards.

    Minus the mean, over the population standard deviation (``scale="std"``) or not (``"none"``).
    """
    centered = rewards - rewards.mean()
    return centered / (rewards.std(correction=0) + eps) if scale == "std" else centered


def clipped(
    logp: Tensor, old: Tensor, advantage: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """PPO's per-token objective min(rho A, clip(rho, 1 - low, 1 + high) A), rho = pi/old.

    And the coefficient of grad logp in it: rho A, or 0 where the clip holds the gradient back.
    """
    ratio = (logp - old).exp()
    plain = ratio * advantage
    bounded = ratio.clamp(1 - low, 1 + high) * advantage
    passes = ((ratio >= 1 - low) | (advantage >= 0)) & ((ratio <= 1 + high) | (advantage <= 0))
    return torch.minimum(plain, bounded), torch.where(passes, plain, 0.0).detach()


def trsft(logp: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Trust-region SFT (arXiv 2512.17636, eq. 3): the loss l(p), and the weight min(1, p/alpha).

    With that weight grad logp enters -grad l. l(p) = -log p where p >= alpha, else
    -log alpha + 1 - p/alpha: value and slope agree at alpha. 0 is SFT, 1 weights by p.
    """
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
    return (logp - (logp.detach() if old_logp is None else old_logp)).exp()
