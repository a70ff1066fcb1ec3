"""Losses scaled up for fp16, which has no numbers under 6e-8.

The gradient of a mean over many tokens is smaller in most places: unscaled it is lost. So the loss
is multiplied before the backward pass and the gradient divided after it (arXiv 1710.03740, section
3.2), by a number that follows what fits, with the rules and constants of torch.amp.GradScaler. In
few lines of our own, because whether the gradient is finite is known here from its norm, which all
ranks have alike, also of sharded weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

PATIENCE = 2000  # finite gradients until a larger scale is tried


@dataclass
class LossScale:
    """A power of two, halved by a gradient that is not finite, doubled after ``PATIENCE`` that are.

    Raises ValueError for what is no scale.
    """

    value: float = 2.0**16
    finite: int = 0  # gradients one after the other

    def __post_init__(self):
        if not (0 < self.value < math.inf and self.finite >= 0):
            raise ValueError(f"a loss cannot be scaled by {self.value}")

    @torch.no_grad()
    def remove(self, parameters: Iterable[Tensor]) -> None:
        """From their gradients."""
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(self.value)

    def follow(self, finite: bool) -> None:
        """Whether the gradient was finite."""
        self.finite = self.finite + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.finite == PATIENCE:
            self.value, self.finite = 2 * self.value, 0
