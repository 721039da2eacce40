"""The closed form of kappa against the blocks of a dense Hessian."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from flatnb._kappa import kappa_of_logits


def problem(n=4, d=3, m=2):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(d, m, generator=draw, dtype=torch.float64)
    phi = torch.randn(n, m, generator=draw, dtype=torch.float64)
    y = torch.arange(n) % d
    hessian = torch.autograd.functional.hessian(
        lambda w: F.cross_entropy(phi @ w.mT, y), weight
    )
    traces = torch.einsum("siti->st", hessian)
    return weight, phi, (weight @ weight.mT * traces).sum()


def test_of_logits_is_the_definition():
    weight, phi, kappa = problem()
    each = kappa_of_logits(phi, phi @ weight.mT, weight)
    torch.testing.assert_close(each.mean(), kappa)
    two = [t.expand(2, *t.shape) for t in (phi, phi @ weight.mT, weight)]
    torch.testing.assert_close(kappa_of_logits(*two), each.expand(2, -1))
