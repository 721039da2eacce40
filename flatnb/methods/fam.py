"""Flatness-aware minimization (FAM): relative flatness of a linear layer as penalty."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatnb import _checks
from flatnb._kappa import kappa_of_logits
from flatnb._nets import ensemble, unwrap
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
    output z must be the logits of a softmax cross-entropy, which each pass checks. One
    pass, with p = softmax(z):

        kappa = mean_i ||phi_i||^2 (sum_c p_ic ||w_c||^2 - ||sum_c p_ic w_c||^2)

    **Any linear layer** (layer="name", an `nn.Linear`): the estimate <Z, HZ>, with
    Z = (W a) v^T, a and v of independent signs, for any loss. It is unbiased, and so is
    its gradient; one draw has a relative standard deviation of about 1. A step costs
    about as much as 3 passes. Keep norm layers out of checkpoints then: they are taken
    apart, because the third derivatives of PyTorch's are wrong.

    kappa scales as the loss's curvature, a few to hundreds. An `Ensemble` has one per
    member. Under DistributedDataParallel the average of the processes' kappas is that
    of the global batch, since kappa is a mean.

    Source: Adilova et al., "FAM: Relative Flatness Aware Minimization", TAG-ML 2023;
    kappa is Definition 3 of Petzka et al., "Relative Flatness and Generalization",
    NeurIPS 2021. The authors' training code divides kappa by the number of inputs of
    the layer, and holds the Hessian constant, so that only W sees the penalty.

    >>> FAM(lam=0.1).passes, FAM(lam=0.1, layer="head").passes
    (1, 3)
    """

    lam: Hyperparameter = Hyperparameter()
    layer: str | None = None
    _: KW_ONLY
    seed: int = 0

    def __post_init__(self) -> None:
        self.passes = 1 if self.layer is None else 3
        self._generators = None if self.layer is None else Stream(self.seed, rademacher)
        self._call: tuple[nn.Linear, Tensor, Tensor] | None = None
        self._attached = False

    def attach(self, model: nn.Module) -> None:
        """Prepare a model for `torch.compile`: call it once, before compiling.

        A compiled graph holds only the hooks that were there when it was traced. Not
        needed otherwise: then the hooks come and go with each pass.
        """
        for layer in _linear(model).values():
            layer.register_forward_hook(self._record)
        self._attached = True

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        self._call = None
        with ExitStack() as stack:
            if self.layer is not None:
                # Fused norms and attention lack the estimate's third derivatives.
                stack.enter_context(Elementary())
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            elif not self._attached:
                for layer in _linear(model).values():
                    hook = layer.register_forward_hook(self._record)
                    stack.callback(hook.remove)
            try:
                yield
            except BaseException:
                self._call = None  # it holds the graph
                raise

    def penalty(self, model: nn.Module, losses: Tensor) -> Tensor:
        exact = self.layer is None
        kappa = self._exact(losses) if exact else self._estimate(model, losses)
        return per_member("lam", self.lam, losses) * kappa

    def _record(self, layer: nn.Linear, inputs: tuple[Tensor], z: Tensor) -> None:
        if torch.is_grad_enabled():
            self._call = layer, inputs[0], z

    def _exact(self, losses: Tensor) -> Tensor:
        call, self._call = self._call, None
        if call is None:
            raise ValueError(
                f"{self!r} saw no nn.Linear run in the closure; allowed: one whose "
                "output is the logits, in no reentrant checkpoint; if compiled, after "
                "attach(model) on this very method, before torch.compile(model)"
            )
        layer, phi, z = call
        if z.shape[:-1] != losses.shape:
            raise ValueError(
                f"the last nn.Linear gave an output of shape {tuple(z.shape)} for "
                f"losses of shape {tuple(losses.shape)}; allowed: logits, one row per "
                "example (mask and flatten tokens before that layer), or a named layer"
            )
        _check_cross_entropy(losses, z)
        weight = layer.weight.to(torch.promote_types(layer.weight.dtype, torch.float32))
        return kappa_of_logits(phi, z, weight).mean(-1)

    def _estimate(self, model: nn.Module, losses: Tensor) -> Tensor:
        layers = _linear(model)
        weight = layers[_checks.choice("layer", self.layer, layers)].weight
        net = ensemble(model)
        seeds = (0,) if net is None else net.seeds
        assert self._generators is not None
        a, v = self._generators.draw([weight[..., 0, :], weight[..., 0, :]], seeds)
        z = (weight @ a.unsqueeze(-1)) * v.unsqueeze(-2)
        g = _derivative(losses.mean(-1).sum(), weight)
        if not g.requires_grad:  # the loss is linear in this layer, or without it
            return torch.zeros_like(losses[..., 0])
        hz = _derivative((g * z.detach()).sum(), weight)
        # The value is <Z, HZ>; the second term is zero, and brings d<Z, HZ> through
        # both Z's, which depend on W, though H must not see through them.
        return (z.detach() * hz + 2 * (z - z.detach()) * hz.detach()).sum((-1, -2))


def _linear(model: nn.Module) -> dict[str, nn.Linear]:
    modules = unwrap(model).named_modules(remove_duplicate=False)
    return {name: m for name, m in modules if isinstance(m, nn.Linear)}


def _derivative(value: Tensor, x: Tensor) -> Tensor:
    """With its graph, and zero where `value` does not depend on `x`."""
    return torch.autograd.grad(value, x, create_graph=True, materialize_grads=True)[0]


def _check_cross_entropy(losses: Tensor, z: Tensor) -> None:
    """Raise unless the losses' Hessian in z, in one product, is the formula's."""
    u = torch.arange(z.shape[-1], device=z.device).cos().to(z.dtype)
    slope = _derivative(losses.sum(), z)
    hu = torch.zeros_like(z)
    if slope.requires_grad:
        (hu,) = torch.autograd.grad(
            (slope @ u).sum(), z, retain_graph=True, materialize_grads=True
        )
    p = z.detach().float().softmax(-1)
    expected = p * u.float() - p * (p @ u.float()).unsqueeze(-1)
    error = float((hu.float() - expected).abs().nan_to_num().max())
    rounding = 4 * torch.finfo(z.dtype).eps ** 0.5 * float(expected.abs().max())
    if error > rounding + 1e-6:
        raise ValueError(
            "the losses are not softmax cross-entropy of the last nn.Linear's output "
            f"(their Hessian differs by {error:.2g}); allowed: that loss, not compiled "
            'with the model, or FAM(lam, layer="name"), for any loss'
        )
