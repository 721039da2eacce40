"""Which parameters are moved, and how far: `perturb`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import inputs
import oracle
import pytest
import torch
from inputs import Problem
from properties import identical
from torch import nn

from flatnb.ensemble import Ensemble
from flatnb.methods import (
    ASAM,
    ERM,
    GNP,
    NSO,
    RSAM,
    SAM,
    USAM,
    Method,
    WeightNoise,
    compose,
)
from flatnb.methods.noise import Stream, normal
from flatnb.methods.perturb import all_but_norms_and_biases, only_norms
from flatnb.metrics import cross_entropy

# Each as a function of the argument, with noise from the same seed at every call.
METHODS: dict[str, Callable[..., Method]] = {
    "SAM": lambda **kw: SAM(0.3, **kw),
    "ASAM": lambda **kw: ASAM(0.5, 0.1, **kw),
    "USAM": lambda **kw: USAM(0.3, **kw),
    "RSAM": lambda **kw: RSAM(0.3, 0.1, 0.7, **kw),
    "GNP": lambda **kw: GNP(0.3, 0.6, **kw),
    "GNP, normalised": lambda **kw: GNP(0.3, 0.6, normalize=True, **kw),
    "WeightNoise": lambda **kw: WeightNoise(0.1, 2, **kw),
    "NSO": lambda **kw: NSO(0.1, 2, **kw),
}
every = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)

# Of `normalised()`: nothing, the number, True.
FACTORS = {
    "body.0.weight": 0,
    "body.0.bias": 1,
    "body.1.weight": True,
    "body.1.bias": 0.5,
}


def normalised() -> Problem:
    """Float64, smooth, with a layer norm; parameters that are not whole numbers."""

    def net() -> nn.Module:
        body = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Softplus())
        return inputs.Net(body, 8, 3).double()

    problem = inputs.classification(net, (4,))()
    problem.x = problem.x.double()
    with torch.no_grad():
        for i, p in enumerate(problem.params):
            p.add_(0.1 * torch.cos(torch.arange(p.numel()) + i).view(p.shape))
    return problem


def factor(name: str, parameter: torch.Tensor, module: nn.Module) -> float:
    return FACTORS.get(name, 2.0)


def scaled(a: oracle.Params, f: dict[str, float]) -> oracle.Params:
    return {name: f[name] * t for name, t in a.items()}


def norm(a: oracle.Params, f: dict[str, float]) -> torch.Tensor:
    return oracle.length({name: t for name, t in a.items() if f[name] > 0})


def expected(name: str, problem: Problem, f: dict[str, float]) -> oracle.Params:
    """The formula of the method with the factors f, written out."""
    w = oracle.params(problem)
    stream = Stream(0, normal)

    def draw() -> oracle.Params:
        return dict(zip(w, stream.draw(problem.params), strict=True))

    def at(move: oracle.Params, size: float | torch.Tensor) -> oracle.Params:
        return oracle.grad(problem, oracle.add(w, scaled(move, f), size))

    def mean(grads: list[oracle.Params]) -> oracle.Params:
        return {n: sum(g[n] for g in grads) / len(grads) for n in w}

    g = oracle.grad(problem, w)
    if name == "SAM":
        return at(g, 0.3 / norm(g, f))
    if name == "ASAM":
        sizes = {
            n: p.abs() + 0.1 if "weight" in n else torch.ones_like(p)
            for n, p in w.items()
        }
        once = {n: sizes[n] * g[n] for n in w}
        return at({n: sizes[n] * once[n] for n in w}, 0.5 / norm(once, f))
    if name == "USAM":
        return at(g, 0.3)
    if name == "RSAM":
        delta = scaled(draw(), dict.fromkeys(w, 0.1))
        g = at(delta, 1.0)
        parts = [0.7 * g[n].norm() + (f[n] * delta[n]).norm() for n in w if f[n] > 0]
        return at(g, 0.3 / torch.stack(parts).norm())
    if name.startswith("GNP"):
        second = at(g, 0.3 / norm(g, f))
        length = oracle.length(g) if "normalised" in name else 1.0
        return {n: 0.4 * g[n] / length + 0.6 * second[n] for n in w}
    draws = [draw(), draw()]
    sides = (0.1,) if name == "WeightNoise" else (0.1, -0.1)
    return mean([at(u, side) for u in draws for side in sides])


@pytest.mark.parametrize("name", METHODS)
def test_gradient_is_the_formula(name: str) -> None:
    for perturb in (factor, only_norms, all_but_norms_and_biases):
        problem = normalised()
        modules = dict(problem.model.named_modules())
        f = {
            n: float(perturb(n, p, modules[n.rpartition(".")[0]]))
            for n, p in problem.model.named_parameters()
        }
        made = oracle.made_by(METHODS[name](perturb=perturb), problem)
        oracle.assert_equal(made, expected(name, problem, f))
        assert oracle.differ(made, oracle.made_by(METHODS[name](), normalised()))


@pytest.mark.parametrize("perturb", ["norms", ["body.1.weight"]])
def test_what_is_no_function_is_refused(perturb: object) -> None:
    problem = normalised()
    with pytest.raises(TypeError, match=r"perturb=.*; allowed: a function of name"):
        SAM(perturb=perturb).backward(problem.model, problem)


@every
def test_all_parameters_are_the_default(make: Callable[..., Method]) -> None:
    made = [oracle.made_by(m) for m in (make(), make(perturb=lambda *_: True))]
    assert identical(made[0].values(), made[1].values())


@every
def test_only_the_chosen_move_and_all_have_a_gradient(
    make: Callable[..., Method],
) -> None:
    problem = normalised()
    before, moved = oracle.params(problem), set()

    def closure() -> torch.Tensor:
        moved.update(
            n
            for n, p in oracle.params(problem).items()
            if not torch.equal(p, before[n])
        )
        return problem()

    make(perturb=only_norms).backward(problem.model, closure)
    assert moved == {"body.1.weight", "body.1.bias"}
    assert identical(oracle.params(problem).values(), before.values())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in problem.params)


@every
def test_a_small_factor_for_all_is_a_small_radius(make: Callable[..., Method]) -> None:
    made = oracle.made_by(make(perturb=lambda *_: 1e-12), normalised())
    plain = oracle.made_by(ERM(), normalised())
    if getattr(make(), "normalize", False):
        plain = {n: (0.4 / oracle.length(plain) + 0.6) * g for n, g in plain.items()}
    oracle.assert_equal(made, plain, 1e-9)


@every
def test_members_are_restricted_alone(make: Callable[..., Method]) -> None:
    """An ensemble with `perturb` is its members with it."""

    def net() -> nn.Module:
        return nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)
        )

    x, y = torch.randn(12, 4).double(), torch.arange(12) % 3
    together = Ensemble(net, 2, seeds=[4, 5]).double()
    grads = []
    for seed in (4, 5):
        alone = Ensemble(net, 1, seeds=[seed]).double()
        method = make(perturb=only_norms)
        method.backward(alone, lambda m=alone: cross_entropy(m(x), y))
        grads.append([p.grad[0] for p in alone.parameters()])
    make(perturb=only_norms).backward(together, lambda: cross_entropy(together(x), y))
    for p, *singles in zip(together.parameters(), *grads, strict=True):
        torch.testing.assert_close(p.grad, torch.stack(singles), rtol=1e-9, atol=1e-12)


class LlamaRMSNorm(nn.Module):
    """A norm of somebody else's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


