"""FAM against the layer's dense Hessian, taken by automatic differentiation in
float64.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import inputs
import pytest
import torch
import torch.nn.functional as F
from inputs import Net, Problem
from properties import Calls, assert_close, identical
from torch import Tensor, nn
from torch.func import functional_call

from flatnb.methods import ERM, FAM, NSO, SAM, Flooding, SoftAD, compose

LABELS = torch.arange(12) % 3
MIXED = torch.softmax(
    torch.linspace(-2, 2, 36, dtype=torch.double).view(12, 3).cos() * 3, -1
)
WEIGHTS = torch.tensor([0.5, 2.0, 1.5], dtype=torch.double)

CROSS_ENTROPIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hard labels": lambda z, y: F.cross_entropy(z, y, reduction="none"),
    "smoothed": lambda z, y: F.cross_entropy(
        z, y, reduction="none", label_smoothing=0.1
    ),
    "mixed": lambda z, y: F.cross_entropy(z, MIXED, reduction="none"),
    "log_softmax": lambda z, y: F.nll_loss(z.log_softmax(-1), y, reduction="none"),
}
OTHERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "class weights": lambda z, y: F.cross_entropy(z, y, WEIGHTS, reduction="none"),
    "ignored": lambda z, y: F.cross_entropy(z, y, ignore_index=1, reduction="none"),
    "temperature": lambda z, y: F.cross_entropy(z / 2, y, reduction="none"),
    "squared error": lambda z, y: (z - F.one_hot(y, 3)).square().sum(-1),
    "soft cap": lambda z, y: F.cross_entropy(z.tanh(), y, reduction="none"),
    "absolute error": lambda z, y: (z - F.one_hot(y, 3)).abs().sum(-1),
}


def problem(
    loss: Callable[[Tensor, Tensor], Tensor] = CROSS_ENTROPIES["hard labels"],
) -> Problem:
    """Layers body.0 of 3 inputs, and head of 4."""
    torch.manual_seed(2)
    net = Net(nn.Sequential(nn.Linear(3, 4), nn.Softplus()), 4, 3).double()
    return Problem(net, torch.randn(12, 3).double(), LABELS, loss)


def kappa(method: FAM, p: Problem) -> Tensor:
    with method.watch(p.model):
        losses = p()
    return method.penalty(p.model, losses) / method.lam


def dense_kappa(p: Problem) -> Tensor:
    """sum_{s,s'} <w_s, w_s'> Tr H_{s,s'}, differentiable in all parameters."""
    name = "head.weight"
    params = dict(p.model.named_parameters())

    def mean_loss(weight: Tensor) -> Tensor:
        return p.loss(
            functional_call(p.model, {**params, name: weight}, (p.x,)), p.y
        ).mean()

    w = params[name]
    h = torch.autograd.functional.hessian(mean_loss, w, create_graph=True)
    return torch.einsum("su,tu,sktk->", w, w, h)


@pytest.mark.parametrize("loss", CROSS_ENTROPIES.values(), ids=CROSS_ENTROPIES)
def test_last_layer_is_the_dense_hessian(loss) -> None:
    """Value, and gradient in every parameter: the Hessian is not held constant."""
    p = problem(loss)
    exact = dense_kappa(p)
    assert torch.allclose(kappa(FAM(0.7), p), exact, rtol=1e-10, atol=1e-13)
    wanted = torch.autograd.grad(p().mean() + 0.7 * exact, p.params)
    FAM(0.7).backward(p.model, p)
    assert_close(p.grads, wanted, 1e-10)


def test_gradient_reaches_the_layers_below() -> None:
    p = problem()
    plain = torch.autograd.grad(p().mean(), p.params)
    FAM(1.0).backward(p.model, p)
    for g, e in zip(
        p.grads[:3], plain[:3], strict=True
    ):  # body weight and bias, head weight
        assert (g - e).abs().max() > 1e-3


def test_unchanged_when_weights_grow_and_features_shrink() -> None:
    p = problem()
    p.model.body[1] = nn.ReLU()
    before = kappa(FAM(1.0), p)
    with torch.no_grad():
        p.model.head.weight *= 4
        p.model.body[0].weight /= 4
        p.model.body[0].bias /= 4
    assert torch.allclose(kappa(FAM(1.0), p), before, rtol=1e-12)


def test_every_layer_runs_once() -> None:
    p = problem()
    runs: list[nn.Module] = []
    for module in p.model.modules():
        module.register_forward_hook(lambda m, *_: runs.append(m))
    FAM(1.0).backward(p.model, p)
    assert len(runs) == len(set(runs)) == 5


def test_kappa_is_of_the_plain_loss_under_compose() -> None:
    """Flooding turns the loss's gradient round, not kappa's."""
    p = problem()
    k = kappa(FAM(1.0), p)
    wanted = torch.autograd.grad(0.3 * k - p().mean(), p.params)
    compose(FAM(0.3), Flooding(50.0)).backward(p.model, p)
    assert_close(p.grads, wanted, 1e-10)
    p.model.zero_grad()
    compose(SoftAD(0.2), FAM(0.1), FAM(0.2)).backward(p.model, p)
    wanted = torch.autograd.grad(
        SoftAD(0.2).objective(p()) + 0.3 * kappa(FAM(1.0), p), p.params
    )
    assert_close(p.grads, wanted, 1e-10)


def test_sam_moves_along_the_penalised_gradient() -> None:
    p = problem()
    g = torch.autograd.grad(p().mean() + 0.3 * kappa(FAM(1.0), p), p.params)
    norm = torch.stack([t.square().sum() for t in g]).sum().sqrt()
    moved = problem()
    with torch.no_grad():
        for q, t in zip(moved.params, g, strict=True):
            q.add_(t, alpha=0.1 / float(norm))
    wanted = torch.autograd.grad(
        moved().mean() + 0.3 * kappa(FAM(1.0), moved), moved.params
    )
    compose(FAM(0.3), SAM(0.1)).backward(p.model, p)
    assert_close(p.grads, wanted, 1e-9)


def test_lam_zero_is_plain_training() -> None:
    p, q = problem(), problem()
    ERM().backward(q.model, q)
    FAM(0.0).backward(p.model, p)
    assert identical(p.grads, q.grads)


def test_frozen_last_layer() -> None:
    p = problem()
    p.model.head.weight.requires_grad_(False)
    assert FAM(1.0).backward(p.model, p) > 0
    assert p.model.head.weight.grad is None


# -- the logits are what it takes them for
# --------------------------------------------------------


@pytest.mark.parametrize("loss", OTHERS.values(), ids=OTHERS)
def test_other_losses_are_refused_at_the_first_step(loss) -> None:
    p = problem(loss)
    with pytest.raises(ValueError, match=r"not softmax cross-entropy"):
        FAM(1.0).backward(p.model, p)
    assert all(q.grad is None for q in p.params)


def test_logits_must_come_from_the_last_linear_layer() -> None:
    p = problem()
    side = nn.Linear(3, 3).double()
    with pytest.raises(ValueError, match="not softmax cross-entropy of the last"):
        FAM(1.0).backward(nn.ModuleList([p.model, side]), lambda: (p(), side(p.x))[0])
    tokens = nn.Linear(3, 3).double()
    x = torch.randn(4, 5, 3).double()
    with pytest.raises(
        ValueError, match=r"shape \(4, 5, 3\) for losses of shape \(4,\)"
    ):
        FAM(1.0).backward(tokens, lambda: tokens(x).logsumexp(-1).mean(1))


def test_hook_must_fire_at_every_call() -> None:
    p, method = problem(), FAM(1.0)
    method.backward(p.model, p)
    first = p.model.head.weight
    with pytest.raises(ValueError, match=r"saw no nn\.Linear run"):
        method.backward(p.model, lambda: (p.x @ first.T[:3]).square().sum(-1))
    conv = nn.Conv1d(1, 1, 1)
    with pytest.raises(
        ValueError, match=r"saw no nn\.Linear run.*output is the logits"
    ):
        FAM(1.0).backward(conv, lambda: conv(torch.ones(2, 1, 1)).flatten())


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"lam": -1.0}, ValueError, "lam=-1.0"),
        ({"lam": float("nan")}, ValueError, "lam=nan"),
        ({"lam": "1"}, ValueError, "lam='1'"),
    ],
)
def test_bad_hyperparameters(arguments, error, words) -> None:
    with pytest.raises(error, match=words):
        FAM(**arguments)


