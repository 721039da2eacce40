"""The mean loss over fixed data as a function of one flat parameter vector.

    L(w) = sum_b (n_b / N) loss_fn(model(x_b; w), y_b),    N = sum_b n_b

Everything in `flatnb.curvature` measures this function: of copies of parameters and
buffers, so that the model is never written to, and may be trained further.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatnb._checks import instance, shown
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
    """The mean loss L(w) of batches in eval mode, at the model's current parameters.

    Args:
        model: called as `model(x)`. Compiled and data-parallel wrappers are taken off.
        loss_fn: `loss_fn(outputs, targets)`, the **mean** loss of a batch, a scalar.
        batches: `(x, y)` pairs, weighted by `len(x)`; kept on the model's device.
        params: what w consists of: names, or a predicate on name and tensor; None takes
            all that require a gradient. The other parameters stay fixed.

    Raises:
        TypeError, ValueError: empty data; a loss that is not a finite scalar mean, or is random in
            eval mode; a half precision; names that are unknown or not trained.

    Attributes:
        names, params, size: the parameters' names and copies; length of w.

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
        instance("model", model, nn.Module, "an nn.Module, then loss_fn, then batches")
        self.model, self.loss_fn = unwrap(model), loss_fn
        named = dict(self.model.named_parameters())
        self.names = _select(named, params)
        self._fixed = {name: p.detach().clone() for name, p in named.items()}
        self.params = tuple(
            self._fixed.pop(name).requires_grad_() for name in self.names
        )
        self._buffers = {n: b.detach().clone() for n, b in self.model.named_buffers()}
        self.size = sum(p.numel() for p in self.params)
        self.dtype, self.device = self.params[0].dtype, self.params[0].device
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"the model is {self.dtype}; allowed: float32, float64")
        self.chunks = _read(batches, self.device)
        self._try_out()

    @property
    def vector(self) -> Tensor:
        """The parameters as one vector (size,), in the order of `names`."""
        return torch.cat([p.detach().reshape(-1) for p in self.params])

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """(size,) -> one tensor per parameter, views."""
        pieces = vector.split([p.numel() for p in self.params])
        return tuple(v.view_as(p) for v, p in zip(pieces, self.params, strict=True))

    def outputs(self, x: Tensor, params: Sequence[Tensor]) -> Any:
        """Model outputs at `params`; to be called inside `evaluating()`."""
        state = self._fixed | dict(zip(self.names, params, strict=True))
        # Copies, of the data too: a model's first operation may be one in place.
        state |= {name: buffer.clone() for name, buffer in self._buffers.items()}
        return functional_call(self.model, state, (x.clone(),))

    def chunk_loss(self, chunk: Chunk, params: Sequence[Tensor]) -> Tensor:
        """Mean loss of a chunk, with its graph; to be called inside `evaluating()`."""
        return self.loss_fn(self.outputs(chunk.x, params), chunk.y)

    def loss(self, vector: Tensor | None = None) -> float:
        """L(w), summed over batches in float64; None is the model's w."""
        params, total = self.params if vector is None else self.split(vector), 0.0
        with torch.no_grad(), self.evaluating():
            for chunk in self.chunks:
                loss = self.chunk_loss(chunk, params)
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
                total += flat_gradient(loss, params)
        return value, total

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode, no autocast, no TF32, and no kernels without double backward."""
        cudnn, modules = torch.backends.cudnn, list(self.model.modules())
        recurrent = any(isinstance(module, nn.RNNBase) for module in modules)
        precision = torch.get_float32_matmul_precision()
        with (
            in_mode(self.model, training=False),
            torch.autocast(self.device.type, enabled=False),
            cudnn.flags(
                enabled=cudnn.enabled and not recurrent,
                deterministic=cudnn.deterministic,
                allow_tf32=False,
            ),
            sdpa_kernel(SDPBackend.MATH),
            ExitStack() as stack,
        ):
            stack.callback(torch.set_float32_matmul_precision, precision)
            torch.set_float32_matmul_precision("highest")
            for module in modules:
                # Weight and spectral norm, as hooks, leave their weight on the module.
                attributes = vars(module)
                tensors = {k: v for k, v in attributes.items() if isinstance(v, Tensor)}
                stack.callback(attributes.update, tensors)
            if "torch._dynamo" in sys.modules:  # else nothing is compiled
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield

    def sample(self) -> tuple[Tensor, Any]:
        """The first examples."""
        x, y, _ = self.chunks[0]
        if isinstance(y, Tensor) and y.ndim and len(y) == len(x):
            x, y = x[:_TRIED], y[:_TRIED]
        return x, y

    def _try_out(self) -> None:
        """On a few examples: is the loss a finite scalar mean, and the same twice?"""
        x, y = self.sample()
        with torch.enable_grad(), self.evaluating():
            outputs = self.outputs(x, self.params)
            loss = self.loss_fn(outputs, y)
            repeated = self.loss_fn(self.outputs(x, self.params), y)
        check_loss(loss)
        _check_mean(self.loss_fn, outputs, y)
        if not loss.requires_grad:
            names = shown(self.names)
            raise ValueError(f"params={names}; allowed: what the loss depends on")
        if not torch.isclose(loss, repeated, rtol=1e-3, atol=1e-5):
            raise ValueError(
                f"a batch has the losses {loss:.6g} and {repeated:.6g}: the model is random "
                "in eval mode; switch its dropout or noise off"
            )


def flat_gradient(
    outputs: Tensor, params: Sequence[Tensor], v: Tensor | None = None, **graph: bool
) -> Tensor:
    """The gradient (size,) of <outputs, v>, or of a scalar; `graph` says what is kept."""
    grads = torch.autograd.grad(outputs, params, v, materialize_grads=True, **graph)
    flat = torch.cat([g.reshape(-1) for g in grads])
    # The zeros that torch 2.6 puts in for an unused parameter ask for a graph.
    return flat if graph.get("create_graph") else flat.detach()


def gaussian(shape: Sequence[int], generator: torch.Generator, like: Tensor) -> Tensor:
    """Normal entries as `like`, drawn on the CPU: the same for every device."""
    return torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)


def check_loss(loss: Any) -> None:
    """Raise unless `loss` is one finite number."""
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        raise ValueError(
            f"loss_fn returned {getattr(loss, 'shape', type(loss))}; allowed: the mean "
            "loss as a scalar tensor (reduction='mean')"
        )
    if not torch.isfinite(loss):
        raise ValueError(
            f"the loss is {loss.item()}; look for inf and nan in the weights and the data"
        )


def is_softmax_cross_entropy(loss_fn: LossFunction, outputs: Any, y: Any) -> bool:
    """Whether the loss is the mean softmax cross-entropy of logits (n, C), labels (n,).
    Its Hessian in the logits is (1/n) (diag(p) - p p') per example, whatever the label.
    """
    plain = loss_fn is F.cross_entropy
    if type(loss_fn) is nn.CrossEntropyLoss:  # a subclass may be any other loss
        mean = loss_fn.reduction == "mean" and loss_fn.ignore_index < 0
        plain = mean and loss_fn.weight is None
    if not (plain and isinstance(outputs, Tensor) and isinstance(y, Tensor)):
        return False
    labels = outputs.ndim == 2 and y.ndim == 1 and not y.is_floating_point()
    return labels and bool((y >= 0).all())


def _select(
    named: Mapping[str, nn.Parameter], params: Selection | None
) -> tuple[str, ...]:
    """The names of the chosen parameters, in the model's order."""
    trained = [name for name, p in named.items() if p.requires_grad]
    if params is None:
        wanted = set(trained)
    elif callable(params):
        wanted = {name for name, p in named.items() if params(name, p)}
    else:
        wanted = {params} if isinstance(params, str) else set(params)
    if not wanted or not wanted <= set(trained):
        raise ValueError(
            f"params={', '.join(sorted(wanted)) or 'none'}; allowed: one or more that "
            f"require a gradient: {', '.join(trained) or 'there is none'}"
        )
    return tuple(name for name in trained if name in wanted)


def _read(batches: Batches, device: torch.device) -> list[Chunk]:
    pairs = list(batches)
    for index, pair in enumerate(pairs):
        x = pair[0] if isinstance(pair, tuple | list) and len(pair) == 2 else None
        if not isinstance(x, Tensor) or x.ndim == 0 or len(x) == 0:
            raise ValueError(
                f"batches[{index}]={shown(pair)}; allowed: (x, y) with a tensor x of at "
                "least one example, for a single batch [(x, y)]"
            )
    if not pairs:
        raise ValueError("batches=[]; allowed: at least one (x, y) pair")
    total = sum(len(x) for x, _ in pairs)
    targets = [y.to(device) if isinstance(y, Tensor) else y for _, y in pairs]
    return [
        Chunk(x.to(device), y, len(x) / total)
        for (x, _), y in zip(pairs, targets, strict=True)
    ]


def _check_mean(loss_fn: LossFunction, outputs: Any, y: Any) -> None:
    """Refuse a sum: its growth doubles from 1 to 2 to 4 copies of a batch."""
    tensors = isinstance(outputs, Tensor) and isinstance(y, Tensor)
    if not tensors or 0 in (outputs.ndim, y.ndim) or len(outputs) != len(y):
        return
    with torch.no_grad():
        # Off a perfect fit, whose loss of 0 would say nothing.
        outputs = 0.9 * outputs.roll(1, 0)
        copies = [(torch.cat([outputs] * k), torch.cat([y] * k)) for k in (1, 2, 4)]
        losses = [loss_fn(*pair).double().item() for pair in copies]
    first, second = losses[1] - losses[0], losses[2] - losses[1]
    if abs(first) > 1e-3 * abs(losses[0]) and abs(second / first - 2) < 1e-2:
        raise ValueError(
            "loss_fn grows with the number of examples, as a sum does; allowed: a mean"
        )
