"""Moments of the spectral density."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, Case

from flatnb.curvature import HessianOperator, spectral_density


def operator(case: Case) -> HessianOperator:
    return HessianOperator(case.model, case.loss, case.batches)


def test_moments_are_those_of_the_start_vectors_exactly(case: Case):
    op = operator(case)
    density = spectral_density(op, steps=6, probes=3, seed=5)
    signs = torch.Generator().manual_seed(5)
    draws = [torch.randint(0, 2, (1, op.size), generator=signs, dtype=torch.int8) for _ in range(3)]
    z = torch.cat(draws).double() * 2 - 1
    power, scale = z, float(case.hessian.abs().max())
    for degree in range(12):  # up to 2 steps - 1
        exact = float((z * power).sum(1).mean()) / op.size
        assert density.moment(degree)[0] == pytest.approx(exact, rel=1e-9, abs=1e-9 * scale**degree)
        power = power @ case.hessian


def test_moments_are_unbiased():
    case = CASES["perceptron"]
    density = spectral_density(operator(case), steps=4, probes=100)
    for degree in (1, 2, 3):
        exact = float(torch.linalg.matrix_power(case.hessian, degree).trace()) / len(case.hessian)
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
    grid = density.grid(4000)
    step = float(grid[1] - grid[0])
    assert float(density.curve(grid).sum() * step) == pytest.approx(1, abs=1e-4)
    mean = float((density.curve(grid) * grid).sum() * step)
    assert mean == pytest.approx(density.moment(1)[0], rel=1e-3, abs=1e-6)
    variance = float((density.curve(grid) * grid**2).sum() * step)
    assert variance == pytest.approx(density.moment(2)[0] + density.sigma**2, rel=1e-3)
    assert f"{density.sigma:.2g}" in repr(density)


def test_bad_input():
    op = operator(CASES["perceptron"])
    for settings in ({"steps": 0}, {"probes": 1}, {"sigma": 0.0}):
        with pytest.raises(ValueError, match="needed"):
            spectral_density(op, **settings)
    with pytest.raises(ValueError, match="sigma"):
        spectral_density(op, steps=2).curve(torch.zeros(1), 0.0)
    op.memory_bytes = op.graph_bytes + 20 * op.size
    with pytest.raises(MemoryError, match="Lanczos basis"):
        spectral_density(op, steps=60)
