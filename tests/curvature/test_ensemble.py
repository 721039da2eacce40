"""Flatness of all members of an ensemble at once, against each member measured
alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from matrices import SPECTRA
from torch import Tensor, nn
from torch.func import functional_call

from flatnb import Ensemble, curvature, models
from flatnb.curvature.ensemble import _largest

X = torch.randn(
    3, 12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
)
Y = torch.randint(0, 3, (3, 12), generator=torch.Generator().manual_seed(1))


def ensemble(make=lambda: models.mlp(2, 5, 2, 3), members: int = 3) -> Ensemble:
    model = Ensemble(make, members).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():  # so that no scale is 1 and no shift 0
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype), alpha=0.3)
        for _ in range(3):  # running statistics of their own
            model.train()(X[:members])
    return model


def dense(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    names, params = zip(*net.named_parameters(), strict=True)
    flat = torch.cat([p.detach().flatten() for p in params])

    def loss(w: Tensor) -> Tensor:
        parts = w.split([p.numel() for p in params])
        given = {
            n: v.view(p.shape) for n, v, p in zip(names, parts, params, strict=True)
        }
        return F.cross_entropy(functional_call(net, given, (x,)), y)

    return torch.autograd.functional.hessian(loss, flat)


def no_batchnorm() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.LeakyReLU(0.2), nn.Linear(4, 3))


@pytest.mark.parametrize("make", [lambda: models.mlp(2, 5, 2, 3), no_batchnorm])
@pytest.mark.parametrize("shared", [False, True])
def test_every_measure_is_that_of_the_member_alone(make, shared):
    model = ensemble(make)
    x, y = (X[0], Y[0]) if shared else (X, Y)
    found = curvature.ensemble_flatness(model, x, y, tol=1e-9)
    for i in range(3):
        net = model.member(i).eval()
        own = (x, y) if shared else (x[i], y[i])
        hessian = dense(net, *own)
        assert float(found["trace"][i]) == pytest.approx(
            float(hessian.trace()), rel=1e-9
        )
        top = float(torch.linalg.eigvalsh(hessian)[-1])
        assert float(found["top_eigenvalue"][i]) == pytest.approx(top, rel=1e-9)
        alone = {
            "relative_flatness": curvature.relative_flatness(
                net, net[-1], F.cross_entropy, [own]
            ).value,
            "sharpness": curvature.worst_sharpness(
                net, F.cross_entropy, [own], 0.05, steps=1
            ).value,
            "adaptive_sharpness": curvature.worst_sharpness(
                net, F.cross_entropy, [own], 0.5, steps=1, adaptive=True
            ).value,
        }
        for name, value in alone.items():
            assert float(found[name][i]) == pytest.approx(float(value), rel=1e-9)


def random_net(seed: int) -> Callable[[], nn.Module]:
    """Linear layers with all that an ensemble and a piecewise linear net allow between
    them.
    """
    rng = random.Random(seed)
    between = [
        nn.ReLU,
        lambda: nn.ReLU(inplace=True),
        lambda: nn.LeakyReLU(0.1, inplace=True),
        nn.Identity,
    ]
    layers: list[Callable[[], nn.Module]] = [rng.choice(between), rng.choice(between)][
        : seed % 3
    ]
    features = 2
    for _ in range(rng.randint(0, 3)):
        width, bias = rng.randint(1, 5), rng.random() < 0.7
        layers.append(partial(nn.Linear, features, width, bias))
        if rng.random() < 0.4:
            layers.append(partial(nn.BatchNorm1d, width, affine=rng.random() < 0.7))
        layers += rng.sample(between, rng.randint(1, 2))
        features = width
    layers.append(partial(nn.Linear, features, 3, rng.random() < 0.7))
    return lambda: nn.Sequential(*[layer() for layer in layers])


@pytest.mark.parametrize(
    "seeds",
    [range(40), pytest.param(range(40, 1040), marks=pytest.mark.slow)],
    ids=["few", "many"],
)
def test_random_ensembles(seeds):
    for seed in seeds:
        model = ensemble(random_net(seed), members=2)
        x, y = X[:2], Y[:2]
        before = x.clone()
        found = curvature.ensemble_flatness(model, x, y, tol=1e-8)
        assert torch.equal(x, before), model
        assert [getattr(m, "inplace", False) for m in model.net] == [
            getattr(m, "inplace", False) for m in model.member(0)
        ]
        for i in range(2):
            net, data = model.member(i).eval(), (x[i].clone(), y[i])
            for layer in net:
                layer.inplace = False
            hessian = dense(net, *data)
            assert float(found["trace"][i]) == pytest.approx(
                float(hessian.trace()), rel=1e-8
            ), model
            w = net[-1].weight.detach()
            width = w.numel() + (0 if net[-1].bias is None else len(w))
            last = hessian[-width:, -width:][: w.numel(), : w.numel()]
            kappa = torch.einsum("st,ut,saua->", w, w, last.reshape(*w.shape, *w.shape))
            assert float(found["relative_flatness"][i]) == pytest.approx(
                float(kappa), rel=1e-8
            )
            for name, rho, adaptive in (
                ("sharpness", 0.05, 0),
                ("adaptive_sharpness", 0.5, 1),
            ):
                rise = rise_of(net, *data, rho, adaptive)
                assert float(found[name][i]) == pytest.approx(rise, rel=1e-7), model


def rise_of(net: nn.Module, x: Tensor, y: Tensor, rho: float, adaptive: int) -> float:
    """L(w + rho T^2 g / |T g|) - L(w), T = |w| or 1."""
    names, params = zip(*net.named_parameters(), strict=True)
    loss = F.cross_entropy(net(x.clone()), y)
    grads = torch.autograd.grad(loss, params)
    scales = [p.detach().abs() ** adaptive for p in params]
    size = torch.stack(
        [(t * g).norm() for t, g in zip(scales, grads, strict=True)]
    ).norm()
    if size == 0:
        return 0.0
    moved = {
        name: p.detach() + rho * t**2 * g / size
        for name, p, t, g in zip(names, params, scales, grads, strict=True)
    }
    return float(
        (F.cross_entropy(functional_call(net, moved, (x.clone(),)), y) - loss).detach()
    )


def test_an_eigenvalue_is_given_once_it_has_converged():
    found = curvature.ensemble_flatness(ensemble(), X, Y, tol=1e-14, max_products=3)
    assert found["top_eigenvalue"].isnan().all() and found["trace"].isfinite().all()


def test_products_go_on_past_the_whole_krylov_space():
    small = ensemble(lambda: nn.Sequential(nn.Linear(2, 2, bias=False)))  # 4 dimensions
    with torch.no_grad():
        small.net[0].weight[1] = 0
    found = curvature.ensemble_flatness(small, X, Y % 2, tol=1e-12)
    for i in range(3):
        top = torch.linalg.eigvalsh(dense(small.member(i), X[i], Y[i] % 2))[-1]
        assert float(found["top_eigenvalue"][i]) == pytest.approx(float(top), rel=1e-9)


def test_a_member_is_measured_the_same_beside_any_others():
    model = ensemble()
    whole = curvature.ensemble_flatness(model, X, Y, tol=0.1)
    for i in range(3):
        alone = Ensemble(lambda i=i: model.member(i), 1)
        one = curvature.ensemble_flatness(alone, X[i : i + 1], Y[i : i + 1], tol=0.1)
        for name in (
            "trace",
            "top_eigenvalue",
            "relative_flatness",
            "sharpness",
        ):
            expected = float(whole[name][i])
            assert float(one[name]) == pytest.approx(expected, rel=1e-9)


def test_single_precision_is_near():
    exact = curvature.ensemble_flatness(ensemble(), X, Y, tol=1e-9)
    found = curvature.ensemble_flatness(ensemble().float(), X.float(), Y)
    for name in (
        "trace",
        "top_eigenvalue",
        "relative_flatness",
        "sharpness",
        "adaptive_sharpness",
    ):
        assert found[name].dtype == torch.float64
        torch.testing.assert_close(found[name], exact[name], rtol=1e-4, atol=0)


@pytest.mark.parametrize("width", range(4, 8))
def test_a_net_of_constant_outputs_has_the_curvature_of_its_last_bias(width):
    """One eigenvalue is not zero, and its vector has two entries: a start of signs may
    miss it.
    """
    model = ensemble(lambda: models.mlp(2, width, 2, 2), members=2)
    with torch.no_grad():
        norm, last = model.net[5], model.net[7]
        norm.weight.zero_()
        norm.bias.fill_(-1.0)
        last.bias.zero_()
    found = curvature.ensemble_flatness(model, X[:2], Y[:2] % 2)
    assert found["trace"].tolist() == pytest.approx([0.5, 0.5])
    assert found["top_eigenvalue"].tolist() == pytest.approx([0.5, 0.5])


def test_a_lost_member_has_no_numbers_and_costs_the_others_nothing():
    model = ensemble()
    before = curvature.ensemble_flatness(model, X, Y)
    with torch.no_grad():
        next(model.parameters())[1] = math.nan
    after = curvature.ensemble_flatness(model, X, Y)
    for name in (
        "trace",
        "top_eigenvalue",
        "relative_flatness",
        "sharpness",
        "adaptive_sharpness",
    ):
        values, old = after[name], before[name]
        assert math.isnan(values[1])
        assert torch.allclose(values[[0, 2]], old[[0, 2]], rtol=1e-6)


def test_without_a_slope_no_step_is_taken_and_curvature_is_left():
    model = Ensemble(lambda: nn.Sequential(nn.Linear(2, 2)), 2)
    with torch.no_grad():
        model.net[0].weight[0] = model.net[0].bias[0] = 0.0
    found = curvature.ensemble_flatness(model, torch.ones(2, 2), torch.tensor([0, 1]))
    assert (
        found["sharpness"][0]
        == found["adaptive_sharpness"][0]
        == 0
        < found["sharpness"][1]
    )
    # p = 1/2 twice: (1/n) sum_i p_0 p_1 (|x_i|^2 + 1) for each of two rows.
    assert float(found["trace"][0]) == pytest.approx(2 * 0.25 * 3)


def test_nothing_of_the_model_changes():
    model = ensemble().train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        found = curvature.ensemble_flatness(model, X, Y)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert model.training and all(p.grad is None for p in model.parameters())
    assert tuple(found) == curvature.FLATNESS


@pytest.mark.parametrize("kept", ["1.weight", "2.weight", "7.bias"])
def test_frozen_parameters_do_not_enter(kept):
    model = ensemble()
    for name, p in model.named_parameters():
        p.requires_grad_(name == f"net.{kept}")
    found = curvature.ensemble_flatness(model, X, Y, tol=1e-9)
    for i in range(3):
        operator = curvature.HessianOperator(
            model.member(i).eval(), F.cross_entropy, [(X[i], Y[i])], params=[kept]
        )
        matrix = operator @ torch.eye(operator.shape[0], dtype=torch.float64)
        assert float(found["trace"][i]) == pytest.approx(
            float(matrix.trace()), rel=1e-9
        )
        top = float(torch.linalg.eigvalsh(matrix)[-1])
        assert float(found["top_eigenvalue"][i]) == pytest.approx(top, rel=1e-9)


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (lambda: models.mlp(2, 5, 2, 3), {"tol": math.inf}, "tol=inf"),
        (
            lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU()),
            {},
            "allowed: the logits.* Linear",
        ),
        (
            lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)),
            {},
            "not piecewise linear in net.0.weight",
        ),
        (
            lambda: nn.Sequential(
                nn.Linear(2, 4),
                nn.BatchNorm1d(4, track_running_stats=False),
                nn.Linear(4, 3),
            ),
            {},
            "running statistics|not piecewise linear",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(make, settings, words):
    with pytest.raises(ValueError, match=words):
        curvature.ensemble_flatness(ensemble(make), X, Y, **settings)


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="no parameter to train"):
        curvature.ensemble_flatness(ensemble().requires_grad_(False), X, Y)


def test_a_layer_used_twice_is_refused():
    def make() -> nn.Module:
        layer = nn.Linear(2, 2)
        return nn.Sequential(layer, nn.ReLU(), layer)

    with pytest.raises(ValueError, match="used twice"):
        curvature.ensemble_flatness(ensemble(make), X, Y)


@pytest.mark.parametrize("seed", range(20))
def test_the_top_eigenvalue_lies_within_its_residual_of_one(seed):
    """Members with random spectra, as explicit matrices, in both precisions."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    size, dtype = (
        int(2 * 200 ** draw.random()),
        draw.choice([torch.float32, torch.float64]),
    )
    members = [symmetric(draw.choice(SPECTRA)(size, draw)) for _ in range(6)]
    matrices = torch.stack(members).to(dtype)

    def multiply(vectors):
        return (torch.einsum("mij,mj->mi", matrices, vectors[0]),)

    params, fine = [torch.zeros(6, size, dtype=dtype)], torch.ones(6, dtype=torch.bool)
    values, residuals = _largest(multiply, params, fine, 1e-3, 100)
    exact = torch.linalg.eigvalsh(matrices.double())
    rounding = 100 * torch.finfo(dtype).eps * exact.abs().amax(1)
    distance = (exact - values[:, None]).abs().amin(1)
    assert (distance <= 1.01 * residuals + rounding).all()
    assert (values <= exact[:, -1] + rounding).all()


def symmetric(values: torch.Tensor) -> torch.Tensor:
    basis = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64))[
        0
    ]
    return (basis * values) @ basis.mT
