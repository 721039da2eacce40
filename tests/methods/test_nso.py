"""Noise stability optimization and weight noise: formulas, biases, distributions,
streams.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable

import inputs
import oracle
import pytest
import torch
from torch import Tensor, nn

from flatnb.ensemble import Ensemble
from flatnb.methods import ERM, NSO, SAM, Method, WeightNoise, compose
from flatnb.methods.noise import (
    Distribution,
    Stream,
    laplace,
    normal,
    rademacher,
    uniform,
)
from flatnb.metrics import cross_entropy

DISTRIBUTIONS = [normal, laplace, uniform, rademacher]
named = {"ids": lambda f: getattr(f, "__name__", None)}


# -- gradients
# ------------------------------------------------------------------------------------


def directions(k: int, noise: Distribution = normal) -> list[oracle.Params]:
    problem, stream = inputs.exact(), Stream(7, noise)
    names = oracle.params(problem)
    return [
        dict(zip(names, stream.draw(problem.params), strict=True)) for _ in range(k)
    ]


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("noise", DISTRIBUTIONS, **named)
def test_gradients_are_the_formulas(k: int, noise: Distribution) -> None:
    problem = inputs.exact()
    w = oracle.params(problem)
    plus = [oracle.grad(problem, oracle.add(w, u, 0.3)) for u in directions(k, noise)]
    minus = [oracle.grad(problem, oracle.add(w, u, -0.3)) for u in directions(k, noise)]
    one = {name: sum(g[name] for g in plus) / k for name in w}
    two = {name: sum(g[name] for g in plus + minus) / (2 * k) for name in w}
    oracle.assert_equal(oracle.made_by(WeightNoise(0.3, k, noise=noise, seed=7)), one)
    oracle.assert_equal(oracle.made_by(NSO(0.3, k, noise=noise, seed=7)), two)
    assert oracle.differ(one, two)


@pytest.mark.parametrize("cls", [NSO, WeightNoise])
def test_small_noise_is_plain_training(cls: type) -> None:
    plain = oracle.made_by(ERM())
    oracle.assert_equal(oracle.made_by(cls(0.0)), plain)
    oracle.assert_equal(oracle.made_by(cls(1e-9)), plain, tol=1e-7)


@pytest.mark.parametrize("noise", DISTRIBUTIONS, **named)
def test_two_sides_are_exact_on_a_quadratic_and_one_is_not(noise: Distribution) -> None:
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(20, 20, generator=draw, dtype=torch.float64)
    a, w = a + a.T, torch.randn(20, generator=draw, dtype=torch.float64)
    surface = oracle.Surface(w, lambda v: v @ a @ v / 2 + v.sum())
    expected = a @ w + 1
    for seed in range(5):
        two = surface.grad_by(NSO(0.7, noise=noise, seed=seed))
        torch.testing.assert_close(two, expected, rtol=1e-12, atol=1e-12)
        one = surface.grad_by(WeightNoise(0.7, noise=noise, seed=seed))
        assert float((one - expected).abs().max()) > 0.1


@pytest.mark.parametrize("noise", DISTRIBUTIONS, **named)
@pytest.mark.parametrize("cls", [NSO, WeightNoise])
def test_bias_on_a_quartic_is_half_sigma_squared_times_the_gradient_of_the_trace(
    cls: type, noise: Distribution
) -> None:
    # f = sum w^4 / 12: grad f = w^3 / 3, Tr H = sum w^2, so the bias is sigma^2 w. All
    # entries are equal, so each is one independent draw.
    n, w, sigma = 200_000, 1.5, 0.5
    surface = oracle.Surface(
        torch.full((n,), w, dtype=torch.float64), lambda v: (v**4).sum() / 12
    )
    excess = surface.grad_by(cls(sigma, noise=noise)) - w**3 / 3
    error = float(excess.std()) / math.sqrt(n)
    assert float(excess.mean()) == pytest.approx(sigma**2 * w, abs=5 * error + 1e-12)
    assert error < 0.01  # far below the bias, 0.375


def test_two_sides_have_less_noise_than_two_draws() -> None:
    w = torch.full((50_000,), 1.5, dtype=torch.float64)
    surface = oracle.Surface(w, lambda v: (v**4).sum() / 12)
    two_sides = surface.grad_by(NSO(0.1)).std()
    two_draws = surface.grad_by(WeightNoise(0.1, k=2)).std()
    # Second order in sigma against first: w sigma^2 sqrt(2) against w^2 sigma /
    # sqrt(2), but for higher orders of 1 %. The standard deviation of 50,000 squares is
    # known to 0.8 %.
    assert float(two_sides) == pytest.approx(1.5 * 0.1**2 * 2**0.5, rel=0.05)
    assert float(two_draws) == pytest.approx(1.5**2 * 0.1 / 2**0.5, rel=0.05)


def test_sides_are_symmetric_to_rounding() -> None:
    problem = inputs.plain()
    before = [p.detach().clone() for p in problem.params]
    sides: list[list[Tensor]] = []

    def closure() -> Tensor:
        sides.append([p.detach().clone() for p in problem.params])
        return problem()

    NSO(1e-3).backward(problem.model, closure)
    for w, plus, minus in zip(before, *sides, strict=True):
        assert not torch.equal(plus, w)
        # Not "equal to w - sigma U", but what counts: (plus - w) and (minus - w)
        # cancel.
        assert torch.allclose((plus - w) + (minus - w), torch.zeros(()), atol=2e-7)


@pytest.mark.parametrize(
    ("method", "passes"), [(NSO(0.1), 2), (NSO(0.1, 3), 6)], ids=repr
)
def test_passes(method: Method, passes: int) -> None:
    assert method.passes == passes
    assert compose(SAM(0.1)).passes == 2
    assert WeightNoise(0.1, 3).passes == 3


# -- noise
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise", "fourth"),
    [(normal, 3.0), (laplace, 6.0), (uniform, 1.8), (rademacher, 1.0)],
    **named,
)
def test_distributions_are_centred_with_unit_variance(
    noise: Distribution, fourth: float
) -> None:
    n = 400_000
    u = torch.empty(n, dtype=torch.float64)
    noise(u, torch.Generator().manual_seed(1))
    for power, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, fourth)):
        values = u**power
        assert float(values.mean()) == pytest.approx(
            expected, abs=5 * float(values.std()) / math.sqrt(n) + 1e-12
        )
    assert abs(float((u[1:] * u[:-1]).mean())) < 5 / math.sqrt(n)


def test_own_distribution() -> None:
    def spike(out: Tensor, generator: torch.Generator) -> None:
        out.zero_()[0] = math.sqrt(len(out))

    oracle.assert_equal(
        oracle.made_by(NSO(1e-9, noise=spike)), oracle.made_by(ERM()), tol=1e-7
    )
    assert repr(NSO(0.1, noise=spike)) == "NSO(sigma=0.1, noise=spike)"
    assert repr(NSO(0.1, 2, seed=4)) == "NSO(sigma=0.1, k=2, seed=4)"


def test_fresh_each_step_and_by_seed() -> None:
    method = NSO(0.3)
    first, second = oracle.made_by(method), oracle.made_by(method)
    assert oracle.differ(first, second)
    assert oracle.differ(first, oracle.made_by(NSO(0.3, seed=1)))
    oracle.assert_equal(first, oracle.made_by(NSO(0.3)), tol=0.0)


def test_noise_does_not_repeat_the_start_of_the_net() -> None:
    torch.manual_seed(0)
    start = torch.randn(1000)
    (noise,) = Stream(0, normal).draw([start])
    assert abs(float((start * noise).mean())) < 0.2


def test_dtypes_may_be_mixed() -> None:
    params = [
        torch.zeros(3, 2),
        torch.zeros(4, dtype=torch.float64),
        torch.zeros(5),
        torch.zeros(()),
    ]
    noise = Stream(0, normal).draw(params)
    assert [(u.shape, u.dtype) for u in noise] == [(p.shape, p.dtype) for p in params]
    values = torch.cat([u.double().flatten() for u in noise])
    assert len(values.unique()) == len(values)


def test_long_tensors_are_drawn_alike_by_any_number_of_threads() -> None:
    params = [torch.empty(700, 700), torch.empty(33)]  # several blocks
    threads = torch.get_num_threads()
    drawn = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            drawn.append(Stream(3, normal).draw(params))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *drawn))
    blocks = drawn[0][0].flatten()[: 3 << 17].view(3, -1)
    assert len({float(block[0]) for block in blocks}) == 3
    assert (
        float((blocks.corrcoef() - torch.eye(3)).abs().max()) < 0.02
    )  # 1/sqrt(n) is 0.003
    ensemble = [torch.empty(2, *p.shape) for p in params]
    for alone, member in zip(
        drawn[0], Stream(3, normal).draw(ensemble, [5, 0]), strict=True
    ):
        assert torch.equal(alone, member[1])


def test_members_draw_as_nets_alone() -> None:
    params = [torch.zeros(3, 4, 2), torch.zeros(3, 5)]
    together = Stream(10, normal).draw(params, [2, 5, 2])
    for i, seed in enumerate((2, 5, 2)):
        alone = Stream(10 + seed, normal).draw([p[i] for p in params])
        for a, b in zip(together, alone, strict=True):
            assert torch.equal(a[i], b)
    assert not torch.equal(together[0][0], together[0][1])


@pytest.mark.parametrize("cls", [NSO, WeightNoise])
def test_member_is_the_plain_net_under_the_sum_of_seeds(cls: type) -> None:
    model = Ensemble(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), 3
    ).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    cls(0.3, seed=10).backward(model, lambda: cross_entropy(model(x), y))
    for i, seed in enumerate(model.seeds):
        net = model.member(i)
        cls(0.3, seed=10 + seed).backward(net, lambda net=net: cross_entropy(net(x), y))
        for p, q in zip(net.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(q.grad[i], p.grad)


def saved(method: Method) -> dict:
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_stream_resumes_through_a_file() -> None:
    method, resumed = NSO(0.3), NSO(0.3)
    oracle.made_by(method)
    resumed.load_state_dict(saved(method))
    resumed.load_state_dict(saved(resumed))  # not drawn from in between
    oracle.assert_equal(oracle.made_by(resumed), oracle.made_by(method), tol=0.0)


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_go_on_alike(clone: Callable[[Method], Method]) -> None:
    method = NSO(0.3)
    oracle.made_by(method)
    other = clone(method)
    oracle.assert_equal(oracle.made_by(other), oracle.made_by(method), tol=0.0)


def test_state_of_another_device_is_refused() -> None:
    method = NSO(0.3)
    generators = {0: torch.zeros(16, dtype=torch.uint8)}
    method.load_state_dict({"calls": 0, "generators": generators})
    with pytest.raises(RuntimeError, match="RNG state size"):
        oracle.made_by(method)
    with pytest.raises(ValueError, match="state has the entries"):
        method.load_state_dict({"calls": 1})


@pytest.mark.parametrize("cls", [NSO, WeightNoise])
def test_other_bad_settings_are_refused(cls: type) -> None:
    for noise in ("normal", None, 1.0):
        with pytest.raises(TypeError, match=r"noise=.*allowed: normal, laplace"):
            cls(0.1, noise=noise)
    with pytest.raises(ValueError, match=r"seed=-1; allowed: an integer >= 0"):
        cls(0.1, seed=-1)
