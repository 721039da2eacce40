"""Moments of the spectral density."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, Case
from matrices import Dense, Drawn

from flatnb.curvature import HessianOperator, spectral_density
from flatnb.curvature.trace import rademacher


def operator(case: Case) -> HessianOperator:
    return HessianOperator(case.model, case.loss, case.batches)


def test_moments_are_those_of_the_start_vectors_exactly(case: Case):
    op = operator(case)
    density = spectral_density(op, steps=6, probes=3, seed=5)
    signs = torch.Generator().manual_seed(5)
    draws = [
        torch.randint(0, 2, (1, op.size), generator=signs, dtype=torch.int8)
        for _ in range(3)
    ]
    z = torch.cat(draws).double() * 2 - 1
    power, scale = z, float(case.hessian.abs().max())
    for degree in range(12):  # up to 2 steps - 1
        exact = float((z * power).sum(1).mean()) / op.size
        assert density.moment(degree)[0] == pytest.approx(
            exact, rel=1e-9, abs=1e-9 * scale**degree
        )
        power = power @ case.hessian


def test_moments_are_unbiased():
    case = CASES["perceptron"]
    density = spectral_density(operator(case), steps=4, probes=100)
    for degree in (1, 2, 3):
        exact = float(torch.linalg.matrix_power(case.hessian, degree).trace()) / len(
            case.hessian
        )
        value, error = density.moment(degree)
        assert abs(value - exact) < 4 * error


def test_the_whole_spectrum_is_seen_when_steps_suffice():
    case = CASES["perceptron"]
    density = spectral_density(operator(case), steps=1000, probes=2)
    exact = torch.linalg.eigvalsh(case.hessian)
    assert density.nodes.max() == pytest.approx(float(exact[-1]), rel=1e-10)
    assert density.nodes.min() == pytest.approx(float(exact[0]), rel=1e-10)
    assert torch.allclose(density.weights.sum(1), torch.ones(2, dtype=torch.float64))


def test_the_curve_is_a_density_with_the_stated_smoothing():
    density = spectral_density(operator(CASES["perceptron"]), steps=10, probes=2)
    low, high = float(density.nodes.min()), float(density.nodes.max())
    sigma = (high - low) / 100
    grid = torch.linspace(low - 5 * sigma, high + 5 * sigma, 4000, dtype=torch.float64)
    curve, step = density.curve(grid, sigma), float(grid[1] - grid[0])
    assert float(curve.sum() * step) == pytest.approx(1, abs=1e-4)
    mean = float((curve * grid).sum() * step)
    assert mean == pytest.approx(density.moment(1)[0], rel=1e-3, abs=1e-6)
    variance = float((curve * grid**2).sum() * step)
    assert variance == pytest.approx(density.moment(2)[0] + sigma**2, rel=1e-3)


def test_bad_input():
    op = operator(CASES["perceptron"])
    for settings in ({"steps": 0}, {"probes": 1}):
        with pytest.raises(ValueError, match="allowed: an integer"):
            spectral_density(op, **settings)
    with pytest.raises(ValueError, match="sigma"):
        spectral_density(op, steps=2).curve(torch.zeros(1), 0.0)


@pytest.mark.parametrize("batch", range(4))
def test_moments_of_random_matrices(batch):
    """Every moment that the quadrature has exactly, against powers of the matrix in
    float64.
    """
    for seed in range(20 * batch, 20 * batch + 20):
        drawn = Drawn(seed, most=80)
        matrix, size = drawn.matrix.double(), len(drawn.matrix)
        scale = float(drawn.exact.abs().max()) or 1.0
        steps = 1 + seed % 13
        density = spectral_density(
            Dense(drawn.matrix), steps=steps, probes=2, seed=seed
        )
        signs = torch.Generator().manual_seed(seed)
        like = torch.zeros(0, dtype=torch.float64)
        z = torch.cat([rademacher((1, size), signs, like) for _ in range(2)])
        power = z
        for degree in range(2 * min(steps, size)):
            exact = float((z * power).sum(1).mean()) / size
            moment = float(
                (density.weights * (density.nodes / scale) ** degree).sum(1).mean()
            )
            rounding = 100 * torch.finfo(drawn.matrix.dtype).eps * (degree + 1)
            assert moment == pytest.approx(exact, abs=rounding), (
                f"matrix {seed}: {drawn}"
            )
            power = power @ matrix / scale
        assert density.weights.sum(1).tolist() == pytest.approx([1, 1])
