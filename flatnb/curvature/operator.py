"""Hessian and Gauss-Newton matrices of the mean loss as operators: products only.

    H v = d/dw (grad L(w) . v)                HessianOperator        (Pearlmutter 1994)
    G v = sum_b (n_b/N) J_b' (H_l (J_b v))    GaussNewtonOperator    (Schraudolph 2002)

where J is the Jacobian of the outputs and H_l the Hessian of the loss in them. The
graph of the gradient is built once and kept; a product is one more backward pass through
it and costs 1 to 2 gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flatnb.curvature.objective import (
    Batches,
    Chunk,
    LossFunction,
    Objective,
    Selection,
    check_loss,
    flatten,
)

_Product = Callable[[Tensor], Tensor]  # from v (size,)
# Of <u, H v> - <v, H u> relative to |H v|: rounding is far below, an error far above.
_ASYMMETRY = {torch.float32: 1e-2, torch.float64: 1e-6}


class HessianOperator:
    """The Hessian (size, size) of the mean loss, in the order of `names`.

    `operator @ v` takes a vector (size,), or (size, k) as k vectors; `products` counts
    the vectors so far.

    Args:
        model, loss_fn, batches, params: as for `Objective`, which raises ValueErrors.
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
        self._graphs: list[_Product] = []
        if keep_graph:
            with self._recording():
                self._graphs = [self._linearize(c) for c in self.objective.chunks]

    def __matmul__(self, v: Tensor) -> Tensor:
        if v.ndim not in (1, 2) or len(v) != self.size:
            raise ValueError(
                f"v is {tuple(v.shape)}; allowed: ({self.size},) or ({self.size}, k)"
            )
        v = v.to(self.device, self.dtype)
        return self._product(v) if v.ndim == 1 else self.rows(v.mT.contiguous()).mT

    def rows(self, vectors: Tensor) -> Tensor:
        """Products with the k rows of (k, size), as rows."""
        return torch.stack([self._product(v) for v in vectors])

    def dense(self) -> Tensor:
        """The matrix (size, size), by one product per column: for small nets."""
        matrix = self.rows(torch.eye(self.size, dtype=self.dtype, device=self.device))
        return (matrix + matrix.mT) / 2

    def _product(self, v: Tensor) -> Tensor:
        self.products += 1
        zero, chunks = torch.zeros_like(v), self.objective.chunks
        if self._graphs:
            with self.objective.arithmetic():
                return sum((graph(v) for graph in self._graphs), zero)
        with self._recording():
            return sum((self._linearize(chunk)(v) for chunk in chunks), zero)

    @contextmanager
    def _recording(self) -> Iterator[None]:
        with torch.enable_grad(), self.objective.evaluating(), _ComposedWeightNorm():
            yield

    def _linearize(self, chunk: Chunk) -> _Product:
        """The product over one batch, with the graph it runs through."""
        objective, params = self.objective, self.objective.params
        loss = chunk.weight * objective.chunk_loss(chunk, params)
        check_loss(loss)
        grads = torch.autograd.grad(
            loss, params, create_graph=True, materialize_grads=True
        )
        # A gradient that does not depend on any parameter adds nothing to the Hessian.
        live = [i for i, g in enumerate(grads) if g.requires_grad]
        outputs = [grads[i] for i in live]

        def product(v: Tensor) -> Tensor:
            if not live:
                return torch.zeros_like(v)
            parts = objective.split(v)
            directions = [parts[i] for i in live]
            grads = torch.autograd.grad(
                outputs, params, directions, retain_graph=True, materialize_grads=True
            )
            return flatten(grads)

        return product

    def _check_symmetric(self) -> None:
        """Refuse wrong second derivatives: <u, H v> = <v, H u>, on a few examples."""
        objective, generator = self.objective, torch.Generator().manual_seed(0)
        draws = torch.randn(2, self.size, generator=generator)
        u, v = draws.to(self.device, self.dtype)
        chunk = Chunk(*objective.sample(), 1.0)
        with self._recording():
            loss = abs(objective.chunk_loss(chunk, objective.params).item())
            product = self._linearize(chunk)
            hu, hv = product(u).double(), product(v).double()
        # Curvature this far below the loss is rounding.
        size = max(hu.norm(), hv.norm(), loss * torch.finfo(self.dtype).eps ** 0.5)
        if (u.double() @ hv - v.double() @ hu).abs() > _ASYMMETRY[self.dtype] * size:
            raise ValueError(
                "the second derivative of the model is wrong, <u, H v> is not <v, H u>: a "
                "backward pass is not differentiable; leave its layer out of params"
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
        outputs = objective.outputs(objective.move(chunk.x), params)
        check_outputs(outputs)
        leaf = outputs.detach().requires_grad_()
        loss = chunk.weight * objective.loss_fn(leaf, objective.move(chunk.y))
        check_loss(loss)
        (slope,) = torch.autograd.grad(loss, leaf, create_graph=True)
        # J v is the derivative of J' u in u: two backward passes make it.
        dummy = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(
            outputs, params, dummy, create_graph=True, materialize_grads=True
        )
        live = [i for i, g in enumerate(pulled) if g.requires_grad]
        linear = [pulled[i] for i in live]

        def product(v: Tensor) -> Tensor:
            if not live or not slope.requires_grad:
                return torch.zeros_like(v)
            parts = objective.split(v)
            directions = [parts[i] for i in live]
            (pushed,) = torch.autograd.grad(
                linear, dummy, directions, retain_graph=True
            )
            (curved,) = torch.autograd.grad(slope, leaf, pushed, retain_graph=True)
            grads = torch.autograd.grad(
                outputs, params, curved, retain_graph=True, materialize_grads=True
            )
            return flatten(grads)

        return product


def check_outputs(outputs: Any) -> None:
    if not isinstance(outputs, Tensor):
        raise ValueError(f"the outputs are {type(outputs)}; allowed: one tensor")


class _ComposedWeightNorm(TorchFunctionMode):
    """Weight norm as w = g v / |v| in plain operations: the second derivative of
    PyTorch's fused kernel (seen in 2.13) makes a Hessian that is not symmetric.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is torch._weight_norm:
            v, g, dim = args
            return v * (g / torch.norm_except_dim(v, 2, dim))
        return func(*args, **kwargs or {})
