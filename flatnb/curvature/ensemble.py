"""Flatness of every member of an `Ensemble` at once.

Members share nothing, so that one product with the Hessian of the sum of their losses
multiplies each member's own Hessian: a product costs the same for all as for one.

* The largest eigenvalue by Lanczos without a stored basis: lost orthogonality only
  repeats eigenvalues (Paige 1980), and a Ritz value lies within its residual of one.
* The Gauss-Newton trace, exact, by a backward pass per class: the gradient of a Linear
  for one example has the squared norm |input|^2 |output gradient|^2 (Goodfellow 2015).
* The other measures are closed forms, or one gradient and one loss.
"""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.linalg import vector_norm

from flatnb._checks import number
from flatnb._kappa import kappa_of_logits
from flatnb._nets import along_members
from flatnb.curvature.gauss_newton_trace import check_piecewise_linear, softmax_factor
from flatnb.curvature.sharpness import sam_step
from flatnb.ensemble import Ensemble, EnsembleBatchNorm, EnsembleLinear

RHO, ADAPTIVE_RHO = 0.05, 0.5  # radii of the sharpness and the adaptive one
_PERIOD = 4  # products between two looks at the Ritz values
_TRIED = 32  # examples on which the net is tried for being piecewise linear
_Layer = EnsembleLinear | EnsembleBatchNorm
_Use = tuple[_Layer, Tensor, Tensor]  # layer, what multiplies its weight, output


# What is measured: experiments record it, chapter 18 compares it.
FLATNESS = (
    "trace",
    "top_eigenvalue",
    "sharpness",
    "adaptive_sharpness",
    "relative_flatness",
)


