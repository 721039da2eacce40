"""The mean loss over fixed data as a function of one flat parameter vector.

    L(w) = sum_b (n_b / N) loss_fn(model(x_b; w), y_b),    N = sum_b n_b

Everything in `flatnb.curvature` measures this function. It holds a copy of the
parameters and buffers and evaluates the model functionally on them, so that the model
itself is never written to and training on does not change what is measured.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatnb import _nets

LossFunction = Callable[[Any, Any], Tensor]
Batches = Iterable[tuple[Tensor, Any]]
Selection = Iterable[str] | Callable[[str, Tensor], bool]
_CHECKED = 32  # examples on which model and loss are tried out


class Chunk(NamedTuple):
    """Data evaluated at once, with its share `weight` = n / N of the mean loss."""

    x: Tensor
    y: Any
    weight: float


class Objective:
    """L(w) above, at the model's present parameters until told otherwise.

    Args:
        model: Called as `model(x)`. Compiled and data-parallel wrappers are taken off.
        loss_fn: `loss_fn(outputs, targets)`, the **mean** loss of a batch, a scalar.
        batches: `(x, y)` pairs, weighted by their sizes `len(x)`; a list or a
            `DataLoader`.
        params: Which parameters w consists of: their names, or a predicate on name and
            tensor; None takes all that require a gradient. The others stay fixed.
        train: Evaluate in train mode (BatchNorm by batch statistics); the default is
            eval mode.

    Raises:
        ValueError: Empty data, a loss that is no finite scalar mean, data and model of
            different precision, parameters without gradient, unknown names, a model
            that gives different answers to the same question (dropout in train mode).
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: Batches,
        params: Selection | None = None,
        *,
        train: bool = False,
    ) -> None:
        self.model = unwrap(model)
        self.loss_fn = loss_fn
        self.train = train
        named = dict(self.model.named_parameters())
        chosen = _select(named, params)
        self.names = tuple(chosen)
        self.params = tuple(
            p.detach().clone().requires_grad_() for p in chosen.values()
        )
        self.dtype, self.device = self.params[0].dtype, self.params[0].device
        self._fixed = {
            n: p.detach().clone() for n, p in named.items() if n not in chosen
        }
        self._buffers = {n: b.detach().clone() for n, b in self.model.named_buffers()}
        self._sizes = [p.numel() for p in self.params]
        self.size = sum(self._sizes)
        self._check_precision(named)
        self.chunks = self._read(batches)
        self.examples = sum(len(chunk.x) for chunk in self.chunks)
        self._try_out()

    # -- vectors
    # -------------------------------------------------------------------------------

    @property
    def vector(self) -> Tensor:
        """The parameters as one vector (size,), in the order of `names`."""
        return torch.cat([p.detach().reshape(-1) for p in self.params])

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The shapes of the parameters w and of all buffers, by name."""
        tensors = {**dict(zip(self.names, self.params, strict=True)), **self._buffers}
        return {name: tensor.shape for name, tensor in tensors.items()}

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """(…, size) -> one tensor (…, *shape) a parameter, views."""
        lead = vector.shape[:-1]
        pieces = vector.split(self._sizes, dim=-1)
        return tuple(
            v.reshape((*lead, *p.shape))
            for v, p in zip(pieces, self.params, strict=True)
        )

    def as_dict(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector (size,) by parameter name."""
        return dict(zip(self.names, self.split(vector), strict=True))

    # -- values
    # --------------------------------------------------------------------------------

    def outputs(
        self,
        x: Tensor,
        params: Sequence[Tensor],
        buffers: dict[str, Tensor] | None = None,
    ) -> Any:
        """Model outputs at `params`; to be called inside `evaluating()`."""
        state = dict(zip(self.names, params, strict=True))
        # Fresh copies: in train mode a forward pass writes to its running statistics.
        buffers = self._buffers if buffers is None else buffers
        copies = {name: value.clone() for name, value in buffers.items()}
        # A copy of the data, too: the model's first operation may be one in place.
        return functional_call(
            self.model, {**self._fixed, **copies, **state}, (x.clone(),)
        )

    def chunk_loss(self, chunk: Chunk, params: Sequence[Tensor]) -> Tensor:
        """weight * loss of one chunk, with its graph; to be called inside `evaluating()`."""
        x, y = self.move(chunk.x), self.move(chunk.y)
        return chunk.weight * self.loss_fn(self.outputs(x, params), y)

    def loss(
        self, vector: Tensor | None = None, buffers: dict[str, Tensor] | None = None
    ) -> float:
        """L(w), summed over the batches in float64."""
        params, total = self.params if vector is None else self.split(vector), 0.0
        with torch.no_grad(), self.evaluating():
            for chunk in self.chunks:
                outputs = self.outputs(self.move(chunk.x), params, buffers)
                total += (
                    chunk.weight
                    * self.loss_fn(outputs, self.move(chunk.y)).double().item()
                )
        return total

    def mixed_buffers(self, other: Objective, t: float) -> dict[str, Tensor]:
        """(1 - t) buffers + t those of `other`, where they are real numbers."""
        return {
            name: torch.lerp(mine, other._buffers[name], t)
            if mine.is_floating_point()
            else mine
            for name, mine in self._buffers.items()
        }

    def gradient(self, vector: Tensor | None = None) -> tuple[float, Tensor]:
        """L(w) and its gradient (size,)."""
        source = self.params if vector is None else self.split(vector)
        params = [p.detach().requires_grad_() for p in source]
        total, value = torch.zeros(self.size, dtype=self.dtype, device=self.device), 0.0
        with torch.enable_grad(), self.evaluating():
            for chunk in self.chunks:
                loss = self.chunk_loss(chunk, params)
                value += loss.double().item()
                total += flatten(
                    torch.autograd.grad(loss, params, allow_unused=True), params
                )
        return value, total

    def move(self, data: Any) -> Any:
        return data.to(self.device) if isinstance(data, Tensor) else data

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Model in the wanted mode, exact arithmetic, kernels that can be
        differentiated twice.

        Attention goes through the math backend and compiled functions run eagerly,
        because fused kernels have no double backward. Everything is as it was
        afterwards.
        """
        # Weight and spectral norm, as hooks, leave the weight they computed on the
        # module.
        computed = [
            (vars(module), name, value)
            for module in self.model.modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor)
        ]
        try:
            mode = _nets.in_mode(self.model, self.train)
            with mode, self.arithmetic(), sdpa_kernel(SDPBackend.MATH), _eager():
                yield
        finally:
            for attributes, name, value in computed:
                attributes[name] = value

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """No autocast, no TF32: for backward passes too, which need no more than this."""
        with torch.autocast(self.device.type, enabled=False):
            if self.device.type != "cuda":
                yield
                return
            precision, cudnn = (
                torch.get_float32_matmul_precision(),
                torch.backends.cudnn,
            )
            recurrent = any(
                isinstance(module, nn.RNNBase) for module in self.model.modules()
            )
            torch.set_float32_matmul_precision("highest")
            try:
                with cudnn.flags(
                    enabled=cudnn.enabled
                    and not recurrent,  # its RNNs have no double backward
                    benchmark=cudnn.benchmark,
                    deterministic=cudnn.deterministic,
                    allow_tf32=False,
                ):
                    yield
            finally:
                torch.set_float32_matmul_precision(precision)

    # -- checks
    # --------------------------------------------------------------------------------

    def sample(self) -> tuple[Tensor, Any]:
        """The first batch, or (eval mode) its first examples."""
        x, y, _ = self.chunks[0]
        if not self.train and isinstance(y, Tensor) and y.ndim and len(y) == len(x):
            x, y = x[:_CHECKED], y[:_CHECKED]
        return self.move(x), self.move(y)

    def _read(self, batches: Batches) -> list[Chunk]:
        pairs = list(batches)
        if not pairs:
            raise ValueError("batches is empty: give at least one (x, y) pair")
        for index, pair in enumerate(pairs):
            if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
                raise ValueError(
                    f"batches[{index}] is {type(pair).__name__}, not an (x, y) pair; for a single "
                    "batch pass [(x, y)]"
                )
            self._check_batch(index, *pair)
        total = sum(len(x) for x, _ in pairs)
        return [Chunk(x, y, len(x) / total) for x, y in pairs]

    def _check_batch(self, index: int, x: Any, y: Any) -> None:
        if not isinstance(x, Tensor) or x.ndim == 0 or len(x) == 0:
            raise ValueError(
                f"x of batches[{index}] must be a tensor of at least one example"
            )
        if x.is_floating_point() and x.dtype != self.dtype:
            raise ValueError(
                f"the model is {self.dtype} but x of batches[{index}] is {x.dtype}: convert one "
                f"of them, such as x.to({self.dtype})"
            )

    def _check_precision(self, named: Mapping[str, Tensor]) -> None:
        found = {p.dtype for p in named.values() if p.is_floating_point()}
        if found - {self.dtype} or self.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"the model's parameters are {', '.join(sorted(map(str, found)))}; curvature needs "
                "all in float32 or all in float64: model.float() or model.double()"
            )
        devices = {p.device for p in named.values()}
        if len(devices) > 1:
            raise ValueError(
                f"the model lies on {', '.join(sorted(map(str, devices)))}: one device is needed"
            )

    def _try_out(self) -> None:
        """One pass over few examples, twice: is the loss a finite scalar mean, and repeatable?"""
        x, y = self.sample()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.enable_grad(), self.evaluating(), torch.random.fork_rng(devices):
            outputs = self.outputs(x, self.params)
            loss = self.loss_fn(outputs, y)
            check_loss(loss)
            self._check_mean(outputs, y)
            first = self._flat_gradient(loss)
            second = self._flat_gradient(self.loss_fn(self.outputs(x, self.params), y))
        change = torch.linalg.vector_norm(first - second, dtype=torch.float64)
        scale = torch.linalg.vector_norm(first, dtype=torch.float64)
        # Sums in another order (GPU) move the gradient by rounding only; dropout by
        # percents.
        rounding = math.sqrt(self.size) * 1e-7 if self.device.type == "cuda" else 0.0
        if change > max(1e-2 * float(scale), rounding):
            raise ValueError(
                f"two gradients of the same batch differ by {float(change / scale):.1%}: the "
                "model is not deterministic (dropout or noise is active). Measure in eval mode, "
                "or switch the random layers off."
            )

    def _check_mean(self, outputs: Any, y: Any) -> None:
        """Refuse a sum: its growth doubles from 1 to 2 to 4 copies of a batch, a mean has none."""
        if not (isinstance(outputs, Tensor) and isinstance(y, Tensor)):
            return
        if 0 in (outputs.ndim, y.ndim) or len(outputs) != len(y):
            return
        with torch.no_grad():
            # Off a perfect fit, whose loss of 0 would say nothing.
            outputs = outputs + 0.5 * torch.sin(torch.arange(outputs.numel())).to(
                outputs
            ).reshape(outputs.shape)
            copies = [(torch.cat([outputs] * k), torch.cat([y] * k)) for k in (1, 2, 4)]
            losses = [self.loss_fn(*pair).double().item() for pair in copies]
        growth, more = losses[1] - losses[0], losses[2] - losses[1]
        if abs(growth) > 1e-3 * abs(losses[0]) and abs(more / growth - 2) < 1e-2:
            raise ValueError(
                "loss_fn grows with the number of examples: it is a sum; the mean is wanted "
                "(reduction='mean')"
            )

    def _flat_gradient(self, loss: Tensor) -> Tensor:
        if not loss.requires_grad:
            raise ValueError(
                f"the loss does not depend on any of the chosen parameters ({self._some_names()})"
            )
        grads = torch.autograd.grad(loss, self.params, allow_unused=True)
        return flatten(grads, self.params)

    def _some_names(self) -> str:
        return ", ".join(self.names[:3]) + (", …" if len(self.names) > 3 else "")


def flatten(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """One vector from one tensor a parameter; None (an unused parameter) is zeros."""
    pieces = [
        torch.zeros_like(p).reshape(-1) if t is None else t.detach().reshape(-1)
        for t, p in zip(tensors, like, strict=True)
    ]
    return torch.cat(pieces)


def check_loss(loss: Any) -> None:
    """Raise unless `loss` is one finite number."""
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"loss_fn must return the mean loss as a scalar tensor; it returned {shape}. "
            "For per-example losses take their mean (reduction='mean')."
        )
    if not torch.isfinite(loss):
        raise ValueError(
            f"the loss is {loss.item()}: curvature is not defined there. Look for overflowing "
            "weights or for inf and nan in the data."
        )


def _eager() -> AbstractContextManager[Any]:
    # Importing the compiler takes seconds; where nobody has, nothing is compiled.
    compiling = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if compiling else nullcontext()


def unwrap(model: nn.Module) -> nn.Module:
    """The net inside compiled and data-parallel wrappers."""
    return _nets.unwrap(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))


def _select(
    named: dict[str, nn.Parameter], params: Selection | None
) -> dict[str, nn.Parameter]:
    if params is None:
        chosen = {name: p for name, p in named.items() if p.requires_grad}
    elif callable(params):
        chosen = {name: p for name, p in named.items() if params(name, p)}
    else:
        wanted = [params] if isinstance(params, str) else list(params)
        unknown = [name for name in wanted if name not in named]
        if unknown:
            raise ValueError(
                f"no parameter {unknown[0]!r}; the model has: {', '.join(named)}"
            )
        chosen = {name: named[name] for name in named if name in wanted}
    if not chosen:
        raise ValueError(
            "no parameters chosen: none that requires a gradient fits the selection"
        )
    for name, p in chosen.items():
        if not p.requires_grad:
            raise ValueError(
                f"parameter {name!r} has requires_grad=False: set it, or leave it out of params"
            )
    return chosen


def is_softmax_cross_entropy(loss_fn: LossFunction, outputs: Any, y: Any) -> bool:
    """Whether the loss is the mean softmax cross-entropy of logits (n, C) at labels
    (n,).

    Its Hessian in the logits is then (1/n) (diag(p) - p p') an example, whatever the
    label.
    """
    if (
        type(loss_fn) is nn.CrossEntropyLoss
    ):  # not a subclass: that may be any other loss
        plain = loss_fn.weight is None and loss_fn.reduction == "mean"
        ignored = loss_fn.ignore_index
    else:
        plain, ignored = loss_fn is F.cross_entropy, -100
    if not (plain and isinstance(outputs, Tensor) and isinstance(y, Tensor)):
        return False
    labels = outputs.ndim == 2 and y.ndim == 1 and not y.is_floating_point()
    return labels and not bool((y == ignored).any())
