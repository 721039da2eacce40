"""Flatness-aware minimization (FAM): relative flatness of a linear layer as penalty."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatnb import _checks
from flatnb._kappa import kappa_direction, kappa_of_logits
from flatnb._nets import compiled, ensemble, unwrap
from flatnb.methods.method import KW_ONLY, Hyperparameter, Method, per_member
from flatnb.methods.noise import Stream, rademacher
from flatnb.methods.normalization import Elementary


class FAM(Method):
    r"""FAM: the loss plus lam times the relative flatness kappa of one linear layer.

        objective  L(w) + lam kappa(W),   kappa(W) = sum_{s,s'} <w_s, w_s'> Tr H_{s,s'}

    W has one row w_s per output, and H_{s,s'} is the block (d^2 L / d w_s d w_s') of
    the Hessian of the plain mean loss L, also under `compose`. The gradient of kappa is
    exact and reaches all parameters that W and the layer's input phi depend on.

    **The last layer** (layer=None): the last `nn.Linear` that the closure executes; its
    output z must be the logits. One pass, for cross-entropy, with p = softmax(z):

        kappa = mean_i ||phi_i||^2 (sum_c p_ic ||w_c||^2 - ||sum_c p_ic w_c||^2)

    With loss="auto" kappa = mean_i ||phi_i||^2 Tr(W W^T H_i), where the Hessian H_i of
    each example's loss in z is taken by automatic differentiation, one product per
    class: for every loss that couples no two examples (class weights, squared error).

    **Any linear layer** (layer="name"): the estimate <Z, HZ> with Z = (W a) v^T, a and
    v of independent signs, for any loss. It is unbiased, and so is its gradient; one
    draw has a relative standard deviation of about 1. A step costs about as much as 3
    passes. Keep norm layers out of checkpoints then: they are taken apart, because the
    third derivatives of PyTorch's are wrong.

    Works on an `Ensemble`, with one kappa per member. Under DistributedDataParallel the
    average of the processes' kappas is that of the global batch, since kappa is a mean.

    Source: Adilova et al., "FAM: Relative Flatness Aware Minimization", TAG-ML 2023;
    kappa is Definition 3 of Petzka et al., "Relative Flatness and Generalization",
    NeurIPS 2021. The authors' training code divides kappa by the number of inputs of
    the layer, and holds the Hessian constant, so that only W sees the penalty.

    >>> FAM(lam=0.1).passes, FAM(lam=0.1, layer="head").passes
    (1, 3)

    Args:
        lam: weight of the penalty >= 0. kappa scales as the loss's curvature, a few to
            hundreds.
        layer: None, or the name of an `nn.Linear` as in `model.named_modules()`.
        loss: of layer=None: "cross_entropy" (checked in each pass) or "auto".
        seed: of the generator that draws a and v.
    """

    lam: Hyperparameter = Hyperparameter()
    layer: str | None = None
    loss: str = "cross_entropy"
    _: KW_ONLY
    seed: int = 0

    def __post_init__(self) -> None:
        allowed = "None for the last linear layer, or the name of one"
        _checks.instance("layer", self.layer, (str, type(None)), allowed)
        _checks.choice("loss", self.loss, ["cross_entropy", "auto"])
        self.passes = 1 if self.layer is None else 3
        self._generators = None if self.layer is None else Stream(self.seed, rademacher)
        self._call: tuple[nn.Linear, Tensor, Tensor] | None = None
        self._attached = False

    def attach(self, model: nn.Module) -> None:
        """Prepare a model for `torch.compile`: call it once, before compiling.

        A compiled graph holds only the hooks that were there when it was traced. Not
        needed otherwise: then the hooks come and go with each pass.
        """
        for layer in unwrap(model).modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_hook(self._record)
        self._attached = True

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        self._call = None
        hooked = self.layer is None and not self._attached
        layers = _linear(model) if hooked else []
        handles = [layer.register_forward_hook(self._record) for layer in layers]
        # Fused norms and attention have no derivatives as high as the estimate's.
        exact = self.layer is None
        try:
            if exact:
                yield
            else:
                with Elementary(), sdpa_kernel(SDPBackend.MATH):
                    yield
        except BaseException:
            self._call = None
            raise
        finally:
            for handle in handles:
                handle.remove()

    def penalty(self, model: nn.Module, losses: Tensor) -> Tensor:
        exact = self.layer is None
        kappa = self._exact(losses) if exact else self._estimate(model, losses)
        return per_member("lam", self.lam, losses) * kappa

    def _record(
        self, layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        if torch.is_grad_enabled():
            self._call = layer, inputs[0], output

    def _exact(self, losses: Tensor) -> Tensor:
        call, self._call = self._call, None
        if call is None:
            raise ValueError(
                f"{self!r} saw no nn.Linear run in the closure. If the model is "
                "compiled, call attach(model) on this very method before "
                "torch.compile(model); leave the last layer out of checkpoints with "
                "use_reentrant=True"
            )
        layer, phi, z = call
        if z.shape[:-1] != losses.shape:
            raise ValueError(
                f"the last linear layer gave an output of shape {tuple(z.shape)} for "
                f"losses of shape {tuple(losses.shape)}; {self!r} needs one row of "
                "logits per example: mask and flatten tokens before that layer, and do "
                "not average. Or name a layer, for the estimate, which takes any loss"
            )
        weight = layer.weight.to(torch.promote_types(layer.weight.dtype, torch.float32))
        slope = _slope(losses, z)
        if self.loss == "auto":
            size = phi.to(weight.dtype).square().sum(-1)
            return (size * _trace(slope, z, weight @ weight.mT)).mean(-1)
        _check_cross_entropy(slope, z)
        return kappa_of_logits(phi, z, weight).mean(-1)

    def _estimate(self, model: nn.Module, losses: Tensor) -> Tensor:
        weight = _named(model, str(self.layer)).weight
        net = ensemble(model)
        seeds = (0,) if net is None else net.seeds
        assert self._generators is not None
        a, v = self._generators.draw([weight[..., 0, :], weight[..., 0, :]], seeds)
        z = kappa_direction(weight, a, v)
        try:
            g = _derivative(losses.mean(-1).sum(), weight)
            if not g.requires_grad:  # the loss is linear in this layer, or without it
                return torch.zeros_like(losses[..., 0])
            hz = _derivative((g * z.detach()).sum(), weight)
        except RuntimeError as error:
            _explain(error, f"the estimate for layer {self.layer!r}")
            raise
        # The value is <Z, HZ>; the second term is zero, and brings d<Z, HZ> through
        # both Z's, which depend on W, though H must not see through them.
        return (z.detach() * hz + 2 * (z - z.detach()) * hz.detach()).sum((-1, -2))


def _derivative(value: Tensor, tensor: Tensor) -> Tensor:
    """With its graph, and zero where `value` does not depend on `tensor`."""
    (grad,) = torch.autograd.grad(
        value, tensor, create_graph=True, materialize_grads=True
    )
    return grad


def _slope(losses: Tensor, z: Tensor) -> Tensor:
    """Each loss's gradient in its logits, with its graph."""
    try:
        (g,) = torch.autograd.grad(
            losses.sum(), z, create_graph=True, allow_unused=True
        )
    except RuntimeError as error:
        _explain(error, "the Hessian in logit space")
        raise
    if g is None:
        raise ValueError(
            "the losses do not depend on the output of the last linear layer that ran; "
            "FAM needs its output to be the logits. If the loss is compiled together "
            "with the model, compile the model alone"
        )
    return g


def _trace(slope: Tensor, z: Tensor, gram: Tensor) -> Tensor:
    """Tr(G H_i), H_i the Hessian of loss i in z[..., i, :], (..., n)."""
    traces = torch.zeros_like(z[..., 0], dtype=gram.dtype)
    if slope.requires_grad:  # else the loss is linear in the logits
        for c in range(z.shape[-1]):
            row = _derivative(slope[..., c].sum(), z).to(gram.dtype)
            traces = traces + (row @ gram[..., c, :].unsqueeze(-1)).squeeze(-1)
    return traces


def _check_cross_entropy(slope: Tensor, z: Tensor) -> None:
    """Raise unless the losses have the Hessian in z of softmax cross-entropy.

    It is compared with the formula's by one product.
    """
    u = torch.arange(z.shape[-1], device=z.device).cos().to(z.dtype)
    hu = torch.zeros_like(z)
    if slope.requires_grad:
        (hu,) = torch.autograd.grad(
            (slope @ u).sum(), z, retain_graph=True, materialize_grads=True
        )
    p, u = z.detach().float().softmax(-1), u.float()
    expected = p * u - p * (p @ u).unsqueeze(-1)
    error = float((hu.float() - expected).abs().nan_to_num().max())
    rounding = 4 * torch.finfo(z.dtype).eps ** 0.5 * float(expected.abs().max())
    if error > rounding + 1e-6:
        raise ValueError(
            "the losses are not softmax cross-entropy of the last linear layer's "
            f"output (their Hessian differs by {error:.2g}); use loss='auto', for any "
            "loss of the logits (class weights, a temperature), or name a layer"
        )


def _named(model: nn.Module, name: str) -> nn.Linear:
    layers = dict(unwrap(model).named_modules(remove_duplicate=False))
    layer = layers.get(name)
    if not isinstance(layer, nn.Linear):
        linear = [n for n, m in layers.items() if isinstance(m, nn.Linear)]
        kind = "no module" if layer is None else type(layer).__name__
        raise ValueError(
            f"layer={name!r} is {kind} of the model; its linear layers are {linear}"
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
            "the model has no nn.Linear, whose output FAM takes for the logits. Write "
            "the last layer as one: a 1x1 convolution is an nn.Linear on the channels, "
            "after x.permute(0, 2, 3, 1)"
        )
    return layers


def _explain(error: RuntimeError, task: str) -> None:
    if "double backward" in str(error):
        raise RuntimeError(
            f"{task} needs a double backward, which a compiled graph refuses "
            "(torch.compile); use the closed form for the last layer, layer=None, or "
            "do not compile the model"
        ) from error
