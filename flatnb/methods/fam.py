"""Flatness-aware minimization (FAM): relative flatness of the last layer as penalty."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from flatnb._kappa import kappa_of_logits
from flatnb._nets import unwrap
from flatnb.methods.method import Hyperparameter, Method, per_member


class FAM(Method):
    r"""FAM: the loss plus lam times the relative flatness kappa of the last layer.

        objective  L(w) + lam kappa(W),   kappa(W) = sum_{s,s'} <w_s, w_s'> Tr H_{s,s'}
        kappa = mean_i ||phi_i||^2 (sum_c p_ic ||w_c||^2 - ||sum_c p_ic w_c||^2)

    W has one row w_s per output, and H_{s,s'} is the block d^2 L / d w_s d w_s' of the
    Hessian of the plain mean loss L, also under `compose`. The layer is the last
    `nn.Linear` that the closure executes, from phi to z = W phi + b; L must be the
    softmax cross-entropy of z, which each pass checks, and p = softmax(z). One pass.
    The gradient of kappa is exact and reaches all parameters that W and phi depend on.

    kappa, a few to hundreds, scales as the loss's curvature. An `Ensemble` has one per
    member; DistributedDataParallel's average is that of the global batch.

    Source: Adilova et al., "FAM: Relative Flatness Aware Minimization", TAG-ML 2023,
    also on the last layer; kappa is Definition 3 of Petzka et al., "Relative Flatness
    and Generalization", NeurIPS 2021. The authors' training code divides kappa by the
    layer's number of inputs, and holds the Hessian constant: only W sees the penalty.

    >>> FAM(lam=0.1)
    FAM(lam=0.1)
    """

    lam: Hyperparameter = Hyperparameter()

    def __post_init__(self) -> None:
        self._call: tuple[nn.Linear, Tensor, Tensor] | None = None
        self._attached = False

    def attach(self, model: nn.Module) -> None:
        """Prepare a model for `torch.compile`: call it once, before compiling.

        A compiled graph has only hooks it was traced with; others come with each pass.
        """
        for layer in _linear(model):
            layer.register_forward_hook(self._record)
        self._attached = True

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        self._call = None
        with ExitStack() as stack:
            for layer in [] if self._attached else _linear(model):
                hook = layer.register_forward_hook(self._record)
                stack.callback(hook.remove)
            try:
                yield
            except BaseException:
                self._call = None  # it holds the graph
                raise

    def penalty(self, model: nn.Module, losses: Tensor) -> Tensor:
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
                "example (mask and flatten tokens before that layer)"
            )
        _check_cross_entropy(losses, z)
        weight = layer.weight.to(torch.promote_types(layer.weight.dtype, torch.float32))
        kappa = kappa_of_logits(phi, z, weight).mean(-1)
        return per_member("lam", self.lam, losses) * kappa

    def _record(self, layer: nn.Linear, inputs: tuple[Tensor], z: Tensor) -> None:
        if torch.is_grad_enabled():
            self._call = layer, inputs[0], z


def _linear(model: nn.Module) -> list[nn.Linear]:
    return [m for m in unwrap(model).modules() if isinstance(m, nn.Linear)]


def _check_cross_entropy(losses: Tensor, z: Tensor) -> None:
    """Raise unless the losses' Hessian in z, in one product, is the formula's."""
    u = torch.arange(z.shape[-1], device=z.device).cos().to(z.dtype)
    (slope,) = torch.autograd.grad(
        losses.sum(), z, create_graph=True, materialize_grads=True
    )
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
            "with the model"
        )
