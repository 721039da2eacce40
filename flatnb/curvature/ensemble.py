r"""Flatness of every member of an `Ensemble` at once.

Members share nothing, so that one product with the Hessian of the sum of their losses
multiplies each member's own Hessian: what a product costs, it costs once for all.

* The largest eigenvalue by Lanczos' recurrence without a stored basis: a few vectors a
  member. Lost orthogonality only repeats eigenvalues already found (Paige 1980), and
  the largest Ritz value is what is asked for. It lies within its residual of an
  eigenvalue.
* The trace from the squared gradients of the outputs, example by example, which a
  linear layer has as |input|^2 |output gradient|^2: exact, with one backward pass for
  each class (see `gauss_newton_trace`).
* The other measures are closed forms, or one gradient and one loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from flatnb._ensemble_layers import EnsembleBatchNorm, EnsembleLinear
from flatnb._nets import in_mode
from flatnb.curvature.piecewise import check_piecewise_linear
from flatnb.curvature.result import Progress, ProgressCallback, Result
from flatnb.ensemble import Ensemble

_EVERY = 4  # products between two looks at the Ritz values


@dataclass(frozen=True, kw_only=True, repr=False)
class EnsembleFlatness(Result):
    """Flatness of each member under the mean softmax cross-entropy L.

    All (members,), in float64, on the CPU; NaN for a member whose loss is not finite.
    `products` counts those with the Hessian.

    Attributes:
        loss: L(w).
        trace: tr H, exact.
        top_eigenvalue: The largest eigenvalue of H.
        residual: |H v - theta v| of its Ritz vector, from the recurrence: an eigenvalue
            lies this near, up to the rounding of a product.
        relative_flatness: kappa of the last layer, see `relative_flatness`.
        sharpness: L(w + rho g / |g|) - L(w), see `sam_sharpness`.
        adaptive_sharpness: The same with rho w^2 g / ||w| g|.
    """

    loss: Tensor
    trace: Tensor
    top_eigenvalue: Tensor
    residual: Tensor
    relative_flatness: Tensor
    sharpness: Tensor
    adaptive_sharpness: Tensor

    def summary(self) -> str:
        def middle(values: Tensor) -> str:
            return f"{values.nanmedian():.4g}"

        return (
            f"{len(self.loss)} members, medians: trace {middle(self.trace)}, top eigenvalue "
            f"{middle(self.top_eigenvalue)}, relative flatness {middle(self.relative_flatness)}, "
            f"sharpness {middle(self.sharpness)}, adaptive {middle(self.adaptive_sharpness)}"
        )


def ensemble_flatness(
    model: Ensemble,
    x: Tensor,
    y: Tensor,
    *,
    rho: float = 0.05,
    adaptive_rho: float = 0.5,
    tol: float = 1e-3,
    most: int = 100,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> EnsembleFlatness:
    """Five measures of flatness of every member, in eval mode, over all trainable
    parameters.

    All examples are evaluated at once, with the activations kept: for data of thousands
        of
    examples, give a part of them. A member's numbers do not depend on the other
    members, but for
    rounding. Lanczos has one start vector: a top eigenvalue that it is nearly
        orthogonal to may be
    missed for the next one (seen once in 900 random spectra); `top_eigenvalues` is
    surer.

    Args:
        model: Ends in the Linear that makes the logits; ReLU or another piecewise
            linear activation.
        x, y: (n, ...) and (n,), shared by all members, or (members, n, ...) and
            (members, n).
        rho: Radius of the sharpness.
        adaptive_rho: Radius of the adaptive sharpness.
        tol: Each member has products until its residual is at most tol times its
            eigenvalue.
        most: Products, at most; the residual shows which members have not converged by
            then.
        seed: Of the start vector, which all members share.
        progress: Called with a line of text now and then.

    Raises:
        ValueError: A net that does not end in a Linear, uses a layer twice, is not
            piecewise linear in each parameter entry or has none to train; rho,
            adaptive_rho or tol not positive, most below 1.
    """
    for name, value in (
        ("rho", rho),
        ("adaptive_rho", adaptive_rho),
        ("tol", tol),
        ("most", most),
    ):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    began = time.perf_counter()
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("no parameter of the model is trainable")
    with _evaluating(model):
        with torch.enable_grad(), _watched(model) as uses, Progress(progress) as say:
            logits = model(x)
            _check(uses, logits, params)
            grads = torch.autograd.grad(
                _loss(logits, y).sum(), params, create_graph=True
            )
            kappa, trace = _kappa(uses[-1], logits), _trace(uses, logits, params)
            fine = _loss(logits, y).detach().isfinite() & trace.isfinite()

            def multiply(vectors: Sequence[Tensor]) -> tuple[Tensor, ...]:
                return torch.autograd.grad(grads, params, vectors, retain_graph=True)

            top, residual, products = _largest(
                multiply, params, fine, tol, most, seed, say
            )
        slopes = [g.detach() for g in grads]
        steps = {
            "sharpness": (rho, [torch.ones_like(p) for p in params]),
            "adaptive_sharpness": (adaptive_rho, [p.detach().abs() for p in params]),
        }
        rises = {}
        with torch.no_grad():  # where BatchNorm is merged: both losses round alike
            loss = _loss(model(x), y)
            for name, (radius, scales) in steps.items():
                scaled = [s * g for s, g in zip(scales, slopes, strict=True)]
                length = _norm(scaled)
                factor = torch.where(length > 0, radius / length, 0.0)
                moved = {
                    n: p + s * t * _as(factor, t)
                    for n, p, s, t in zip(names, params, scales, scaled, strict=True)
                }
                risen = _loss(functional_call(model, moved, (x,)), y)
                rises[name] = _masked(risen - loss, fine)
    return EnsembleFlatness(
        loss=_masked(loss, fine),
        trace=_masked(trace, fine),
        top_eigenvalue=top,
        residual=residual,
        relative_flatness=_masked(kappa, fine),
        **rises,
        products=products,
        seconds=time.perf_counter() - began,
        settings={
            "rho": rho,
            "adaptive_rho": adaptive_rho,
            "tol": tol,
            "most": most,
            "seed": seed,
        },
    )


@contextmanager
def _evaluating(model: Ensemble) -> Iterator[None]:
    """Eval mode, and activations that overwrite neither a layer's output nor the data."""
    in_place = [
        module for module in model.modules() if getattr(module, "inplace", False)
    ]
    for module in in_place:
        setattr(module, "inplace", False)  # noqa: B010
    try:
        with in_mode(model, training=False):
            yield
    finally:
        for module in in_place:
            setattr(module, "inplace", True)  # noqa: B010


