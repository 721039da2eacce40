"""SAM, ASAM, USAM, RSAM: formulas in float64, what they share, what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import inputs
import oracle
import pytest
import torch
from inputs import Problem
from torch import Tensor, nn

from flatnb.ensemble import Ensemble
from flatnb.methods import ASAM, ERM, RSAM, SAM, USAM, Method
from flatnb.methods.noise import Stream, normal
from flatnb.metrics import cross_entropy


def uphill(problem: Problem, eps: oracle.Params) -> oracle.Params:
    return oracle.grad(problem, oracle.add(oracle.params(problem), eps))


def test_sam_is_the_formula() -> None:
    problem = inputs.exact()
    g = oracle.grad(problem, oracle.params(problem))
    eps = {name: 0.3 * t / oracle.length(g) for name, t in g.items()}
    oracle.assert_equal(oracle.made_by(SAM(0.3)), uphill(problem, eps))


@pytest.mark.parametrize("all_tensors", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.01])
def test_asam_is_the_formula(all_tensors: bool, eta: float) -> None:
    problem = inputs.exact()
    w = oracle.params(problem)
    assert {name.rpartition(".")[2] for name in w} == {"weight", "bias"}
    size = {
        name: t.abs() + eta
        if all_tensors or name.endswith("weight")
        else torch.ones_like(t)
        for name, t in w.items()
    }
    g = oracle.grad(problem, w)
    length = oracle.length({name: size[name] * g[name] for name in g})
    eps = {name: 0.5 * size[name] ** 2 * g[name] / length for name in g}
    made = oracle.made_by(ASAM(0.5, eta, all_tensors=all_tensors))
    oracle.assert_equal(made, uphill(problem, eps))


def test_usam_is_the_formula() -> None:
    problem = inputs.exact()
    g = oracle.grad(problem, oracle.params(problem))
    expected = uphill(problem, {name: 0.3 * t for name, t in g.items()})
    oracle.assert_equal(oracle.made_by(USAM(0.3)), expected)
    oracle.assert_equal(oracle.made_by(SAM(0.3 * float(oracle.length(g)))), expected)


@pytest.mark.parametrize("lam", [0.0, 1.0, 2.5])
def test_rsam_is_the_formula(lam: float) -> None:
    problem = inputs.exact()
    w = oracle.params(problem)
    draws = Stream(7, normal).draw(problem.params)
    delta = {name: 0.2 * u for name, u in zip(w, draws, strict=True)}
    g = oracle.grad(problem, oracle.add(w, delta))
    length = sum((lam * g[name].norm() + delta[name].norm()) ** 2 for name in g) ** 0.5
    eps = {name: 0.3 * t / length for name, t in g.items()}
    oracle.assert_equal(
        oracle.made_by(RSAM(0.3, 0.2, lam, seed=7)), uphill(problem, eps)
    )


def test_rsam_without_noise_is_sam() -> None:
    oracle.assert_equal(oracle.made_by(RSAM(0.3, 0.0)), oracle.made_by(SAM(0.3)))


@pytest.mark.parametrize(
    "method", [SAM(0.0), ASAM(0.0), USAM(0.0), RSAM(0.0)], ids=repr
)
def test_radius_zero_is_plain_training(method: Method) -> None:
    oracle.assert_equal(oracle.made_by(method), oracle.made_by(ERM()))


def test_no_two_agree_elsewhere() -> None:
    made = [
        oracle.made_by(m)
        for m in (ERM(), SAM(0.3), ASAM(0.3), USAM(0.3), RSAM(0.3, 0.2))
    ]
    assert all(oracle.differ(a, b) for i, a in enumerate(made) for b in made[:i])


def test_asam_does_not_see_the_scale_of_layers() -> None:
    def problem(c: float) -> Problem:
        problem = inputs.exact()
        problem.model = nn.Sequential(
            nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)
        ).double()
        with torch.no_grad():
            for layer, factor in ((problem.model[0], c), (problem.model[2], 1 / c)):
                values = torch.linspace(
                    -1, 1, layer.weight.numel(), dtype=torch.float64
                ).sin()
                layer.weight.copy_(factor * values.view(layer.weight.shape))
        return problem

    a, b = (oracle.made_by(ASAM(0.5, eta=0.0), problem(c)) for c in (1.0, 5.0))
    oracle.assert_equal(
        b, {"0.weight": a["0.weight"] / 5, "2.weight": 5 * a["2.weight"]}
    )
    a, b = (oracle.made_by(SAM(0.5), problem(c)) for c in (1.0, 5.0))
    assert oracle.differ(
        b, {"0.weight": a["0.weight"] / 5, "2.weight": 5 * a["2.weight"]}
    )


def test_the_norm_is_over_all_tensors_and_keeps_its_digits() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.big, self.small = (nn.Parameter(torch.zeros(n)) for n in (1 << 21, 1))

    model = Net()
    at: list[Tensor] = []

    def closure() -> Tensor:
        at.append(torch.cat([model.big, model.small]).detach())
        return (0.1 * model.big.sum() + 3 * model.small.sum()).reshape(1)

    SAM(1.0).backward(model, closure)
    # Equal entries are the worst case: sums in float32 are off by 1e-5 to 9e-4 here.
    # What remains is the rounding of the perturbation itself, 6e-8 of each entry.
    assert float(at[1].double().norm()) == pytest.approx(1.0, abs=1e-6)
    assert float(at[1][-1] / at[1][0]) == pytest.approx(30.0, rel=1e-6)


def test_weight_decay_in_the_closure_tilts_the_perturbation() -> None:
    problem = inputs.exact()
    w = oracle.params(problem)

    def decayed(at: oracle.Params) -> oracle.Params:
        return oracle.add(oracle.grad(problem, at), at, 0.1)

    g = decayed(w)
    expected = decayed(oracle.add(w, g, 0.3 / oracle.length(g)))
    SAM(0.3).backward(
        problem.model,
        lambda: problem() + 0.5 * 0.1 * sum(p.square().sum() for p in problem.params),
    )
    made = {name: p.grad for name, p in problem.model.named_parameters()}
    oracle.assert_equal(made, expected)


MAKERS: dict[str, tuple[str, Callable[[object], Method]]] = {
    "SAM": ("rho", SAM),
    "ASAM": ("rho", ASAM),
    "ASAM eta": ("eta", lambda v: ASAM(0.5, v)),
    "USAM": ("rho", USAM),
    "RSAM": ("rho", RSAM),
    "RSAM sigma": ("sigma", lambda v: RSAM(0.1, v)),
    "RSAM lam": ("lam", lambda v: RSAM(0.1, 0.1, v)),
}


@pytest.mark.parametrize(("name", "make"), MAKERS.values(), ids=MAKERS)
def test_values_of_another_ensemble_are_refused(name: str, make: Callable) -> None:
    method = make(torch.tensor([0.1, 0.2]))
    plain = inputs.plain()
    with pytest.raises(ValueError, match=f"{name} has 2 values.*no Ensemble"):
        method.backward(plain.model, plain)
    model = Ensemble(lambda: nn.Linear(4, 3), 3)
    with pytest.raises(ValueError, match=f"{name} has 2 values.*of 3 members"):
        method.backward(model, lambda: cross_entropy(model(plain.x), plain.y))


def test_odd_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"seed=0\.5"):
        RSAM(seed=0.5)
    with pytest.raises(ValueError, match="seed=-1"):
        RSAM(seed=-1)


def test_names_are_written_as_they_are_made() -> None:
    assert repr(SAM(0.05)) == "SAM(rho=0.05)"
    assert (
        repr(ASAM(1.0, 0.0, all_tensors=True))
        == "ASAM(rho=1.0, eta=0.0, all_tensors=True)"
    )
    assert repr(USAM(torch.tensor([0.1, 0.2]))) == "USAM(rho=<2 values>)"
    assert repr(RSAM(0.1, seed=3)) == "RSAM(rho=0.1, seed=3)"
