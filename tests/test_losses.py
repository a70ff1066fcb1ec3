"""The formulas of one token, by enumeration and by hand."""

import torch

from workbench import losses


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


def test_standardize_by_hand():
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