class Activated(nn.BatchNorm2d):
    """A norm under another name."""


class PreNorm(nn.Module):
    """A block that holds a norm and more, as some transformers call it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.body = nn.LayerNorm(4), nn.Linear(4, 4)


def test_norms_are_known_by_their_class() -> None:
    norms = [
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4),
        nn.SyncBatchNorm(4),
        nn.LayerNorm(4),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm3d(4, affine=True),
        nn.RMSNorm(4),
        LlamaRMSNorm(),
        Activated(4),
    ]
    others = [
        nn.Linear(4, 4),
        nn.LSTM(4, 4),
        nn.MultiheadAttention(4, 2),
        nn.PReLU(),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    ]
    for layers, wanted in ((norms, True), (others, False)):
        for layer in layers:
            for module in layer.modules():
                for name, p in module.named_parameters(recurse=False):
                    assert only_norms(name, p, module) is wanted, layer
    block = nn.Sequential(PreNorm())
    chosen = {
        f"{path}.{key}"
        for path, module in block.named_modules()
        for key, p in module.named_parameters(recurse=False)
        if only_norms(f"{path}.{key}", p, module)
    }
    assert chosen == {"0.norm.weight", "0.norm.bias"}


def test_biases_are_known_by_their_name() -> None:
    model = nn.ModuleDict(
        {
            "bias_free": nn.Linear(4, 4),
            "rnn": nn.LSTM(4, 4),
            "bn": LlamaRMSNorm(),
            "attention": nn.MultiheadAttention(4, 2),
        }
    )
    chosen = [
        f"{path}.{key}"
        for path, module in model.named_modules()
        for key, p in module.named_parameters(recurse=False)
        if all_but_norms_and_biases(f"{path}.{key}", p, module)
    ]
    assert chosen == [
        "bias_free.weight",
        "rnn.weight_ih_l0",
        "rnn.weight_hh_l0",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    ]


def test_names_are_those_of_the_net() -> None:
    """No wrapper is in them; tied tensors come once."""
    names: list[str] = []
    problem = inputs.tied(two_layers=True)
    problem.model = torch.compile(problem.model, backend="eager")
    with torch.compiler.set_stance("force_eager"):
        SAM(perturb=lambda name, *_: names.append(name) is None).backward(
            problem.model, problem
        )
    assert names == ["first.weight"]


def test_what_is_frozen_in_between_counts() -> None:
    problem = normalised()
    method, asked = SAM(perturb=lambda name, *_: asked.append(name) is None), []
    method.backward(problem.model, problem)
    assert len(asked) == 6
    problem.model.body[0].requires_grad_(False)
    asked.clear()
    method.backward(problem.model, problem)
    assert len(asked) == 4


def test_a_part_keeps_its_choice() -> None:
    both = compose(ERM(), SAM(0.3, perturb=only_norms))
    alone = SAM(0.3, perturb=only_norms)
    oracle.assert_equal(
        oracle.made_by(both, normalised()), oracle.made_by(alone, normalised())
    )
    assert repr(both) == "compose(ERM(), SAM(rho=0.3, perturb=only_norms))"


def test_chosen_that_take_no_part_move_nothing() -> None:
    """The only perturbed block is left out of the first pass."""
    for starts_with in (True, False):
        problem = inputs.classification(
            lambda s=starts_with: inputs.StochasticDepth(s), (4,)
        )()
        SAM(perturb=lambda name, *_: "block" in name).backward(problem.model, problem)
        assert all(g is None or torch.isfinite(g).all() for g in problem.grads)


@pytest.mark.parametrize(
    "answer",
    [
        -1,
        float("nan"),
        float("inf"),
    ],
)
def test_bad_answers_are_refused(answer: Any) -> None:
    problem = normalised()
    with pytest.raises(
        ValueError,
        match=r"perturb\('body.0.weight', …\).*allowed: True, False or a finite number",
    ):
        SAM(perturb=lambda *_: answer).backward(problem.model, problem)
    assert all(p.grad is None for p in problem.params)


def test_a_choice_of_nothing_is_refused() -> None:
    problem = inputs.exact()
    with pytest.raises(
        ValueError, match=r"perturb=only_norms selects none of the 6 trainable"
    ):
        SAM(perturb=only_norms).backward(problem.model, problem)
