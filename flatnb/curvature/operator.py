"""Hessian and Gauss-Newton matrices of the mean loss as operators: products, never a
matrix.

With L(w) the mean loss over the data (see `flatnb.curvature.objective`),

    H v = d/dw (grad L(w) . v)          HessianOperator        (Pearlmutter 1994)
    G v = sum_b (n_b/N) J_b' (H_l (J_b v))    GaussNewtonOperator    (Schraudolph 2002)

where J is the Jacobian of the outputs and H_l the Hessian of the loss with respect to
them. Both are exact. The graph of the gradient is built once and kept, and a product is
one more backward
pass through it: 1 to 2 times the cost of a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flatnb.curvature.objective import (
    Batches,
    Chunk,
    LossFunction,
    Objective,
    Selection,
    check_loss,
    flatten,
)
from flatnb.curvature.second_order import SecondOrder

# From one tensor per parameter to the product, likewise.
_Linear = Callable[[Sequence[Tensor]], Sequence[Tensor | None]]
# Of <u, H v> - <v, H u> beside |H v|; rounding stays far below, wrong derivatives lie
# far above.
_ASYMMETRY = {torch.float32: 1e-2, torch.float64: 1e-6}


class HessianOperator:
    """The Hessian (size, size) of the mean loss, in the order of `names`.

    `operator @ v` takes a vector (size,), or (size, k) as k vectors.

    Args:
        model: Called as `model(x)`; read once, never written to.
        loss_fn: `loss_fn(outputs, targets)`, the mean loss of a batch, such as
            `F.cross_entropy`.
        batches: `(x, y)` pairs, weighted by their sizes.
        params: Names of the parameters to differentiate by, or a predicate on name and
            tensor; None takes all that require a gradient.
        train: Measure in train mode instead of eval mode.
        keep_graph: False evaluates the batches anew at each product, one after another.
            This takes about twice the time and the memory of a single batch's graph.

    Raises:
        ValueError: See `Objective`; a layer whose second derivative is wrong, which
            shows in a matrix that is not symmetric.

    Attributes:
        products: Products made so far, each vector counted.
        names: The parameters, in order; `as_dict(v)` gives a vector by name.

    >>> model = nn.Linear(3, 2)
    >>> batch = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    >>> operator = HessianOperator(model, nn.functional.cross_entropy, [batch])
    >>> (operator @ torch.ones(8)).shape
    torch.Size([8])
    """

    _curved = (
        True  # the gradient is differentiated through the net's activations and weights
    )

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: Batches,
        params: Selection | None = None,
        *,
        train: bool = False,
        keep_graph: bool = True,
    ) -> None:
        self.objective = Objective(model, loss_fn, batches, params, train=train)
        self.names, self.size = self.objective.names, self.objective.size
        self.dtype, self.device = self.objective.dtype, self.objective.device
        self.shape = (self.size, self.size)
        self.products = 0
        self._check_symmetric()
        self._kept: list[_Linear] = []
        if keep_graph:
            with self._recording():
                self._kept = [self._linearise(chunk) for chunk in self.objective.chunks]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.size} parameters in {len(self.names)} tensors, "
            f"{self.objective.examples} examples, {self.dtype}, {self.device})"
        )

    # -- products
    # ------------------------------------------------------------------------------

    def __matmul__(self, v: Tensor) -> Tensor:
        """The product with a vector (size,) or with the columns of (size, k)."""
        if not isinstance(v, Tensor) or v.ndim not in (1, 2) or v.shape[0] != self.size:
            shape = tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
            raise ValueError(
                f"expected a tensor ({self.size},) or ({self.size}, k), got {shape}"
            )
        if v.ndim == 1:
            return self._product(v.to(self.device, self.dtype))
        # On a CPU stacking columns takes a third of the time of a transposed copy.
        return self.rows(torch.stack(v.to(self.device, self.dtype).unbind(1))).mT

    def rows(self, vectors: Tensor) -> Tensor:
        """Products with the k rows of (k, size), as rows."""
        return torch.stack([self._product(v) for v in vectors])

    def as_dict(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector (size,) as {parameter name: tensor}."""
        return self.objective.as_dict(vector)

    def gradient(self) -> Tensor:
        """Gradient (size,) of the mean loss."""
        return self.objective.gradient()[1]

    def dense(self) -> Tensor:
        """The matrix (size, size), by one product a column: for small nets and tests."""
        matrix = self.rows(torch.eye(self.size, dtype=self.dtype, device=self.device))
        return (matrix + matrix.mT) / 2

    def _product(self, v: Tensor) -> Tensor:
        self.products += 1
        parts = self.objective.split(v)
        if self._kept:
            with self.objective.arithmetic():
                return _sum([self._flat(linear(parts)) for linear in self._kept])
        total = torch.zeros_like(v)
        with self._recording():
            for chunk in self.objective.chunks:
                total += self._flat(self._linearise(chunk)(parts))
        return total

    def _flat(self, tensors: Sequence[Tensor | None]) -> Tensor:
        return flatten(tensors, self.objective.params)

    # -- graphs
    # --------------------------------------------------------------------------------

    @contextmanager
    def _recording(self) -> Iterator[None]:
        with (
            torch.enable_grad(),
            self.objective.evaluating(),
            SecondOrder(self._curved),
        ):
            yield

    def _linearise(self, chunk: Chunk) -> _Linear:
        """The map v -> product over one batch, with the graph it runs through."""
        params = self.objective.params
        loss = self.objective.chunk_loss(chunk, params)
        check_loss(loss)
        grads = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
        # A gradient that does not depend on any parameter contributes nothing to the
        # Hessian.
        live = [i for i, g in enumerate(grads) if g is not None and g.requires_grad]
        outputs = [grads[i] for i in live]

        def apply(v: Sequence[Tensor]) -> Sequence[Tensor | None]:
            if not live:
                return [None] * len(params)
            vectors = [v[i] for i in live]
            return torch.autograd.grad(
                outputs, params, vectors, retain_graph=True, allow_unused=True
            )

        return apply

    # -- the check
    # -----------------------------------------------------------------------------

    def _check_symmetric(self) -> None:
        """Refuse second derivatives that are wrong: <u, H v> = <v, H u>, on a few examples."""
        chunk = Chunk(*self.objective.sample(), 1.0)
        with self._recording():
            multiply = self._linearise(chunk)
            loss = self.objective.chunk_loss(chunk, self.objective.params).item()
        # Curvature so far below the loss is rounding.
        floor = abs(loss) * torch.finfo(self.dtype).eps ** 0.5
        if self._symmetric(multiply, self.names, floor):
            return
        layers: dict[str, list[str]] = {}
        for name in self.names:
            layers.setdefault(_layer_of(name), []).append(name)
        wrong = [
            repr(layer)
            for layer, names in layers.items()
            if not self._symmetric(multiply, names, floor)
        ]
        raise ValueError(
            f"the second derivative of {', '.join(wrong) or 'the model'} is wrong: <u, H v> "
            "differs from <v, H u>. Write it with operations whose backward pass is "
            "differentiable itself, or leave its parameters out of params"
        )

    def _symmetric(self, multiply: _Linear, names: Sequence[str], floor: float) -> bool:
        generator, mask = torch.Generator().manual_seed(0), torch.zeros(self.size)
        for name, piece in self.as_dict(mask).items():
            piece.fill_(float(name in names))
        u, v = (torch.randn(2, self.size, generator=generator) * mask).to(
            self.device, self.dtype
        )
        with self.objective.arithmetic():
            products = [self._flat(multiply(self.objective.split(w))) for w in (u, v)]
        hu, hv = (product.double() * mask.to(self.device) for product in products)
        difference = (u.double() @ hv - v.double() @ hu).abs()
        size = max(float(hu.norm()), float(hv.norm()), floor)
        return float(difference) <= _ASYMMETRY[self.dtype] * size


