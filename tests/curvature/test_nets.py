"""Every quantity on random nets, against dense float64 matrices made by other code.

Each test runs over the nets of a few seeds, and 1,000 under `make test-all`. A value
that is wrong fails, and so does a refusal or an error that the test does not name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import pytest
import torch
from nets import Case, Truth, random_case, spread
from torch import Tensor, nn

from flatnb.curvature import (
    GaussNewtonOperator,
    HessianOperator,
    Objective,
    average_sharpness,
    gauss_newton_trace,
    line,
    relative_flatness,
    spectral_density,
    top_eigenvalues,
    trace,
    worst_sharpness,
)
from flatnb.curvature.trace import rademacher

# Every kind of layer, loss and batch is in two of these, see the last test.
FEW = (
    4,
    7,
    19,
    21,
    25,
    31,
    33,
    37,
    54,
    58,
    67,
    71,
    79,
    115,
    118,
    128,
    129,
    154,
    167,
    180,
    200,
    219,
    227,
    257,
    271,
    283,
    287,
    304,
    305,
    334,
    *range(400, 410),
)
BLOCKS = [FEW, *(range(i, i + 100) for i in range(0, 1000, 100))]


def over_nets(check: Callable[[int], None]) -> Callable[[Sequence[int]], None]:
    """A test of `check(seed)` over blocks of seeds, which names all nets that fail."""

    @pytest.mark.parametrize(
        "seeds",
        [
            BLOCKS[0],
            *(pytest.param(block, marks=pytest.mark.slow) for block in BLOCKS[1:]),
        ],
        ids=["few", *(f"{block[0]}-{block[-1]}" for block in BLOCKS[1:])],
    )
    def test(seeds: Sequence[int]) -> None:
        failures = []
        for seed in seeds:
            try:
                check(seed)
            except Exception as error:
                failures.append(
                    f"{type(error).__name__}: {error}\n{known(seed).case.label}"
                )
        assert not failures, f"{len(failures)} nets:\n" + "\n\n".join(failures)

    return test


class Known(NamedTuple):
    case: Case
    truth: Truth
    hessian: Tensor
    gauss_newton: Tensor


@functools.lru_cache(maxsize=120)
def known(seed: int) -> Known:
    case = random_case(seed)
    truth = Truth(case)
    return Known(case, truth, truth.hessian(), truth.gauss_newton())


def arguments(case: Case) -> tuple:
    return case.model, case.loss, case.batches, case.params


def frozen(seed: int) -> Case:
    """The case, of whose parameters only the chosen ones are trained."""
    case = random_case(seed)
    for name, p in case.model.named_parameters():
        p.requires_grad_(name in case.params)
    return case


def assert_near(found: Tensor | float, exact: Tensor | float, rel: float = 1e-8):
    found, exact = (torch.as_tensor(x, dtype=torch.float64) for x in (found, exact))
    error, size = float((found - exact).abs().max()), float(exact.abs().max())
    assert error <= rel * max(size, 1e-3), f"{error:.2e} beside {size:.2e}"


@over_nets
def test_hessian_products(seed):
    case, truth, hessian, _ = known(seed)
    operator = HessianOperator(*arguments(case))
    vector = torch.randn(operator.size, dtype=torch.float64)
    assert_near(operator @ vector, hessian @ vector)
    assert_near(
        operator @ torch.eye(operator.size), hessian
    )  # by columns, not symmetrised
    assert_near(operator.objective.gradient()[1], truth.gradient(truth.vector))


@over_nets
def test_products_in_single_precision(seed):
    _, _, hessian, gauss_newton = known(seed)
    single = random_case(seed).to(torch.float32)
    vectors = torch.randn(len(hessian), 2, dtype=torch.float64)
    for kind, matrix in (
        (HessianOperator, hessian),
        (GaussNewtonOperator, gauss_newton),
    ):
        assert_near(kind(*arguments(single)) @ vectors, matrix @ vectors, 2e-3)


@over_nets
def test_gauss_newton_products(seed):
    case, _, _, gauss_newton = known(seed)
    operator = GaussNewtonOperator(*arguments(case))
    vectors = torch.randn(operator.size, 3, dtype=torch.float64)
    assert_near(operator @ vectors, gauss_newton @ vectors)


def couples(case: Case) -> bool:
    """Whether an example's outputs depend on the others in its batch."""
    x = case.batches[0][0]
    try:
        return not torch.allclose(case.model(x)[:1], case.model(x[:1]))
    except ValueError:
        return True


