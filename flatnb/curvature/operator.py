"""Hessian and Gauss-Newton matrices of the mean loss as operators: products only.

    H v = d/dw (grad L(w) . v)                HessianOperator        (Pearlmutter 1994)
    G v = sum_b (n_b/N) J_b' (H_l (J_b v))    GaussNewtonOperator    (Schraudolph 2002)

where J is the Jacobian of the outputs and H_l the Hessian of the loss in them. The
gradient's graph is kept; a product is a backward pass through it, 1 to 2 gradients.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flatnb._checks import shown
from flatnb.curvature.objective import (
    Batches,
    Chunk,
    LossFunction,
    Objective,
    Selection,
    check_loss,
    flat_gradient,
)

_Product = Callable[[Tensor], Tensor]  # from v (size,)
# Of <u, H v> - <v, H u> relative to |H v|: rounding is far below, an error far above.
_ASYMMETRY = {torch.float32: 1e-2, torch.float64: 1e-6}


def check_operator(operator: Any) -> None:
    """Raise where a measure of an operator is given the net itself, say."""
    if not hasattr(operator, "rows"):
        raise TypeError(
            f"operator={shown(operator)}; allowed: an operator such as "
            "HessianOperator(model, loss_fn, batches)"
        )


class HessianOperator:
    """The Hessian (size, size) of the mean loss, in the order of `names`.

    `operator @ v` takes (size,), or (size, k) as k vectors; `products` counts them all.

    Args:
        model: with `loss_fn`, `batches` and `params`, what `Objective` takes and checks.
        keep_graph: false, for data whose graph does not fit in memory, evaluates the
            batches again for each product, one after another: about twice the time.

    Raises:
        ValueError: a matrix that is not symmetric: a second derivative is wrong.

    >>> data = [(torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1]))]
    >>> operator = HessianOperator(nn.Linear(3, 2), nn.functional.cross_entropy, data)
    >>> (operator @ torch.ones(8)).shape
    torch.Size([8])
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: Batches,
        params: Selection | None = None,
        *,
        keep_graph: bool = True,
    ) -> None:
        self.objective = Objective(model, loss_fn, batches, params)
        self.names, self.size = self.objective.names, self.objective.size
        self.dtype, self.device = self.objective.dtype, self.objective.device
        self.shape = (self.size, self.size)
        self.products = 0
        self._check_symmetric()
        self._kept: list[_Product] = []  # one per chunk, each with its graph
        if keep_graph:
            with torch.enable_grad(), self.objective.evaluating():
                self._kept = [self._linearize(c) for c in self.objective.chunks]

    def __matmul__(self, v: Tensor) -> Tensor:
        if v.ndim not in (1, 2) or len(v) != self.size:
            raise ValueError(
                f"v is {tuple(v.shape)}; allowed: ({self.size},) or ({self.size}, k)"
            )
        v = v.to(self.device, self.dtype)
        return self.rows(v[None])[0] if v.ndim == 1 else self.rows(v.mT).mT

    def rows(self, vectors: Tensor) -> Tensor:
        """Products with the k rows of (k, size), as rows."""
        self.products += len(vectors)
        total, chunks = torch.zeros_like(vectors), self.objective.chunks
        with torch.enable_grad(), self.objective.evaluating():
            for product in self._kept or map(self._linearize, chunks):
                total += torch.stack([product(v) for v in vectors])
                del product  # and its graph, before the next one is made
        return total

    def dense(self) -> Tensor:
        """The matrix (size, size), by one product per column: for small nets."""
        matrix = self.rows(torch.eye(self.size, dtype=self.dtype, device=self.device))
        return (matrix + matrix.mT) / 2

    def _linearize(self, chunk: Chunk) -> _Product:
        """The product over one batch, with the graph it runs through."""
        objective, params = self.objective, self.objective.params
        loss = chunk.weight * objective.chunk_loss(chunk, params)
        check_loss(loss)
        slope = flat_gradient(loss, params, create_graph=True)

        def product(v: Tensor) -> Tensor:
            if not slope.requires_grad:  # of a loss linear in the parameters
                return torch.zeros_like(v)
            return flat_gradient(slope, params, v, retain_graph=True)

        return product

    def _check_symmetric(self) -> None:
        """Refuse wrong second derivatives: <u, H v> = <v, H u>, on a few examples."""
        objective, generator = self.objective, torch.Generator().manual_seed(0)
        draws = torch.randn(4, self.size, generator=generator)
        vectors = draws.to(self.device, self.dtype)
        chunk = Chunk(*objective.sample(), 1.0)
        with torch.enable_grad(), objective.evaluating():
            loss = abs(objective.chunk_loss(chunk, objective.params).item())
            product = self._linearize(chunk)
            products = torch.stack([product(v) for v in vectors]).double()
        inner = vectors.double() @ products.mT
        # Curvature this far below the loss is rounding.
        floor = loss * torch.finfo(self.dtype).eps ** 0.5
        size = products.norm(dim=1).max().clamp(min=floor)
        if (inner - inner.mT).abs().max() > _ASYMMETRY[self.dtype] * size:
            raise ValueError(
                "the second derivative of the model is wrong, <u, H v> is not <v, H u>: a "
                "backward pass is not differentiable (PyTorch's weight norm is not); "
                "remove its layer's parametrization, or leave it out of params"
            )


class GaussNewtonOperator(HessianOperator):
    """The generalized Gauss-Newton matrix G = mean J' H_l J, as `HessianOperator`.

    Positive semidefinite for a loss convex in the outputs, a single tensor; the Fisher
    matrix for softmax cross-entropy.

    >>> net, data = nn.Linear(3, 2), [(torch.eye(3), torch.tensor([0, 1, 1]))]
    >>> operator = GaussNewtonOperator(net, nn.functional.cross_entropy, data)
    >>> bool((torch.linalg.eigvalsh(operator.dense()) > -1e-6).all())
    True
    """

    def _linearize(self, chunk: Chunk) -> _Product:
        objective, params = self.objective, self.objective.params
        outputs = objective.outputs(chunk.x, params)
        check_outputs(outputs)
        leaf = outputs.detach().requires_grad_()
        loss = chunk.weight * objective.loss_fn(leaf, chunk.y)
        check_loss(loss)
        (slope,) = torch.autograd.grad(loss, leaf, create_graph=True)
        # J v is the derivative of J' u in u: two backward passes make it.
        dummy = torch.zeros_like(outputs, requires_grad=True)
        pulled = flat_gradient(outputs, params, dummy, create_graph=True)

        def product(v: Tensor) -> Tensor:
            if not slope.requires_grad:  # of a loss linear in the outputs
                return torch.zeros_like(v)
            (pushed,) = torch.autograd.grad(pulled, dummy, v, retain_graph=True)
            (curved,) = torch.autograd.grad(slope, leaf, pushed, retain_graph=True)
            return flat_gradient(outputs, params, curved, retain_graph=True)

        return product


def check_outputs(outputs: Any) -> None:
    if not isinstance(outputs, Tensor):
        raise ValueError(f"the outputs are {type(outputs)}; allowed: one tensor")