def test_repr() -> None:
    assert repr(FAM(0.1)) == "FAM(lam=0.1)"


# -- compiled models, ensembles, memory
# -----------------------------------------------------------


@pytest.fixture
def compiler() -> None:
    """Forgets what was compiled before."""
    torch.compiler.reset()


compiling = pytest.mark.usefixtures("compiler")


@compiling
@pytest.mark.parametrize("part", ["model", "body"])
def test_compiled_without_attach_is_right_where_it_runs(part) -> None:
    """Where the graph is traced in FAM's own step, or does not hold the last layer."""
    p, q = inputs.plain(), inputs.plain()
    FAM(1.0).backward(q.model, q)
    if part == "model":
        run = Problem(torch.compile(p.model, backend="eager"), p.x, p.y)
    else:
        p.model.body.compile(backend="eager")
        run = p
    for _ in range(2):
        p.model.zero_grad()
        FAM(1.0).backward(run.model, run)
        assert_close(p.grads, q.grads, 1e-6)


@compiling
def test_compiled_before_is_refused() -> None:
    p = inputs.plain()
    run = Problem(torch.compile(p.model, backend="eager"), p.x, p.y)
    ERM().backward(run.model, run)
    with pytest.raises(ValueError, match=r"attach\(model\)"):
        FAM(1.0).backward(run.model, run)