@over_nets
def test_gauss_newton_traces(seed):
    case, _, hessian, gauss_newton = known(seed)
    try:
        found = gauss_newton_trace(HessianOperator(*arguments(case)))
        assert_near(found.value, hessian.trace())
        assert_near(found.value, gauss_newton.trace())
    except ValueError as error:
        linear = not re.search("not piecewise linear", str(error))
        assert not linear or case.loss is spread or couples(case), error


@pytest.mark.filterwarnings("ignore:top_eigenvalues")
@over_nets
def test_eigenvalues(seed):
    case, _, hessian, _ = known(seed)
    exact, size = torch.linalg.eigvalsh(hessian).flip(0), len(hessian)
    k = min(5, size)
    found = top_eigenvalues(HessianOperator(*arguments(case)), k)
    # Where the products' rounding is more than 50 eps of the Hessian it is said, by
    # `converged`.
    assert found.converged or float(found.residuals.max()) < 1e-12
    assert_near(found.values, exact[:k])


@over_nets
def test_spectral_density(seed):
    case, _, hessian, _ = known(seed)
    density = spectral_density(
        HessianOperator(*arguments(case)), steps=3, probes=2, seed=seed
    )
    signs, like = (
        torch.Generator().manual_seed(seed),
        torch.zeros(0, dtype=torch.float64),
    )
    z = torch.cat([rademacher((1, len(hessian)), signs, like) for _ in range(2)])
    for degree in range(1, 2 * min(3, len(hessian))):
        moment = (z * (z @ torch.linalg.matrix_power(hessian, degree))).sum(1).mean()
        assert_near(density.moment(degree)[0], moment / len(hessian), 1e-7)


@over_nets
def test_traces_by_probes(seed):
    case, _, hessian, _ = known(seed)
    found = trace(HessianOperator(*arguments(case)), relative=1e3)
    if found.stderr == 0:
        assert_near(found.value, hessian.trace())
    else:
        assert abs(found.value - float(hessian.trace())) < 8 * found.stderr


@over_nets
def test_relative_flatness(seed):
    refusals = "used more than once|meet further on|another forward"
    case = known(seed).case
    names = {id(p): name for name, p in case.model.named_parameters()}
    for layer, module in case.model.named_modules():
        if type(module) is not nn.Linear or "weight" not in module._parameters:
            continue
        weight = module.weight
        try:
            found = relative_flatness(case.model, layer, case.loss, case.batches)
        except ValueError as error:
            assert re.search(refusals, str(error))
            continue
        matrix = Truth(
            Case("", case.model, case.loss, case.batches, [names[id(weight)]])
        )
        w = weight.detach()
        blocks = matrix.hessian().reshape(*w.shape, *w.shape)
        exact = torch.einsum("st,ut,saua->", w, w, blocks)
        assert_near(found.value, exact)


@over_nets
def test_sharpness(seed):
    _, truth, hessian, _ = known(seed)
    problem = arguments(frozen(seed))[:3]
    w, g = truth.vector, truth.gradient(truth.vector)
    for adaptive, t in ((False, torch.ones_like(w)), (True, w.abs())):
        if float((t * g).norm()) < 1e-12:
            return
        moved = w + 0.05 * t**2 * g / (t * g).norm()
        rise = float((truth.loss(moved) - truth.loss(w)).detach())
        found = worst_sharpness(*problem, 0.05, steps=1, adaptive=adaptive)
        assert found.value == pytest.approx(rise, rel=1e-8, abs=1e-12)
        more = worst_sharpness(*problem, 0.05, steps=3, adaptive=adaptive)
        assert more.value >= max(found.value, 0.0) - 1e-12
        noise = average_sharpness(*problem, 1e-3, pairs=10, adaptive=adaptive)
        curvature = 5e-7 * float(t @ hessian.diagonal().mul(t))
        curve = abs(noise.value - curvature)
        assert curve < 12 * noise.stderr + 1e-3 * abs(curvature) + 1e-13


