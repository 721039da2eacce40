"""Hessian and Gauss-Newton matrices of the mean loss as operators: products, never a matrix.

With L(w) the mean loss over the data (see `flatnb.curvature.objective`),

    H v = d/dw (grad L(w) . v)          HessianOperator        (Pearlmutter 1994)
    G v = sum_b (n_b/N) J_b' (H_l (J_b v))    GaussNewtonOperator    (Schraudolph 2002)

where J is the Jacobian of the outputs and H_l the Hessian of the loss with respect to them. Both
are exact. The graph of the gradient is built once and kept, and a product is one more backward
pass through it: 1 to 2 times the cost of a gradient. Data whose graph does not fit into
`memory_bytes` are evaluated anew at each product, chunk by chunk, at twice that cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flatnb.curvature.memory import available_bytes, human
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
_PROBED = 4  # examples on which the memory of a graph is measured
_TRANSIENT = 3  # peak of a product over what its graph holds: 2.9 seen for convolutions on a CPU
_VECTORS = 6  # vectors a product needs beside its graph: parameters, gradients, product; 5.7 to 6.3
# Of <u, H v> - <v, H u> beside |H v|; rounding stays far below, wrong derivatives lie far above.
_ASYMMETRY = {torch.float32: 1e-2, torch.float64: 1e-6}


class HessianOperator:
    """The Hessian (size, size) of the mean loss, in the order of `names`.

    `operator @ v` takes a vector (size,), or (size, k) as k vectors.

    Args:
        model: Called as `model(x)`; read once, never written to.
        loss_fn: `loss_fn(outputs, targets)`, the mean loss of a batch, such as `F.cross_entropy`.
        batches: `(x, y)` pairs, weighted by their sizes. In eval mode a batch may be cut to fit
            the memory.
        params: Names of the parameters to differentiate by, or a predicate on name and tensor;
            None takes all that require a gradient.
        train: Measure in train mode instead of eval mode.
        memory_bytes: Bound on graphs and on vectors, those of the algorithms that use the operator
            included, by estimates good to 20 %; the model, the data and torch itself are not
            counted (on a CPU its kernels took up to 50 MiB for code and work space). None takes
            half of what is free.

    Raises:
        ValueError: See `Objective`; a layer whose second derivative is wrong, which shows in a
            matrix that is not symmetric.
        MemoryError: A product on a single example (in train mode: on a batch) does not fit; it
            says how much is needed.

    Attributes:
        products: Products made so far, each vector counted.
        names: The parameters, in order; `as_dict(v)` gives a vector by name.
        graph_bytes: Estimated peak memory of a product, on the graph kept or on the largest piece
            made in passing.
        example_bytes: What of it an example takes.
    """

    _curved = True  # the gradient is differentiated through the net's activations and weights

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: Batches,
        params: Selection | None = None,
        *,
        train: bool = False,
        memory_bytes: int | None = None,
    ) -> None:
        self.objective = Objective(model, loss_fn, batches, params, train=train)
        if memory_bytes is None:
            memory_bytes = available_bytes(self.objective.device) // 2
        self.memory_bytes = memory_bytes
        self.names = self.objective.names
        self.size, self.dtype, self.device = (
            self.objective.size,
            self.objective.dtype,
            self.objective.device,
        )
        self.shape = (self.size, self.size)
        self.products = 0
        self._sizes = [self._estimate(chunk) for chunk in self.objective.chunks]
        self.example_bytes = math.ceil(sum(self._sizes) / self.objective.examples)
        self._make_room(0, "a product")
        self._check_symmetric()
        self._build()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.size} parameters in {len(self.names)} tensors, "
            f"{self.objective.examples} examples, {self.dtype}, {self.device}, "
            f"graph {human(self.graph_bytes)} of {human(self.memory_bytes)})"
        )

    # -- products ------------------------------------------------------------------------------

    def __matmul__(self, v: Tensor) -> Tensor:
        """The product with a vector (size,) or with the columns of (size, k)."""
        if not isinstance(v, Tensor) or v.ndim not in (1, 2) or v.shape[0] != self.size:
            shape = tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
            raise ValueError(f"expected a tensor ({self.size},) or ({self.size}, k), got {shape}")
        if v.ndim == 1:
            return self._single(v.to(self.device, self.dtype))
        # On a CPU stacking columns takes a third of the time of a transposed copy.
        return self.rows(torch.stack(v.to(self.device, self.dtype).unbind(1))).mT

    def rows(self, vectors: Tensor) -> Tensor:
        """Products with the k rows of (k, size), as rows."""
        return torch.stack([self._single(v) for v in vectors])

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

    def require(self, nbytes: int, purpose: str) -> None:
        """Make room for `nbytes` of vectors, by keeping less of the graph if need be.

        Raises:
            MemoryError: There is no room beside a product on the smallest piece of the data.
        """
        self._make_room(nbytes, purpose)
        if nbytes > self.memory_bytes - self.graph_bytes:
            self._build()

    def _make_room(self, nbytes: int, purpose: str) -> None:
        chunks = zip(self.objective.chunks, self._sizes, strict=True)
        graph = max(size // (len(c.x) if self._can_cut(c) else 1) for c, size in chunks)
        least = nbytes + self._vector_bytes(_VECTORS) + graph
        if least > self.memory_bytes:
            piece = "batch (train mode)" if self.objective.train else "example"
            raise MemoryError(
                f"{purpose} needs {human(least)} at least, {human(graph)} of it for the graph of "
                f"one {piece}; memory_bytes={self.memory_bytes} allows {human(self.memory_bytes)}: "
                "ask for less, give smaller batches, or more memory_bytes"
            )
        self._reserved = nbytes

    def _vector_bytes(self, count: int) -> int:
        return count * self.size * self.dtype.itemsize

    def _single(self, v: Tensor) -> Tensor:
        self.products += 1
        objective = self.objective
        if self._kept is not None:
            with objective.arithmetic():
                return flatten(self._kept(objective.split(v)), objective.params)
        total = torch.zeros_like(v)
        with self._recording():
            for chunk in self._passing:
                product = self._linearise([chunk])(objective.split(v))
                total += flatten(product, objective.params)
        return total

    # -- graphs --------------------------------------------------------------------------------

    def _check_symmetric(self) -> None:
        """Refuse second derivatives that are wrong: <u, H v> = <v, H u>, on a few examples."""
        chunk = Chunk(*self.objective.sample(), 1.0)
        with self._recording():
            multiply = self._linearise([chunk])
            # Curvature so far below the loss is rounding.
            loss = self.objective.chunk_loss(chunk, self.objective.params).item()
        floor = abs(loss) * torch.finfo(self.dtype).eps ** 0.5
        if self._symmetric(multiply, self.names, floor):
            return
        layers = dict.fromkeys(_layer_of(name) for name in self.names)
        wrong = [
            layer
            for layer in layers
            if not self._symmetric(
                multiply, [n for n in self.names if _layer_of(n) == layer], floor
            )
        ]
        raise ValueError(
            f"the second derivative of {', '.join(map(repr, wrong)) or 'the model'} is wrong: "
            "<u, H v> differs from <v, H u>. Write it with operations whose backward pass is "
            "differentiable itself, or leave its parameters out of params"
        )

    def _symmetric(self, multiply: _Linear, names: Sequence[str], floor: float) -> bool:
        generator, mask = torch.Generator().manual_seed(0), torch.zeros(self.size)
        for name, piece in zip(self.names, self.objective.split(mask), strict=True):
            piece.fill_(float(name in names))
        u, v = (torch.randn(2, self.size, generator=generator) * mask).to(self.device, self.dtype)
        with self.objective.arithmetic():
            split, params = self.objective.split, self.objective.params
            products = [flatten(multiply(split(w)), params) for w in (u, v)]
        hu, hv = (product.double() * mask.to(self.device) for product in products)
        difference = (u.double() @ hv - v.double() @ hu).abs()
        size = max(float(hu.norm()), float(hv.norm()), floor)
        return float(difference) <= _ASYMMETRY[self.dtype] * size

    @contextmanager
    def _recording(self) -> Iterator[None]:
        with torch.enable_grad(), self.objective.evaluating(), SecondOrder(self._curved):
            yield

    def _linearise(self, chunks: Sequence[Chunk]) -> _Linear:
        """The map v -> product over `chunks`, with the graph it runs through."""
        objective = self.objective
        params = objective.params
        losses = [objective.chunk_loss(chunk, params) for chunk in chunks]
        loss = torch.stack(losses).sum()
        check_loss(loss)
        grads = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
        # A gradient that does not depend on any parameter contributes nothing to the Hessian.
        live = [i for i, g in enumerate(grads) if g is not None and g.requires_grad]
        outputs = [grads[i] for i in live]

        def apply(v: Sequence[Tensor]) -> Sequence[Tensor | None]:
            if not live:
                return [None] * len(params)
            return torch.autograd.grad(
                outputs,
                params,
                [v[i] for i in live],
                retain_graph=True,
                allow_unused=True,
            )

        return apply

    def _build(self) -> None:
        """Keep the graph of all chunks if it fits; else each product evaluates them, in pieces."""
        chunks, vectors = self.objective.chunks, self._vector_bytes(_VECTORS)
        room = self.memory_bytes - self._reserved - vectors
        fits = sum(self._sizes) <= room
        passing: list[Chunk] = []
        if not fits:
            for chunk, size in zip(chunks, self._sizes, strict=True):
                passing += self._cut(chunk, size, room)
        self._kept: _Linear | None = None  # frees the old graph before there is a new one
        self._passing = passing
        self.graph_bytes = vectors + (sum(self._sizes) if fits else min(room, max(self._sizes)))
        if fits:
            with self._recording():
                self._kept = self._linearise(chunks)

    def _can_cut(self, chunk: Chunk) -> bool:
        return not self.objective.train and isinstance(chunk.y, Tensor)

    def _estimate(self, chunk: Chunk) -> int:
        """Peak bytes of a product on a chunk, from a few of its examples where they may be cut."""
        count = len(chunk.x)
        if self._can_cut(chunk) and count > _PROBED:
            probe = Chunk(chunk.x[:_PROBED], chunk.y[:_PROBED], chunk.weight)
        else:
            probe = chunk
        return math.ceil(self._graph_bytes(probe) * count / len(probe.x))

    def _graph_bytes(self, chunk: Chunk) -> int:
        known = {_storage(t) for t in (chunk.x, chunk.y, *self.objective.tensors())}
        found: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with self._recording(), hooks:
            graph = self._linearise([chunk])
        del graph
        return _TRANSIENT * sum(found.values())

    def _cut(self, chunk: Chunk, nbytes: int, room: int) -> list[Chunk]:
        if nbytes <= room:
            return [chunk]
        self.objective.check_separable()
        count = len(chunk.x)
        size = max(1, count * room // nbytes)
        pieces = zip(chunk.x.split(size), chunk.y.split(size), strict=True)
        return [Chunk(x, y, chunk.weight * len(x) / count) for x, y in pieces]


class GaussNewtonOperator(HessianOperator):
    """The generalised Gauss-Newton matrix G = mean J' H_l J, as `HessianOperator`.

    For a loss convex in the outputs, G is positive semidefinite, and for softmax cross-entropy it
    is the Fisher matrix. `loss_fn` must act on a single tensor of outputs.
    """

    _curved = False  # J v is linear in v, and that is all of it that is differentiated

    def _linearise(self, chunks: Sequence[Chunk]) -> _Linear:
        maps = [self._linearise_chunk(chunk) for chunk in chunks]
        params = self.objective.params

        def apply(v: Sequence[Tensor]) -> Sequence[Tensor | None]:
            parts = [flatten(linear(v), params) for linear in maps]
            return self.objective.split(torch.stack(parts).sum(0))

        return apply

    def _linearise_chunk(self, chunk: Chunk) -> _Linear:
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
        # J v is the derivative of J' u with respect to u, so two backward passes make it.
        dummy = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(outputs, params, dummy, create_graph=True, allow_unused=True)
        live = [i for i, g in enumerate(pulled) if g is not None]
        linear_in_dummy = [pulled[i] for i in live]

        def apply(v: Sequence[Tensor]) -> Sequence[Tensor | None]:
            if not live or not slope.requires_grad:
                return [None] * len(params)
            vectors = [v[i] for i in live]
            (pushed,) = torch.autograd.grad(linear_in_dummy, dummy, vectors, retain_graph=True)
            (curved,) = torch.autograd.grad(slope, leaf, pushed, retain_graph=True)
            return torch.autograd.grad(
                outputs,
                params,
                curved,
                retain_graph=True,
                allow_unused=True,
            )

        return apply


def _layer_of(name: str) -> str:
    """'0.parametrizations.weight.original0' -> '0'."""
    path = name.partition(".parametrizations.")[0]
    return path if path != name else name.rpartition(".")[0] or name


def _storage(data: Any) -> int:
    return data.untyped_storage().data_ptr() if isinstance(data, Tensor) else 0