@compiling
def test_attached_too_late_is_noticed() -> None:
    p, method = inputs.plain(), FAM(1.0)
    compiled = torch.compile(p.model, backend="eager")
    run = Problem(compiled, p.x, p.y)
    ERM().backward(compiled, run)
    method.attach(compiled)
    with pytest.raises(ValueError, match=r"before torch\.compile\(model\)"):
        method.backward(compiled, run)


@compiling
def test_loss_compiled_with_the_model_is_refused() -> None:
    p, method = inputs.plain(), FAM(1.0)
    method.attach(p.model)
    with pytest.raises(ValueError, match="not compiled with the model"):
        method.backward(p.model, torch.compile(p.__call__, backend="aot_eager"))


class _Heads(nn.Module):
    """A trunk with BatchNorm and dropout, and two heads; `route` says through which a
    batch goes.

    The second head takes the first one's place; the layer after follows it.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.trunk = nn.Sequential(
            nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3)
        )
        self.first, self.second = nn.Linear(6, 3), nn.Linear(6, 3)
        self.after = nn.Linear(3, 3)

    def forward(self, x: Tensor, route: str) -> Tensor:
        phi = self.trunk(x)
        if route == "second":
            return self.second(phi)
        z = self.first(phi)
        return self.after(z) if route == "after" else z


@pytest.mark.parametrize("others", [(), (SAM(0.1),), (NSO(0.05, seed=3),)], ids=repr)
@pytest.mark.parametrize("route", ["first", "second", "after"])
def test_another_layer_may_run_last_in_any_step(route, others) -> None:
    """Gradients, statistics, random stream and value are those of a method that looks
    afresh.
    """
    net = _Heads().double()
    x = torch.randn(12, 3).double()

    def closure(route: str) -> Callable[[], Tensor]:
        return lambda: F.cross_entropy(net(x, route), LABELS, reduction="none")

    used = FAM(0.5)
    for _ in range(2):
        compose(used, *copy.deepcopy(others)).backward(net, closure("first"))
    start = copy.deepcopy(net.state_dict())
    found = []
    for method in (used, FAM(0.5)):
        net.load_state_dict(start)
        net.zero_grad()
        torch.manual_seed(11)
        value = compose(method, *copy.deepcopy(others)).backward(net, closure(route))
        grads = [p.grad for p in net.parameters()]
        buffers = [b.clone() for b in net.buffers()]
        found.append([value, torch.rand(()), *grads, *buffers])
    assert identical(*found)


def test_another_loss_in_a_later_step_is_checked_too() -> None:
    p, q = problem(), problem(OTHERS["temperature"])
    method = FAM(1.0)
    for step in (p, p, problem(CROSS_ENTROPIES["mixed"])):
        method.backward(step.model, step)
    for _ in range(2):
        with pytest.raises(ValueError, match="not softmax cross-entropy"):
            method.backward(q.model, q)


def test_no_graph_is_kept() -> None:
    """Neither after a step nor after a closure that fails once the layer has run."""
    p, method, seen = problem(), FAM(1.0), []
    p.model.head.register_forward_hook(lambda m, i, o: seen.append(weakref.ref(o)))
    method.backward(p.model, p)

    def closure() -> Tensor:
        p()
        raise OSError("late")

    with pytest.raises(OSError, match="late"):
        method.backward(p.model, closure)
    gc.collect()
    assert len(seen) == 2
    assert all(reference() is None for reference in seen)


def test_features_are_seen_where_the_closure_calls_the_model_more_than_once() -> None:
    """The last call counts; a first one without gradient is not seen."""
    p = problem()

    def closure() -> Tensor:
        with torch.no_grad():
            p()
        return p()

    FAM(0.5).backward(p.model, Calls(closure))
    q = problem()
    FAM(0.5).backward(q.model, q)
    assert identical(p.grads, q.grads)