@over_nets
def test_slices(seed):
    case, truth, *_ = known(seed)
    w, step = truth.vector, torch.randn_like(truth.vector)
    found = line(Objective(*arguments(case)), step, [-0.3, 0.0, 0.2])
    exact = [float(truth.loss(w + t * step).detach()) for t in (-0.3, 0.0, 0.2)]
    assert found.tolist() == pytest.approx(exact, rel=1e-10)


@over_nets
def test_nothing_of_a_model_changes(seed):
    case = random_case(seed)
    before = state(case.model)
    data = [(x.clone(), y.clone()) for x, y in case.batches]
    operator = HessianOperator(*arguments(case))
    _ = operator @ torch.ones(operator.size, dtype=torch.float64)
    for layer, module in case.model.named_modules():
        if type(module) is nn.Linear:
            with suppress(ValueError):
                relative_flatness(case.model, layer, case.loss, case.batches)
    with suppress(ValueError):
        gauss_newton_trace(operator)
    after = state(case.model)
    assert before.keys() == after.keys()
    for name, value in before.items():
        tensor = isinstance(value, Tensor)
        assert torch.equal(value, after[name]) if tensor else value == after[name], name
    for (x, y), (u, v) in zip(data, case.batches, strict=True):
        assert torch.equal(x, u) and torch.equal(y, v)


def state(model: nn.Module) -> dict:
    found = {
        f"state {name}": value.clone() for name, value in model.state_dict().items()
    }
    for name, module in model.named_modules():
        found[f"mode {name}"] = module.training
        found[f"hooks {name}"] = len(module._forward_hooks)
        found |= {
            f"attribute {name}.{key}": value.detach().clone()
            for key, value in vars(module).items()
            if isinstance(value, Tensor)
        }
    return found | {f"grad {name}": p.grad for name, p in model.named_parameters()}


def test_the_few_seeds_hold_what_is_hard():
    text = [known(seed).case.label for seed in FEW]
    for word in (
        "inplace=True",
        "weight_orig",
        "WeightNorm",
        "_SpectralNorm",
        "Mixing",
        "Tied",
        "Twice",
        "Gain",
        "Residual",
        "Standardised",
        "InstanceNorm",
        "GroupNorm",
        "LayerNorm",
        "BatchNorm1d",
        "BatchNorm2d",
        "BatchNorm3d",
        "track_running_stats=False",
        "LSTM",
        "GRU",
        "RNN(",
        "MultiheadAttention",
        "TransformerEncoder",
        "PerToken",
        "Temperature",
        "Scaled",
        "focal",
        "spread",
        "scaled_up",
        "partial",
        "label_smoothing=0.1",
        "ignored 1",
        "HuberLoss",
        "MSELoss",
        "binary_cross",
        "padding_mode=reflect",
        "padding_mode=circular",
        "padding_mode=replicate",
        "padding=same",
        "groups=2",
        "dilation=(2",
        "ceil_mode=True",
        "AdaptiveMax",
        "AdaptiveAvgPool3d",
        "AvgPool2d(kernel",
        "MaxPool1d",
        "MaxPool2d",
        "MaxPool3d",
        "Conv1d",
        "Conv2d",
        "Conv3d",
        "ConvTranspose",
        "Dropout",
        "PReLU",
        "ELU",
        "GELU",
        "Mish",
        "SiLU",
        "Softplus",
        "Tanh",
        "batches [1]",
        "batches [2]",
        "batches [4, 1]",
        "batches [3, 1, 2]",
        "batches [1, 5]",
    ):
        assert sum(word in label for label in text) >= 2, word
