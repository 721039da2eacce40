"""Matrix sensing: the packed form, its gradient, the noise, and what descent finds."""

import math
from functools import partial

import pytest
import torch

from flatnb.data import sensing
from flatnb.data.sensing import Rule, pack, unpack


def drawn(dtype: torch.dtype = torch.float64, **sizes) -> sensing.Problem:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return sensing.problem(**sizes)
    finally:
        torch.set_default_dtype(before)


def small(seed: int = 0, **sizes) -> sensing.Problem:
    return drawn(**{"d": 6, "rank": 2, "m": 40, **sizes}, seed=seed)


def start(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def loss(p: sensing.Problem, u: torch.Tensor) -> torch.Tensor:
    """f of each matrix in u, as written."""
    residuals = (unpack(p.train) * (u @ u.mT)[..., None, :, :]).sum((-2, -1))
    return (residuals - p.train_y).square().mean(-1) / 4


def close(actual, expected, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol)


# The problem


def test_packing_keeps_inner_products_and_is_undone():
    x, y = (a + a.mT for a in (start(3, 5, 5), start(3, 5, 5, seed=1)))
    close((pack(x) * pack(y)).sum(-1), (x * y).sum((-2, -1)))
    close(unpack(pack(x)), x)
    assert pack(x).shape == (3, 15)


def test_measurements_are_those_of_a_matrix_of_the_rank():
    p = drawn(d=8, rank=3, seed=1)
    assert len(p.train) == len(p.val) == 5 * 8 * 3
    assert torch.linalg.matrix_rank(p.target) == 3
    for a, y in ((p.train, p.train_y), (p.val, p.val_y)):
        close(y, (unpack(a) * p.target).sum((-2, -1)))
    assert not torch.equal(p.train, p.val)


def test_entries_have_the_variances_of_a_symmetrized_gaussian():
    a = unpack(drawn(d=12, rank=1, m=4000).train)
    variance = a.var(0)
    expected = (torch.ones(12, 12) + torch.eye(12)) / 2
    # sqrt(2 / 4000) is the relative standard error of a variance; 5 of them for 78
    # entries.
    assert ((variance / expected - 1).abs() < 5 * math.sqrt(2 / 4000)).all()
    assert (a.mean(0).abs() < 5 / math.sqrt(4000)).all()


def test_a_seed_is_one_problem_in_both_precisions():
    double, single = (
        drawn(t, d=6, rank=2, seed=3) for t in (torch.float64, torch.float32)
    )
    assert torch.equal(double.train.float(), single.train)
    assert torch.equal(double.val_y.float(), single.val_y)
    assert not torch.equal(small(3).target, small(4).target)


# Loss, gradient, metrics


@pytest.mark.parametrize("members", [1, 2, 9])
@pytest.mark.parametrize(
    "block", [1, 1000, 10**6]
)  # bytes: a row, some rows, all of them
def test_gradient_is_that_of_autograd_on_the_plain_form(members, block, monkeypatch):
    monkeypatch.setattr(sensing, "_BLOCK", block)
    p = small(m=50)
    u = start(members, 6, 4).requires_grad_()
    (expected,) = torch.autograd.grad(loss(p, u).sum(), u)
    close(p.gradient(u.detach()), expected)
    close(p.gradient(u.detach()[0]), expected[0])


def test_symmetrizing_a_measurement_changes_nothing_on_symmetric_matrices():
    b, u = start(7, 6, 6), start(6, 6, seed=1)
    x = u @ u.mT
    close(pack((b + b.mT) / 2) @ pack(x), (b * x).sum((-2, -1)))


def test_metrics_are_one_at_zero_and_zero_at_the_target():
    p = small()
    values, vectors = torch.linalg.eigh(p.target)
    root = vectors * values.clamp(min=0).sqrt()
    for metric in p.metrics(torch.stack([torch.zeros_like(root), root])):
        close(metric, torch.tensor([1.0, 0.0], dtype=torch.float64), rtol=1e-9)
    u = start(6, 6)
    train, val, distance = p.metrics(u)
    x = u @ u.mT
    close(train, 4 * loss(p, u) / p.train_y.square().mean())
    close(val, (p.val @ pack(x) - p.val_y).square().mean() / p.val_y.square().mean())
    close(distance, ((x - p.target).norm() / p.target.norm()) ** 2)


# Noise


def trace(p: sensing.Problem, u: torch.Tensor) -> torch.Tensor:
    """Tr of the Hessian of f, by hand: 1/m sum_i [2 ||A_i U||^2 + width r_i tr A_i]."""
    a = unpack(p.train)
    residuals = (a * (u @ u.mT)).sum((-2, -1)) - p.train_y
    traces = a.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (
        2 * (a @ u).square().sum((-2, -1)) + u.shape[-1] * residuals * traces
    ).mean()


def test_trace_by_hand_is_that_of_the_dense_hessian():
    p, u = small(d=4, m=15), start(4, 3)
    hessian = torch.autograd.functional.hessian(partial(loss, p), u).reshape(12, 12)
    close(trace(p, u), hessian.trace())


def test_two_sided_noise_adds_half_sigma_squared_times_the_gradient_of_the_trace():
    # f is a quartic, so the mean of both sides is exactly grad f plus a form of degree
    # 2 in V, and the 2n points +-sigma sqrt(n) e_i have all moments of the Gaussian to
    # degree 3: no sampling.
    p, u, sigma = small(), start(6, 6).requires_grad_(), 0.3
    directions = sigma * 6 * torch.eye(36, dtype=torch.float64).view(36, 6, 6)
    points = torch.cat([u + directions, u - directions]).detach()
    (slope,) = torch.autograd.grad(trace(p, u), u)
    expected = p.gradient(u.detach()) + sigma**2 / 2 * slope
    close(p.gradient(points).mean(0), expected, rtol=1e-11)


def first_steps(p: sensing.Problem, rule: Rule, seeds: int) -> torch.Tensor:
    """U after one step from each seed's start, (seeds, d, width)."""
    runs = [sensing.descend(p, [rule], epochs=1, seed=seed) for seed in range(seeds)]
    return torch.stack([run["u"][0] for run in runs])


@pytest.mark.parametrize("sides", [1, 2])
def test_descent_takes_the_mean_of_gradients_at_random_neighbors(sides):
    # From (almost) zero the step is known: the mean of one side vanishes by symmetry
    # too, and the covariance is sigma^2 H^2 of one side; of two sides at zero it is
    # exactly zero, g being odd.
    p, rule = small(), Rule(sigma=0.1, sides=sides, init_scale=1e-12)
    gradients = -first_steps(p, rule, seeds=400) / rule.lr
    if sides == 2:
        assert gradients.abs().max() < 1e-6
        return
    # Of the loss at zero, on each column.
    hessian = unpack(-(p.train_y @ p.train) / len(p.train))
    expected = 0.01 * (hessian @ hessian).trace() * 6
    square = gradients.square().sum((-2, -1))
    assert abs(square.mean() - expected) < 5 * square.std() / 20 + 0.05 * expected


def test_more_directions_have_less_spread():
    p = small()
    plain = first_steps(p, Rule(init_scale=0.5), seeds=300)
    spread = []
    for sides, k in ((1, 1), (1, 4), (2, 1), (2, 4)):
        rule = Rule(sigma=0.2, k=k, sides=sides, init_scale=0.5)
        offset = first_steps(p, rule, seeds=300) - plain
        spread.append(float(offset.square().sum((-2, -1)).mean()))
    one, one_of_four, two, two_of_four = spread
    assert one_of_four < one / 3 and two_of_four < two and two < one


def test_noise_of_no_size_is_gradient_descent():
    p = small()
    done = sensing.descend(
        p, [Rule(), Rule(sigma=1e-9), Rule(sigma=0.0, k=3)], epochs=20
    )
    close(done["u"][1], done["u"][0], rtol=1e-8)
    close(done["u"][2], done["u"][0], rtol=1e-10)


# Descent


def test_descent_is_the_written_rule():
    p, rule = small(), Rule(lr=0.01)
    run = sensing.descend(p, [rule], epochs=7, seed=2, width=3, every=5)
    u = sensing.descend(p, [Rule(lr=1e-300)], epochs=1, seed=2, width=3)["u"][0]
    assert run["epochs"].tolist() == [0, 5, 7]
    curves = torch.stack([run["train_error"], run["val_error"], run["distance"]])[:, 0]
    for epoch in range(8):
        if epoch in (0, 5, 7):
            recorded = curves[:, [0, 5, 7].index(epoch)]
            close(recorded, p.metrics(u))
        last, u = u, u - rule.lr * p.gradient(u)
    close(run["u"][0], last)


def test_rules_are_what_they_are_alone():
    p = small()
    rules = [
        Rule(),
        Rule(sigma=0.1, sides=1),
        Rule(sigma=0.1, k=3),
        Rule(sigma=0.2, lr=0.001),
    ]
    together = sensing.descend(p, rules, epochs=30, seed=3)
    for i, rule in enumerate(rules):
        alone = sensing.descend(p, [rule], epochs=30, seed=3)
        close(together["u"][i], alone["u"][0], rtol=1e-9)
        close(together["distance"][i], alone["distance"][0], rtol=1e-9)


def test_a_diverged_rule_leaves_the_others():
    p = small()
    run = sensing.descend(p, [Rule(lr=50.0), Rule()], epochs=60)
    assert not run["distance"][0, -1].isfinite()
    close(run["u"][1], sensing.descend(p, [Rule()], epochs=60)["u"][0])


def three() -> list[Rule]:
    noise = {"sigma": 0.08, "lr": 0.0125}
    return [Rule(lr=0.0125), Rule(sides=1, **noise), Rule(**noise)]


def test_single_precision_ends_where_double_does():
    single, double = (
        sensing.descend(drawn(dtype, d=20, rank=1), three(), epochs=600, every=300)
        for dtype in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(
        single["distance"], double["distance"], rtol=1e-3, atol=0
    )
    torch.testing.assert_close(
        single["val_error"], double["val_error"], rtol=1e-3, atol=0
    )


def test_noise_recovers_what_gradient_descent_does_not():
    ratios = []
    for seed in range(3):
        p = sensing.problem(d=20, rank=1, seed=seed)
        for start_seed in range(3):
            run = sensing.descend(p, three(), epochs=2000, seed=start_seed, every=2000)
            plain, one, two = run["distance"][:, -1].sqrt()
            # It interpolates, far from the target.
            assert run["train_error"][0, -1] < 1e-3
            assert one < 0.15 < 3 * 0.15 < plain
            ratios.append(one / two)
    assert torch.stack(ratios).median() > 1.2


def test_what_makes_no_sense_is_refused():
    for bad in ({"rank": 2.0}, {"seed": -1}):
        with pytest.raises((TypeError, ValueError)):
            small(**bad)
    for bad in ({"every": 0}, {"epochs": 1.5}, {"seed": -1}, {"rules": []}):
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            sensing.descend(small(), **{"rules": [Rule()], "epochs": 1, **bad})
