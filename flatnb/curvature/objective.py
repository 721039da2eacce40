"""The mean loss over fixed data as a function of one flat parameter vector.

    L(w) = sum_b (n_b / N) loss_fn(model(x_b; w), y_b),    N = sum_b n_b

Everything in `flatnb.curvature` measures this function. It holds a copy of parameters
and buffers and evaluates the model on them, so that the model is never written to and
training it further does not change what is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatnb._nets import in_mode, unwrap

LossFunction = Callable[[Any, Any], Tensor]
Batches = Iterable[tuple[Tensor, Any]]
Selection = Iterable[str] | Callable[[str, Tensor], bool]
_TRIED = 32  # examples on which model and loss are tried out


class Chunk(NamedTuple):
    """Data evaluated at once, with its share `weight` = n / N of the mean loss."""

    x: Tensor
    y: Any
    weight: float


class Objective:
    """L(w) above, in eval mode, at the parameters that the model has now.

    Args:
        model: called as `model(x)`. Compiled and data-parallel wrappers are taken off.
        loss_fn: `loss_fn(outputs, targets)`, the **mean** loss of a batch, a scalar.
        batches: `(x, y)` pairs, weighted by `len(x)`; a list or a `DataLoader`.
        params: the parameters that w consists of: their names, or a predicate on name
            and tensor; None takes all that require a gradient. The others stay fixed.

    Raises:
        ValueError: empty data, a loss that is not a finite scalar mean, data and model
            of different precision, names that are unknown or not trained, a model whose
            outputs are random in eval mode.

    Attributes:
        names, params, size: the parameters' names and copies; length of w.
        buffers: copies of the model's buffers, by name.
        chunks, examples: the batches; N.

    >>> x = torch.eye(2)
    >>> objective = Objective(nn.Linear(2, 1), nn.functional.mse_loss, [(x, x[:, :1])])
    >>> objective.names, objective.vector.shape, objective.gradient()[1].shape
    (('weight', 'bias'), torch.Size([3]), torch.Size([3]))
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: Batches,
        params: Selection | None = None,
    ) -> None:
        self.model, self.loss_fn = unwrap(model), loss_fn
        named = dict(self.model.named_parameters())
        self.names = tuple(_select(named, params))
        self.params = tuple(
            named[name].detach().clone().requires_grad_() for name in self.names
        )
        self.dtype, self.device = self.params[0].dtype, self.params[0].device
        _check_precision(named, self.dtype)
        self._fixed = {
            n: p.detach().clone() for n, p in named.items() if n not in self.names
        }
        self.buffers = {n: b.detach().clone() for n, b in self.model.named_buffers()}
        self._sizes = [p.numel() for p in self.params]
        self.size = sum(self._sizes)
        self.chunks = _read(batches, self.dtype)
        self.examples = sum(len(chunk.x) for chunk in self.chunks)
        self._try_out()

    @property
    def vector(self) -> Tensor:
        """The parameters as one vector (size,), in the order of `names`."""
        return torch.cat([p.detach().reshape(-1) for p in self.params])

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """(size,) -> one tensor per parameter, views."""
        pieces = zip(vector.split(self._sizes), self.params, strict=True)
        return tuple(v.reshape(p.shape) for v, p in pieces)

    def as_dict(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector (size,) by parameter name."""
        return dict(zip(self.names, self.split(vector), strict=True))

    def outputs(
        self,
        x: Tensor,
        params: Sequence[Tensor],
        buffers: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """Model outputs at `params`; to be called inside `evaluating()`."""
        state = dict(zip(self.names, params, strict=True))
        buffers = self.buffers if buffers is None else buffers
        # Copies, of the data too: a model's first operation may be one in place.
        state |= {name: value.clone() for name, value in buffers.items()}
        return functional_call(self.model, self._fixed | state, (x.clone(),))

    def chunk_loss(
        self,
        chunk: Chunk,
        params: Sequence[Tensor],
        buffers: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Mean loss of a chunk, with its graph; to be called inside `evaluating()`."""
        outputs = self.outputs(self.move(chunk.x), params, buffers)
        return self.loss_fn(outputs, self.move(chunk.y))

    def loss(
        self, vector: Tensor | None = None, buffers: Mapping[str, Tensor] | None = None
    ) -> float:
        """L(w), summed over batches in float64; None is the model's w or buffers."""
        params, total = self.params if vector is None else self.split(vector), 0.0
        with torch.no_grad(), self.evaluating():
            for chunk in self.chunks:
                loss = self.chunk_loss(chunk, params, buffers)
                total += chunk.weight * loss.double().item()
        return total

    def gradient(self, vector: Tensor | None = None) -> tuple[float, Tensor]:
        """L(w) and its gradient (size,)."""
        source = self.params if vector is None else self.split(vector)
        params = [p.detach().requires_grad_() for p in source]
        total, value = torch.zeros(self.size, dtype=self.dtype, device=self.device), 0.0
        with torch.enable_grad(), self.evaluating():
            for chunk in self.chunks:
                loss = chunk.weight * self.chunk_loss(chunk, params)
                value += loss.double().item()
                grads = torch.autograd.grad(loss, params, allow_unused=True)
                total += flatten(grads, params)
        return value, total

    def move(self, data: Any) -> Any:
        return data.to(self.device) if isinstance(data, Tensor) else data

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode, exact arithmetic, and kernels that can be differentiated twice.

        Attention goes through the math backend and compiled functions run eagerly,
        because fused kernels have no double backward. All is as before afterwards.
        """
        # Weight and spectral norm, as hooks, leave their weight on the module.
        computed = [
            (vars(module), name, value)
            for module in self.model.modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor)
        ]
        mode = in_mode(self.model, training=False)
        try:
            with mode, self.arithmetic(), sdpa_kernel(SDPBackend.MATH), _eager():
                yield
        finally:
            for attributes, name, value in computed:
                attributes[name] = value

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """No autocast, no TF32: all that a backward pass needs of `evaluating`."""
        cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
        # cuDNN's recurrent layers have no double backward.
        recurrent = any(isinstance(m, nn.RNNBase) for m in self.model.modules())
        exact = cudnn.flags(
            enabled=cudnn.enabled and not recurrent,
            benchmark=cudnn.benchmark,
            deterministic=cudnn.deterministic,
            allow_tf32=False,
        )
        with torch.autocast(self.device.type, enabled=False):
            if self.device.type != "cuda":
                yield
                return
            torch.set_float32_matmul_precision("highest")
            try:
                with exact:
                    yield
            finally:
                torch.set_float32_matmul_precision(precision)

    def sample(self) -> tuple[Tensor, Any]:
        """The first examples."""
        x, y, _ = self.chunks[0]
        if isinstance(y, Tensor) and y.ndim and len(y) == len(x):
            x, y = x[:_TRIED], y[:_TRIED]
        return self.move(x), self.move(y)

    def _try_out(self) -> None:
        """On a few examples: is the loss a finite scalar mean, and the same twice?"""
        x, y = self.sample()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.enable_grad(), self.evaluating(), torch.random.fork_rng(devices):
            outputs = self.outputs(x, self.params)
            loss = self.loss_fn(outputs, y)
            again = self.loss_fn(self.outputs(x, self.params), y)
        check_loss(loss)
        _check_mean(self.loss_fn, outputs, y)
        if not loss.requires_grad:
            names = ", ".join(self.names[:3]) + (", …" if len(self.names) > 3 else "")
            raise ValueError(
                f"params={names}; allowed: parameters that the loss depends on"
            )
        if not torch.isclose(loss, again, rtol=1e-3, atol=1e-5):
            raise ValueError(
                f"two losses of the same batch are {loss.item():.6g} and "
                f"{again.item():.6g}: the model is random in eval mode; switch its "
                "dropout or noise off"
            )


def flatten(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """One vector from one tensor per parameter; None (an unused one) is zeros."""
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
            f"loss_fn returned {shape}; allowed: the mean loss as a scalar tensor "
            "(reduction='mean')"
        )
    if not torch.isfinite(loss):
        raise ValueError(
            f"the loss is {loss.item()}, where curvature is not defined; look for "
            "overflowing weights, or for inf and nan in the data"
        )


def is_softmax_cross_entropy(loss_fn: LossFunction, outputs: Any, y: Any) -> bool:
    """Whether the loss is the mean softmax cross-entropy of logits (n, C), labels (n,).

    Its Hessian in the logits is then (1/n) (diag(p) - p p') per example, whatever the
    label.
    """
    if type(loss_fn) is nn.CrossEntropyLoss:  # a subclass may be any other loss
        plain = loss_fn.weight is None and loss_fn.reduction == "mean"
        ignored = loss_fn.ignore_index
    else:
        plain, ignored = loss_fn is F.cross_entropy, -100
    if not (plain and isinstance(outputs, Tensor) and isinstance(y, Tensor)):
        return False
    labels = outputs.ndim == 2 and y.ndim == 1 and not y.is_floating_point()
    return labels and not bool((y == ignored).any())


def _select(
    named: Mapping[str, nn.Parameter], params: Selection | None
) -> Sequence[str]:
    """The names of the chosen parameters, in the model's order."""
    trained = [name for name, p in named.items() if p.requires_grad]
    if params is None:
        wanted = set(trained)
    elif callable(params):
        wanted = {name for name, p in named.items() if params(name, p)}
    else:
        wanted = {params} if isinstance(params, str) else set(params)
    wrong = sorted(wanted - set(trained))
    if wrong or not wanted:
        raise ValueError(
            f"params chooses {', '.join(wrong) or 'nothing'}; allowed: of those that "
            f"require a gradient at least one: {', '.join(trained) or 'there is none'}"
        )
    return [name for name in named if name in wanted]


def _read(batches: Batches, dtype: torch.dtype) -> list[Chunk]:
    pairs = list(batches)
    if not pairs:
        raise ValueError("batches=[]; allowed: at least one (x, y) pair")
    for index, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(
                f"batches[{index}] is {type(pair).__name__}; allowed: an (x, y) pair, "
                "for a single batch [(x, y)]"
            )
        x = pair[0]
        if not isinstance(x, Tensor) or x.ndim == 0 or len(x) == 0:
            raise ValueError(
                f"x of batches[{index}]; allowed: a tensor of at least one example"
            )
        if x.is_floating_point() and x.dtype != dtype:
            raise ValueError(f"x of batches[{index}] is {x.dtype}; allowed: {dtype}")
    total = sum(len(x) for x, _ in pairs)
    return [Chunk(x, y, len(x) / total) for x, y in pairs]


def _check_precision(named: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    dtypes = {p.dtype for p in named.values() if p.is_floating_point()}
    if dtypes - {dtype} or dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"the model is {', '.join(sorted(map(str, dtypes)))}; allowed: all float32 "
            "or all float64: model.float() or model.double()"
        )


def _check_mean(loss_fn: LossFunction, outputs: Any, y: Any) -> None:
    """Refuse a sum: its growth doubles from 1 to 2 to 4 copies of a batch."""
    if not (isinstance(outputs, Tensor) and isinstance(y, Tensor)):
        return
    if 0 in (outputs.ndim, y.ndim) or len(outputs) != len(y):
        return
    with torch.no_grad():
        # Off a perfect fit, whose loss of 0 would say nothing.
        waves = torch.sin(torch.arange(outputs.numel())).to(outputs)
        outputs = outputs + 0.5 * waves.reshape(outputs.shape)
        copies = [(torch.cat([outputs] * k), torch.cat([y] * k)) for k in (1, 2, 4)]
        losses = [loss_fn(*pair).double().item() for pair in copies]
    first, second = losses[1] - losses[0], losses[2] - losses[1]
    if abs(first) > 1e-3 * abs(losses[0]) and abs(second / first - 2) < 1e-2:
        raise ValueError(
            "loss_fn grows with the number of examples, as a sum; allowed: a mean "
            "(reduction='mean')"
        )


def _eager() -> AbstractContextManager[Any]:
    # Importing the compiler takes seconds; where nobody has, nothing is compiled.
    compiling = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if compiling else nullcontext()
