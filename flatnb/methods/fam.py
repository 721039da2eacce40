"""Flatness-aware minimisation (FAM): relative flatness of one linear layer as a penalty."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointError

from flatnb._kappa import kappa_direction, kappa_of_logits
from flatnb._nets import compiled, unwrap
from flatnb.methods._model import ensemble
from flatnb.methods.base import Closure, Hyperparameter, Method, Value, per_member
from flatnb.methods.noise import Stream, rademacher
from flatnb.methods.normalisation import Elementary

_LOSSES = ("cross_entropy", "auto")


class FAM(Method):
    r"""FAM: the loss plus lam times the relative flatness kappa of one linear layer.

        objective  L(w) + lam kappa(W),   kappa(W) = sum_{s,s'} <w_s, w_s'> Tr H_{s,s'}

    W has one row w_s an output, and H_{s,s'} is the block (d^2 L / d w_s d w_s') of the
    Hessian of the plain mean loss L; under `compose`, too, kappa is that of the plain
    loss. The layer's bias is no part of it. kappa does not change under W -> cW, phi ->
    phi / c, phi being the layer's input. The gradient of kappa is exact and reaches all
    parameters that phi and W depend on.

    **The last layer** (layer=None): the last `nn.Linear` that the closure executes; its
        output z
    must be the logits. For softmax cross-entropy, p = softmax(z) and w_c the rows of W,

        kappa = mean_i ||phi_i||^2 (sum_c p_ic ||w_c||^2 - ||sum_c p_ic w_c||^2),

    which is mean_i ||phi_i||^2 (sum_c G_cc p_ic - p_i^T G p_i) with G = W W^T. It holds
    for hard, smoothed and mixed targets. With loss="auto" the Hessian of each example's
    loss in logit space,
    H_i, is taken by automatic differentiation, one product a class: kappa = mean_i
        ||phi_i||^2
    Tr(G H_i), exact for every loss that couples no two examples (class weights,
    ignore_index, temperatures, squared error).

    **Any linear layer** (layer="name"): the estimate <Z, HZ> with Z = (W a) v^T, a and
        v of
    independent signs, one Hessian-vector product a step. It is unbiased, and so is its
    gradient; one draw has a relative standard deviation of about 1. Any loss will do.
    Norm layers on
    the way are computed by elementary operations: the third derivatives of PyTorch's
        are wrong.
    Attention is PyTorch's plain one; attention of other packages must be differentiable
    twice.

    One pass for the last layer, at next to no cost; with a named layer a step costs
    about as much as 3 passes, since it differentiates three times. BatchNorm, weight
    decay and momentum are untouched. Works on an `Ensemble`, with one kappa a member.
    Under DistributedDataParallel kappa is each process's own: the average is that of
    the global batch, since kappa is a mean.

    Source: Adilova, Abourayya, Li, Dada, Petzka, Egger, Kleesiek and Kamp, "FAM:
        Relative Flatness
    Aware Minimization", TAG-ML 2023; kappa is Definition 3 of Petzka, Kamp, Adilova,
    Sminchisescu and Boley, "Relative Flatness and Generalization", NeurIPS 2021. The
    authors' training code divides kappa by the number of inputs of the layer, so its
    lam is that many times larger, and holds the Hessian constant, so that only W sees
    the penalty.

    Args:
        lam: weight of the penalty >= 0. kappa scales as the loss's curvature, a few to
            hundreds.
        layer: None, or the name of an `nn.Linear` as in `model.named_modules()`.
        loss: of layer=None: "cross_entropy" (checked at the first step, and whenever
            the graph from the logits to the losses is a new one) or "auto".
        seed: of the generator that draws a and v.
    """

    lam = Hyperparameter()

    def __init__(
        self,
        lam: Value,
        layer: str | None = None,
        loss: str = "cross_entropy",
        *,
        seed: int = 0,
    ) -> None:
        self.lam = lam
        if layer is not None and not isinstance(layer, str):
            raise TypeError(
                f"layer={layer!r} is {type(layer).__name__}; allowed: None for the last linear "
                "layer, or the name of one, as in model.named_modules()"
            )
        if loss not in _LOSSES:
            raise ValueError(
                f"loss={loss!r}; allowed: {' or '.join(map(repr, _LOSSES))}"
            )
        self.layer, self.loss = layer, loss
        self.passes = 1 if layer is None else 3
        self._stream = Stream(seed, rademacher)
        self.seed = self._stream.seed
        self._seen: tuple[nn.Linear, Tensor, Tensor] | None = None
        self._attached = False
        # Graphs from the last layer's output to the losses that are softmax
        # cross-entropy.
        self._checked: set[tuple[str, ...]] = set()

    def attach(self, model: nn.Module) -> None:
        """Prepare a model for `torch.compile`: call it once, before compiling.

        A compiled graph holds only the hooks that were there when it was traced. Not
        needed
        otherwise: then the hooks come and go with each pass.
        """
        for layer in unwrap(model).modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_hook(self._see)
        self._attached = True

    def backward(
        self,
        model: nn.Module,
        closure: Closure,
        *,
        weight: float = 1.0,
        scaler: Any = None,
    ) -> Tensor:
        try:
            return super().backward(model, closure, weight=weight, scaler=scaler)
        except CheckpointError as error:
            if self.layer is None:
                raise
            raise RuntimeError(
                f"{self!r} takes BatchNorm, InstanceNorm and LayerNorm apart in the closure, since "
                "the fused ones have no right third derivatives, and a checkpoint that runs them "
                "again in the backward finds others; leave layers with such norms out of "
                "checkpoints, or use the closed form for the last layer, layer=None"
            ) from error

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        self._seen = None
        handles = []
        if self.layer is None and not self._attached:
            handles = [
                layer.register_forward_hook(self._see) for layer in _linear(model)
            ]
        try:
            if self.layer is None:
                yield
            else:  # fused norms and attention have no derivatives as high as the estimate's
                with Elementary(), sdpa_kernel(SDPBackend.MATH):
                    yield
        except BaseException:
            self._seen = None
            raise
        finally:
            for handle in handles:
                handle.remove()

    def penalty(self, model: nn.Module, losses: Tensor) -> Tensor:
        exact = self.layer is None
        kappa = self._exact(model, losses) if exact else self._estimate(model, losses)
        return per_member("lam", self.lam, losses) * kappa

    def state_dict(self) -> dict[str, Any]:
        noise = {} if self.layer is None else self._stream.state_dict()
        return {**super().state_dict(), **noise}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.layer is None:
            super().load_state_dict(state)
        else:
            self._stream.load_state_dict(self.load_calls(state))

    def _see(
        self, layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        if torch.is_grad_enabled():
            self._seen = layer, inputs[0], output

    def _exact(self, model: nn.Module, losses: Tensor) -> Tensor:
        seen, self._seen = self._seen, None
        if seen is None:
            raise ValueError(
                f"{self!r} saw no nn.Linear run in the closure. If the model is compiled, call "
                "attach(model) on this very method before torch.compile(model); a layer inside a "
                "checkpoint with use_reentrant=True runs without gradients: leave the last layer "
                "out of it"
            )
        layer, phi, z = seen
        if z.shape[:-1] != losses.shape:
            raise ValueError(
                f"the last linear layer gave an output of shape {tuple(z.shape)} for losses of "
                f"shape {tuple(losses.shape)}; {self!r} needs one row of logits per example: mask "
                "and flatten tokens before that layer, and do not average. Or name a layer for the "
                "estimate, which takes any loss"
            )
        weight = layer.weight.to(torch.promote_types(layer.weight.dtype, torch.float32))
        if self.loss == "auto":
            size = phi.to(weight.dtype).square().sum(-1)
            return (size * _trace(losses, z, weight @ weight.mT)).mean(-1)
        graph = _graph(losses, z)
        if graph not in self._checked:
            _check_cross_entropy(losses, z)
            self._checked.add(graph)
        return kappa_of_logits(phi, z, weight).mean(-1)

    def _estimate(self, model: nn.Module, losses: Tensor) -> Tensor:
        weight = _named(model, str(self.layer)).weight
        members = ensemble(model)
        seeds = (0,) if members is None else members.seeds
        a, v = self._stream.draw([weight[..., 0, :], weight[..., 0, :]], seeds)
        z = kappa_direction(weight, a, v)
        try:
            (g,) = torch.autograd.grad(
                losses.mean(-1).sum(), weight, create_graph=True, materialize_grads=True
            )
            if (
                not g.requires_grad
            ):  # the loss is linear in this layer, or does not see it
                return torch.zeros_like(losses[..., 0])
            (hz,) = torch.autograd.grad(
                (g * z.detach()).sum(),
                weight,
                create_graph=True,
                materialize_grads=True,
            )
        except RuntimeError as error:
            _refuse_double_backward(error, f"the estimate for layer {self.layer!r}")
            raise
        # The value is <Z, HZ>. H must not see through Z in the product, but Z depends
        # on W all the same: the second term is zero, and brings d<Z, HZ> through both
        # Z's.
        return (z.detach() * hz + 2 * (z - z.detach()) * hz.detach()).sum((-1, -2))


def _graph(losses: Tensor, z: Tensor) -> tuple[str, ...]:
    """The names of the operations between z and the losses."""
    names: dict[Any, str] = {}
    waiting = [losses.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node != z.grad_fn and node not in names:
            names[node] = node.name()
            waiting.extend(before for before, _ in node.next_functions)
    return tuple(names.values())


def _trace(losses: Tensor, z: Tensor, gram: Tensor) -> Tensor:
    """Tr(G H_i), H_i the Hessian of losses[..., i] in z[..., i, :], for each example, (..., n)."""
    g = _logit_gradient(losses, z)
    traces = torch.zeros_like(losses, dtype=gram.dtype)
    if g.requires_grad:  # else the loss is linear in the logits
        for c in range(z.shape[-1]):
            (row,) = torch.autograd.grad(
                g[..., c].sum(), z, create_graph=True, materialize_grads=True
            )
            traces = traces + (
                row.to(gram.dtype) @ gram[..., c, :].unsqueeze(-1)
            ).squeeze(-1)
    return traces


def _logit_gradient(losses: Tensor, z: Tensor) -> Tensor:
    try:
        (g,) = torch.autograd.grad(
            losses.sum(), z, create_graph=True, allow_unused=True
        )
    except RuntimeError as error:
        _refuse_double_backward(error, "the Hessian in logit space")
        raise
    if g is None:
        raise ValueError(
            "the losses do not depend on the output of the last linear layer that ran; FAM needs "
            "its output to be the logits. If the loss is compiled together with the model, compile "
            "the model alone"
        )
    return g


def _check_cross_entropy(losses: Tensor, z: Tensor) -> None:
    """Raise unless the losses have the Hessian in z of softmax cross-entropy, by one product."""
    g = _logit_gradient(losses, z)
    u = torch.arange(z.shape[-1], device=z.device).cos().to(z.dtype)
    hu = torch.zeros_like(z)
    if g.requires_grad:
        (hu,) = torch.autograd.grad(
            g @ u,
            z,
            torch.ones_like(losses, dtype=g.dtype),
            retain_graph=True,
            materialize_grads=True,
        )
    p, u = z.detach().float().softmax(-1), u.float()
    expected = p * u - p * (p @ u).unsqueeze(-1)
    off = float((hu.float() - expected).abs().nan_to_num().max())
    if off > 4 * torch.finfo(z.dtype).eps ** 0.5 * float(expected.abs().max()) + 1e-6:
        raise ValueError(
            "the losses are not softmax cross-entropy of the last linear layer's output (their "
            f"Hessian differs by {off:.2g}); use loss='auto', which takes any loss of the logits "
            "(class weights, ignore_index, a temperature), or name a layer"
        )


def _named(model: nn.Module, name: str) -> nn.Linear:
    layers = dict(unwrap(model).named_modules(remove_duplicate=False))
    layer = layers.get(name)
    if not isinstance(layer, nn.Linear):
        linear = [n for n, m in layers.items() if isinstance(m, nn.Linear)]
        raise ValueError(
            f"layer={name!r} is {'no module' if layer is None else type(layer).__name__} of the "
            f"model; its linear layers are {linear}"
        )
    if not layer.weight.requires_grad:
        raise ValueError(
            f"the weight of layer {name!r} is frozen; its Hessian is not available"
        )
    return layer


def _linear(model: nn.Module) -> list[nn.Linear]:
    modules = list(model.modules())
    if any(compiled(m) or m._compiled_call_impl is not None for m in modules):
        raise ValueError(
            "the model is compiled, and its graph would not see the hooks of FAM; call "
            "attach(model) on the method before torch.compile(model)"
        )
    layers = [m for m in modules if isinstance(m, nn.Linear)]
    if not layers:
        raise ValueError(
            "the model has no nn.Linear, whose output FAM takes for the logits. Write the last "
            "layer as one: a 1x1 convolution is an nn.Linear on the channels, after "
            "x.permute(0, 2, 3, 1)"
        )
    return layers


def _refuse_double_backward(error: RuntimeError, what: str) -> None:
    if "double backward" in str(error):
        raise RuntimeError(
            f"{what} needs a double backward, which a compiled graph refuses (torch.compile); use "
            "the closed form for the last layer, layer=None, or do not compile the model"
        ) from error