def ensemble_flatness(
    model: Ensemble, x: Tensor, y: Tensor, *, tol: float = 1e-3, max_products: int = 100
) -> dict[str, Tensor]:
    """FLATNESS of each member under the mean softmax cross-entropy L.

    In eval mode, over all that is trained; each (members,), in float64, on the CPU:

    * `trace`: tr H, exact.
    * `top_eigenvalue`: the largest of H, within `tol` times itself. Lanczos has one
      start vector: an eigenvector nearly orthogonal to it may be missed for the next
      one (once in 900 random spectra); `top_eigenvalues` is safer.
    * `sharpness`: `L(w + rho g / |g|) - L(w)`, rho = 0.05, see `worst_sharpness`.
    * `adaptive_sharpness`: the same with `rho w^2 g / ||w| g|`, rho = 0.5.
    * `relative_flatness`: kappa of the last layer, see `relative_flatness`.

    NaN for a member whose loss is not finite and for an eigenvalue not converged. All
    examples are evaluated at once, activations kept: of thousands, give a part. A
    member's numbers do not depend on the others, up to rounding.

    Args:
        x: examples, (n, ...), of all members, or (members, n, ...).
        y: their classes, (n,), of all members, or (members, n).
        max_products: with the Hessians, for the top eigenvalue.

    Raises:
        ValueError: A net that does not end in the Linear of the logits, uses a layer
            twice, is not piecewise linear in each parameter or has none to train; a
            number out of range.

    >>> model = Ensemble(lambda: torch.nn.Linear(2, 3), 4)
    >>> ensemble_flatness(model, torch.eye(2), torch.tensor([0, 1]))["trace"].shape
    torch.Size([4])
    """
    number("tol", tol, "a number > 0", 0)
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if "inplace" in vars(module):  # it would overwrite an output, or the data
            vars(module)["inplace"] = False
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    params = list(named.values())
    if not params:
        raise ValueError("model has no parameter to train; allowed: at least one")
    with torch.enable_grad():
        uses, logits = _forward(model, x)
        few = model.net(model._with_members(x)[:, :_TRIED])
        check_piecewise_linear(few, named)
        losses = _loss(logits, y)
        grads = torch.autograd.grad(losses.sum(), params, create_graph=True)
        trace = _trace(uses, logits)
        finite = (losses.detach().isfinite() & trace.isfinite()).cpu()

        def multiply(vectors: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return torch.autograd.grad(grads, params, vectors, retain_graph=True)

        top, residual = _largest(multiply, params, finite, tol, max_products)
    last, phi, _ = uses[-1]
    kappa = kappa_of_logits(phi, logits.detach(), last.weight.detach().double())
    slopes = [g.detach() for g in grads]

    def rise(scales: Sequence[Tensor], radius: float) -> Tensor:
        steps = zip(named.items(), sam_step(slopes, scales, radius), strict=True)
        moved = {name: p + step for (name, p), step in steps}
        return _loss(functional_call(model, moved, (x,)), y) - loss

    with torch.no_grad():  # in the same groups: both losses round alike
        loss = _loss(model(x), y)
        sharpness = rise([torch.ones_like(p) for p in params], RHO)
        adaptive = rise([p.abs() for p in params], ADAPTIVE_RHO)
    measured = {
        "trace": trace,
        "top_eigenvalue": top.where(residual <= tol * top.abs(), torch.nan),
        "sharpness": sharpness,
        "adaptive_sharpness": adaptive,
        "relative_flatness": kappa.clamp(min=0).mean(-1),
    }
    return {name: _masked(values, finite) for name, values in measured.items()}


def _forward(model: Ensemble, x: Tensor) -> tuple[list[_Use], Tensor]:
    """The layers with parameters as they ran, and the logits."""
    uses: list[_Use] = []

    def see(layer: _Layer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        a = inputs[0].detach()
        if any(layer is use[0] for use in uses):
            raise ValueError(f"{layer} is used twice; measure such members one by one")
        if isinstance(layer, EnsembleBatchNorm):
            if layer.running_mean is None or layer.running_var is None:
                raise ValueError(
                    f"{layer} couples the examples; allowed: running statistics"
                )
            scale = torch.rsqrt(layer.running_var.unsqueeze(1) + layer.eps)
            a = (a - layer.running_mean.unsqueeze(1)) * scale
        uses.append((layer, a, output))

    handles = [
        layer.register_forward_hook(see)
        for layer in model.modules()
        if isinstance(layer, EnsembleLinear | EnsembleBatchNorm)
    ]
    logits = model(x)
    for handle in handles:
        handle.remove()
    last, _, output = uses[-1]
    if not isinstance(last, EnsembleLinear) or output is not logits:
        raise ValueError(
            f"the net ends in {last} and more; allowed: the logits' Linear at last"
        )
    return uses, logits


def _trace(uses: Sequence[_Use], logits: Tensor) -> Tensor:
    """tr G = (1/n) sum_i sum_c |J_i' s_ic|^2, s_ic = sqrt(p_ic) (e_c - p_i)."""
    p = logits.detach().softmax(-1)
    uses = [use for use in uses if use[2].requires_grad]  # all before these is frozen
    outputs = [output for _, _, output in uses]
    total = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    for c in range(logits.shape[-1]):
        u = softmax_factor(p, c)
        deltas = torch.autograd.grad(logits, outputs, u, retain_graph=True)
        for (layer, a, _), delta in zip(uses, deltas, strict=True):
            if layer.bias is not None and layer.bias.requires_grad:
                total += _squares(delta).sum(-1)
            if layer.weight is None or not layer.weight.requires_grad:
                continue
            if isinstance(layer, EnsembleLinear):
                total += (_squares(a) * _squares(delta)).sum(-1)
            else:
                total += _squares(a * delta).sum(-1)
    return total / logits.shape[-2]


def _largest(
    multiply: Callable[[Sequence[Tensor]], tuple[Tensor, ...]],
    params: Sequence[Tensor],
    finite: Tensor,
    tol: float,
    max_products: int,
) -> tuple[Tensor, Tensor]:
    """Each member's largest Ritz value, and its residual `|H v - theta v|`.

    Not by `Lanczos`, which would store a basis each; records depend on its numbers.
    """
    members, sizes = len(finite), [p[0].numel() for p in params]
    # Not of signs: two can be orthogonal to the only eigenvector that matters.
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(sum(sizes), generator=generator, dtype=torch.float64)
    current = [
        part.view(p[0].shape).to(p).expand(p.shape)
        for part, p in zip((start / start.norm()).split(sizes), params, strict=True)
    ]
    previous = [torch.zeros_like(p) for p in params]
    alphas: list[Tensor] = []
    betas = [torch.zeros(members, dtype=torch.float64)]
    values = residuals = torch.full((members,), torch.nan, dtype=torch.float64)
    active = finite  # members that have not converged
    rounding = 8 * torch.finfo(params[0].dtype).eps
    while len(alphas) < max_products and active.any():
        product = multiply(current)
        alpha = _dot(current, product)
        if alphas:
            # Past its Krylov space a member's vectors are 0: keep its matrix in range.
            alpha = torch.where(betas[-1] > 0, alpha, alphas[0])
        alphas.append(alpha)
        remainder = [
            w - along_members(alpha, v) * v - along_members(betas[-1], v) * u
            for w, v, u in zip(product, current, previous, strict=True)
        ]
        norms = [
            vector_norm(w.flatten(1), dim=1, dtype=torch.float64) for w in remainder
        ]
        length = torch.stack(norms).norm(dim=0).cpu()
        scale = torch.stack([a.abs() for a in alphas]).amax(0)
        length = torch.where(length > rounding * scale, length, 0.0)
        betas.append(length)
        factor = torch.where(length > 0, 1 / length, 0.0)
        previous = current
        current = [along_members(factor, w) * w for w in remainder]
        going = len(alphas) < max_products and bool((length[active] > 0).any())
        if going and len(alphas) % _PERIOD:
            continue
        newest, bounds = _ritz(alphas, betas[1:], finite)
        values = torch.where(active, newest, values)
        residuals = torch.where(active, bounds, residuals)
        active = active & ~(residuals <= tol * values.abs())
    return values, residuals


def _ritz(
    alphas: list[Tensor], betas: list[Tensor], finite: Tensor
) -> tuple[Tensor, Tensor]:
    """The largest Ritz values (members,), and their residuals."""
    beta = torch.stack(betas, 1)
    # The lower triangle, which is all that eigh reads.
    matrix = torch.diag_embed(beta[:, :-1], -1)
    matrix += torch.diag_embed(torch.stack(alphas, 1))
    finite = finite & matrix.isfinite().all(-1).all(-1)
    matrix[~finite] = 0  # eigh refuses what is not finite
    values, vectors = torch.linalg.eigh(matrix)
    residuals = beta[:, -1] * vectors[:, -1, -1].abs()
    return _masked(values[:, -1], finite), _masked(residuals, finite)


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


def _squares(t: Tensor) -> Tensor:
    """Squared norms over the last axis, in float64."""
    return vector_norm(t, dim=-1, dtype=torch.float64) ** 2


def _masked(values: Tensor, finite: Tensor) -> Tensor:
    return torch.where(finite, values.detach().cpu(), torch.nan)