_Use = tuple[
    nn.Module, Tensor, Tensor
]  # layer, its input (a BatchNorm's normalised), its output


@contextmanager
def _watched(model: Ensemble) -> Iterator[list[_Use]]:
    """Collects the layers with parameters as they run."""
    uses: list[_Use] = []

    def see(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        a = inputs[0].detach()
        if isinstance(layer, EnsembleBatchNorm) and layer.running_mean is not None:
            assert layer.running_var is not None
            a = (a - layer.running_mean.unsqueeze(1)) * torch.rsqrt(
                layer.running_var.unsqueeze(1) + layer.eps
            )
        uses.append((layer, a, output))

    handles = [
        layer.register_forward_hook(see)
        for layer in model.modules()
        if isinstance(layer, EnsembleLinear | EnsembleBatchNorm)
    ]
    try:
        yield uses
    finally:
        for handle in handles:
            handle.remove()


def _check(uses: Sequence[_Use], logits: Tensor, params: Sequence[Tensor]) -> None:
    last, _, output = uses[-1]
    if not isinstance(last, EnsembleLinear) or output is not logits:
        raise ValueError(
            f"the net ends in {last} and more; it must end in the logits' Linear"
        )
    layers = [layer for layer, _, _ in uses]
    for layer in layers:
        if layers.count(layer) > 1:
            raise ValueError(f"{layer} is used twice; measure such members one by one")
        if isinstance(layer, EnsembleBatchNorm) and layer.running_mean is None:
            raise ValueError(
                f"{layer} has no running statistics: its examples are not independent"
            )
    check_piecewise_linear(logits, params)


def _trace(uses: Sequence[_Use], logits: Tensor, params: Sequence[Tensor]) -> Tensor:
    """tr G = (1/n) sum_i sum_c |J_i' s_ic|^2, s_ic = sqrt(p_ic) (e_c - p_i); (members,)."""
    p = logits.detach().softmax(-1)
    trained = {id(one) for one in params}
    uses = [use for use in uses if use[2].requires_grad]  # before these all is frozen
    outputs = [output for _, _, output in uses]
    total = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    for c in range(logits.shape[-1]):
        u = -p * p[..., c : c + 1].sqrt()
        u[..., c] += p[..., c].sqrt()
        deltas = torch.autograd.grad(logits, outputs, u, retain_graph=True)
        for (layer, a, _), delta in zip(uses, deltas, strict=True):
            weight, bias = layer.weight, layer.bias
            if bias is not None and id(bias) in trained:
                total += _squares(delta).sum(-1)
            if weight is not None and id(weight) in trained:
                each = (
                    _squares(a) * _squares(delta)
                    if isinstance(layer, EnsembleLinear)
                    else _squares(a * delta)
                )
                total += each.sum(-1)
    return total / logits.shape[-2]


def _kappa(use: _Use, logits: Tensor) -> Tensor:
    """mean_i |phi_i|^2 (sum_c p_ic |w_c|^2 - |sum_c p_ic w_c|^2), w_c the rows; (members,)."""
    layer, phi, _ = use
    assert isinstance(layer, EnsembleLinear)
    p, weight = logits.detach().double().softmax(-1), layer.weight.detach().double()
    spread = (p @ _squares(weight).unsqueeze(-1)).squeeze(-1) - _squares(p @ weight)
    return (_squares(phi) * spread.clamp(min=0)).mean(
        -1
    )  # rounding may leave less than none


def _largest(
    multiply: Callable[[Sequence[Tensor]], tuple[Tensor, ...]],
    params: Sequence[Tensor],
    fine: Tensor,
    tol: float,
    most: int,
    seed: int,
    say: Progress,
) -> tuple[Tensor, Tensor, int]:
    """The largest Ritz value of each member, its residual, and the products taken."""
    members, size = len(fine), sum(p[0].numel() for p in params)
    # Not of signs: two of a kind can be orthogonal to the only eigenvector that there
    # is.
    start = torch.randn(
        size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    parts = (start / start.norm()).split([p[0].numel() for p in params])
    current = [
        part.view(p[0].shape).to(p).expand(p.shape)
        for part, p in zip(parts, params, strict=True)
    ]
    before = [torch.zeros_like(p) for p in params]
    alphas: list[Tensor] = []
    betas = [torch.zeros(members, dtype=torch.float64)]
    values = residuals = torch.full((members,), torch.nan, dtype=torch.float64)
    fine = fine.cpu()
    open_ = fine  # members that have not converged
    smallest = 8 * torch.finfo(params[0].dtype).eps
    while len(alphas) < most and open_.any():
        product = multiply(current)
        alpha = _dot(current, product)
        if alphas:
            # Past a member's whole Krylov space its vectors are zero: keep its matrix
            # in range.
            alpha = torch.where(betas[-1] > 0, alpha, alphas[0])
        alphas.append(alpha)
        rest = [
            w - _as(alpha, v) * v - _as(betas[-1], v) * u
            for w, v, u in zip(product, current, before, strict=True)
        ]
        length = _norm(rest).cpu()
        scale = torch.stack([a.abs() for a in alphas]).amax(0)
        length = torch.where(length > smallest * scale, length, 0.0)
        betas.append(length)
        factor = torch.where(length > 0, 1 / length, 0.0)
        before, current = current, [_as(factor, w) * w for w in rest]
        if (
            len(alphas) % _EVERY
            and len(alphas) < most
            and bool((length[open_] > 0).any())
        ):
            continue
        new, left = _ritz(alphas, betas[1:], fine)
        values, residuals = (
            torch.where(open_, new, values),
            torch.where(open_, left, residuals),
        )
        open_ = open_ & ~(residuals <= tol * values.abs())
        say(
            f"top eigenvalues: {len(alphas)} products, {int(open_.sum())} of {members} to go"
        )
    return values, residuals, len(alphas)


def _ritz(
    alphas: list[Tensor], betas: list[Tensor], fine: Tensor
) -> tuple[Tensor, Tensor]:
    diagonal, beside = torch.stack(alphas, 1), torch.stack(betas, 1)
    matrix = torch.diag_embed(diagonal)
    if len(alphas) > 1:
        matrix = (
            matrix
            + torch.diag_embed(beside[:, :-1], 1)
            + torch.diag_embed(beside[:, :-1], -1)
        )
    fine = fine & matrix.isfinite().all(-1).all(-1)
    matrix[~fine] = 0  # eigh refuses what is not finite
    values, vectors = torch.linalg.eigh(matrix)
    residuals = beside[:, -1] * vectors[:, -1, -1].abs()
    return _masked(values[:, -1], fine), _masked(residuals, fine)


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Inner products (members,) in float64, on the CPU."""
    parts = [
        (v.double() * w.double()).flatten(1).sum(1) for v, w in zip(a, b, strict=True)
    ]
    return torch.stack(parts).sum(0).cpu()


def _loss(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of each member, in float64."""
    y = y.expand(logits.shape[:-1])
    return F.cross_entropy(logits.movedim(-1, 1), y, reduction="none").double().mean(-1)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """2-norm of each member's vector, in float64."""
    parts = [
        torch.linalg.vector_norm(t.flatten(1), dim=1, dtype=torch.float64)
        for t in tensors
    ]
    return torch.stack(parts).norm(dim=0)


def _squares(t: Tensor) -> Tensor:
    """Squared norms over the last axis, in float64."""
    return torch.linalg.vector_norm(t, dim=-1, dtype=torch.float64) ** 2


def _as(values: Tensor, like: Tensor) -> Tensor:
    """(members,) so that it multiplies a parameter (members, ...)."""
    return values.to(like.device, like.dtype).view(-1, *[1] * (like.dim() - 1))


def _masked(values: Tensor, fine: Tensor) -> Tensor:
    return torch.where(fine, values.detach(), torch.nan).cpu()