class GaussNewtonOperator(HessianOperator):
    """The generalised Gauss-Newton matrix G = mean J' H_l J, as `HessianOperator`.

    For a loss convex in the outputs, G is positive semidefinite, and for softmax
    cross-entropy it is the Fisher matrix. `loss_fn` must act on a single tensor of
    outputs.
    """

    _curved = False  # J v is linear in v, and that is all of it that is differentiated

    def _linearise(self, chunk: Chunk) -> _Linear:
        objective, params = self.objective, self.objective.params
        x, y = objective.move(chunk.x), objective.move(chunk.y)
        outputs = objective.outputs(x, params)
        if not isinstance(outputs, Tensor):
            raise ValueError(
                f"Gauss-Newton needs a model that returns one tensor, not {type(outputs).__name__}"
            )
        leaf = outputs.detach().requires_grad_()
        loss = chunk.weight * objective.loss_fn(leaf, y)
        check_loss(loss)
        (slope,) = torch.autograd.grad(loss, leaf, create_graph=True)
        # J v is the derivative of J' u with respect to u, so two backward passes make
        # it.
        dummy = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(
            outputs, params, dummy, create_graph=True, allow_unused=True
        )
        live = [i for i, g in enumerate(pulled) if g is not None]
        linear_in_dummy = [pulled[i] for i in live]

        def apply(v: Sequence[Tensor]) -> Sequence[Tensor | None]:
            if not live or not slope.requires_grad:
                return [None] * len(params)
            vectors = [v[i] for i in live]
            (pushed,) = torch.autograd.grad(
                linear_in_dummy, dummy, vectors, retain_graph=True
            )
            (curved,) = torch.autograd.grad(slope, leaf, pushed, retain_graph=True)
            return torch.autograd.grad(
                outputs, params, curved, retain_graph=True, allow_unused=True
            )

        return apply


def _sum(vectors: list[Tensor]) -> Tensor:
    """The sum; a single vector as it is."""
    return torch.stack(vectors).sum(0) if len(vectors) > 1 else vectors[0]


def _layer_of(name: str) -> str:
    """'0.parametrizations.weight.original0' -> '0'."""
    path = name.partition(".parametrizations.")[0]
    return path if path != name else name.rpartition(".")[0] or name
