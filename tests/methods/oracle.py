"""Gradients by an independent road: a net as a function of its parameters, in
float64.
"""

from __future__ import annotations

from collections.abc import Callable

import inputs
import torch
from inputs import Problem
from torch import Tensor, nn
from torch.func import functional_call

from flatnb.methods import Method

Params = dict[str, Tensor]


def params(problem: Problem) -> Params:
    return {name: p.detach().clone() for name, p in problem.model.named_parameters()}


def losses(problem: Problem, at: Params) -> Tensor:
    return problem.loss(functional_call(problem.model, at, problem.x), problem.y)


def grad(
    problem: Problem,
    at: Params,
    reduce: Callable[[Tensor], Tensor] = lambda v: v.sum() / len(v),
) -> Params:
    """Gradient of the reduced losses with respect to every parameter, at `at`."""
    at = {name: p.detach().requires_grad_() for name, p in at.items()}
    values = torch.autograd.grad(reduce(losses(problem, at)), list(at.values()))
    return dict(zip(at, values, strict=True))


def add(a: Params, b: Params, factor: float | Tensor = 1.0) -> Params:
    return {name: a[name] + factor * b[name] for name in a}


def length(a: Params) -> Tensor:
    return torch.cat([t.flatten() for t in a.values()]).square().sum().sqrt()


def made_by(method: Method, problem: Problem | None = None) -> Params:
    """The gradient the method leaves."""
    problem = inputs.exact() if problem is None else problem
    problem.model.zero_grad()
    method.backward(problem.model, problem)
    return {name: p.grad.clone() for name, p in problem.model.named_parameters()}


def assert_equal(a: Params, b: Params, tol: float = 1e-12) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tol, atol=tol)


def differ(a: Params, b: Params, by: float = 1e-4) -> bool:
    return any(float((a[name] - b[name]).abs().max()) > by for name in a)


class Surface(nn.Module):
    """A function of one vector of parameters, as a net: `closure` gives one loss."""

    def __init__(self, w: Tensor, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.f = nn.Parameter(w.clone()), f

    def closure(self) -> Tensor:
        return self.f(self.weight).reshape(1)

    def grad_by(self, method: Method) -> Tensor:
        self.weight.grad = None
        method.backward(self, self.closure)
        assert self.weight.grad is not None
        return self.weight.grad.clone()


NAN, INF = float("nan"), float("inf")
# What no real hyperparameter >= 0 may be, and the error.
BAD_REALS = [
    (-0.1, ValueError),
    (NAN, ValueError),
    (INF, ValueError),
    ("0.1", ValueError),
    (None, ValueError),
    (True, ValueError),
    (1j, ValueError),
    (torch.tensor([0.1, -0.1]), ValueError),
    (torch.tensor([0.1, NAN]), ValueError),
    (torch.zeros(2, 2), ValueError),
    (torch.empty(0), ValueError),
]
BAD_COUNTS = [(0, ValueError), (-1, ValueError), (1.0, ValueError), (True, ValueError)]
