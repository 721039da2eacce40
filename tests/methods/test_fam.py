"""FAM against the layer's dense Hessian, taken by automatic differentiation in
float64.
"""

from __future__ import annotations

import copy
import gc
import itertools
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

from flatnb.ensemble import Ensemble
from flatnb.methods import ERM, FAM, NSO, SAM, Flooding, SoftAD, compose
from flatnb.methods.normalization import Elementary

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


def dense_kappa(p: Problem, layer: str = "head") -> Tensor:
    """sum_{s,s'} <w_s, w_s'> Tr H_{s,s'}, differentiable in all parameters."""
    name = f"{layer}.weight"
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


@pytest.mark.parametrize("layer", ["body.0", "head"])
def test_estimate_is_unbiased_with_its_gradient(layer) -> None:
    """The mean over all signs is kappa; and its gradient that of kappa, to rounding."""
    p = problem(OTHERS["class weights"])
    exact = dense_kappa(p, layer)
    wanted = torch.autograd.grad(p().mean() + exact, p.params)
    inputs_ = p.model.get_submodule(layer).in_features
    signs = [
        torch.tensor(s, dtype=torch.double)
        for s in itertools.product((-1, 1), repeat=inputs_)
    ]
    method, values, grads = FAM(1.0, layer=layer), [], []
    for a, v in itertools.product(signs, signs):
        method._generators = Fixed([a, v])
        values.append(kappa(method, p).detach())
        p.model.zero_grad()
        method.backward(p.model, p)
        grads.append(p.grads)
    assert torch.allclose(torch.stack(values).mean(), exact, rtol=1e-10)
    assert_close(
        [torch.stack(g).mean(0) for g in zip(*grads, strict=True)], wanted, 1e-10
    )


class Fixed:
    def __init__(self, signs: list[Tensor]) -> None:
        self.signs = signs

    def draw(self, params: list[Tensor], seeds: tuple[int, ...]) -> list[Tensor]:
        return self.signs


NORMS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "batch": lambda: nn.BatchNorm1d(8),
    "batch, evaluating": lambda: nn.BatchNorm1d(8).eval(),
    "batch, 2d": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)),
        nn.BatchNorm2d(2, affine=False, momentum=None),
        nn.Flatten(),
    ),
    "instance": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, affine=True), nn.Flatten()
    ),
    "layer": lambda: nn.LayerNorm(8),
    "layer, two dimensions": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 4)), nn.LayerNorm((2, 4), bias=False), nn.Flatten()
    ),
    "group": lambda: nn.GroupNorm(2, 8),
    "RMS": lambda: nn.RMSNorm(8),
}


@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
def test_gradient_of_the_estimate_through_norms(make) -> None:
    """Against finite differences along a line: a third derivative, which fused norms
    have wrong.
    """
    net = nn.Sequential(nn.Linear(3, 8), make(), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(12, 3).double()
    params = list(net.parameters())
    for p in params:
        p.data.normal_(0, 0.7)
    line = [torch.randn_like(p) for p in params]

    def value(at: float) -> Tensor:
        with torch.no_grad():
            torch._foreach_add_(params, line, alpha=at)
        method = FAM(1.0, layer="0")  # the same signs each time
        found = kappa(method, Problem(net, x, LABELS))
        grads = torch.autograd.grad(found, params, allow_unused=True)
        with torch.no_grad():
            torch._foreach_sub_(params, line, alpha=at)
        slope = sum(
            (g * d).sum() for g, d in zip(grads, line, strict=True) if g is not None
        )
        return torch.stack([found.detach(), torch.as_tensor(slope)])

    h = 1e-5
    assert_close([value(0.0)[1]], [(value(h)[0] - value(-h)[0]) / (2 * h)], 1e-5)


@pytest.mark.parametrize("dtype", [torch.double, torch.bfloat16])
@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
def test_norms_of_the_estimate_are_the_usual_ones(make, dtype) -> None:
    """In value and dtype, under autocast too, and with the same running statistics."""
    first, second = make().double(), make().double()
    if dtype == torch.bfloat16:
        first, second = first.float(), second.float()
    x = torch.randn(12, 8).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        wanted = first(x)
        with Elementary():
            found = second(x)
    assert found.dtype == wanted.dtype
    assert_close(
        [found.double()], [wanted.double()], 1e-2 if dtype == torch.bfloat16 else 1e-12
    )
    assert_close(
        [b.double() for b in second.buffers()], [b.double() for b in first.buffers()], 0
    )


def test_estimate_draws_fresh_signs_of_its_own() -> None:
    p = problem()
    method = FAM(1.0, layer="body.0")
    draws = torch.stack([kappa(method, p).detach() for _ in range(400)])
    exact = dense_kappa(p, "body.0").detach()
    assert abs(draws.mean() - exact) < 4 * draws.std() / 20
    assert draws.std() > 0
    again = FAM(1.0, layer="body.0")
    torch.testing.assert_close(kappa(again, p), draws[0])
    other = kappa(FAM(1.0, layer="body.0", seed=1), p).detach()
    assert abs(float(other - draws[0])) > 1e-6 * float(exact)


def test_every_layer_runs_once() -> None:
    p = problem()
    runs: list[nn.Module] = []
    for module in p.model.modules():
        module.register_forward_hook(lambda m, *_: runs.append(m))
    for method in (FAM(1.0), FAM(1.0, layer="body.0")):
        runs.clear()
        method.backward(p.model, p)
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
    for method in (FAM(0.0), FAM(0.0, layer="body.0")):
        p.model.zero_grad()
        method.backward(p.model, p)
        assert identical(p.grads, q.grads)


# -- the logits are what it takes them for
# --------------------------------------------------------


@pytest.mark.parametrize("loss", OTHERS.values(), ids=OTHERS)
def test_other_losses_are_refused_at_the_first_step(loss) -> None:
    p = problem(loss)
    with pytest.raises(
        ValueError, match=r"not softmax cross-entropy.*or FAM\(lam, layer="
    ):
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
    # The estimate takes any loss.
    named = nn.ModuleDict({"out": tokens})
    assert (
        FAM(1.0, layer="out").backward(named, lambda: tokens(x).logsumexp(-1).mean(1))
        > 0
    )


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


def test_layer_names() -> None:
    p = problem()
    for name in ("body.1", "nowhere"):
        words = f"layer='{name}'; allowed: body.0, head"
        with pytest.raises(ValueError, match=words):
            FAM(1.0, layer=name).backward(p.model, p)
    p.model.head.weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match="does not require grad"):
        FAM(1.0, layer="head").backward(p.model, p)
    assert FAM(1.0).backward(p.model, p) > 0  # the closed form needs no gradient there
    assert p.model.head.weight.grad is None


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"lam": -1.0}, ValueError, "lam=-1.0"),
        ({"lam": float("nan")}, ValueError, "lam=nan"),
        ({"lam": "1"}, ValueError, "lam='1'"),
        ({"lam": 1.0, "layer": "head", "seed": -1}, ValueError, "seed=-1"),
    ],
)
def test_bad_hyperparameters(arguments, error, words) -> None:
    with pytest.raises(error, match=words):
        FAM(**arguments)


def test_repr() -> None:
    assert repr(FAM(0.1)) == "FAM(lam=0.1)"
    assert repr(FAM(0.1, "head", seed=2)) == "FAM(lam=0.1, layer='head', seed=2)"


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
def test_double_backward_of_a_compiled_graph_is_refused() -> None:
    p = inputs.plain()
    compiled = torch.compile(p.model, backend="aot_eager")
    with pytest.raises(RuntimeError, match="double backward"):
        FAM(1.0, layer="head").backward(compiled, Problem(compiled, p.x, p.y))


@compiling
def test_loss_compiled_with_the_model_is_refused() -> None:
    p, method = inputs.plain(), FAM(1.0)
    method.attach(p.model)
    with pytest.raises(ValueError, match="not compiled with the model"):
        method.backward(p.model, torch.compile(p.__call__, backend="aot_eager"))


def test_members_estimates_are_those_of_members_alone() -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 3))

    x = torch.randn(12, 3).double()
    together = Ensemble(net, 3, seeds=[4, 5, 6]).double()
    lam = torch.tensor([0.1, 0.2, 0.3])
    for name, alone in (("net.0", "0"), ("net.2", "2")):
        together.zero_grad()
        FAM(lam, layer=name).backward(together, lambda: _losses(together(x)))
        for i in range(3):
            member = together.member(i)
            method = FAM(
                float(lam[i]), layer=alone, seed=4 + i
            )  # seeds of method and member add
            method.backward(member, lambda m=member: _losses(m(x)))
            own = [p.grad[i] for p in together.parameters() if p.grad is not None]
            assert_close(own, [p.grad for p in member.parameters()], 1e-8)


def _losses(z: Tensor) -> Tensor:
    y = LABELS.expand(z.shape[:-1])
    return F.cross_entropy(z.flatten(0, -2), y.flatten(), reduction="none").view(
        y.shape
    )


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


def test_estimate_refuses_a_checkpoint_with_batchnorm_and_leaves_the_net_as_it_was() -> (
    None
):
    problem = inputs.checkpointed(False)
    before = [p.detach().clone() for p in problem.params]
    with pytest.raises(RuntimeError, match="Recomputed values"):
        FAM(0.05, layer="head").backward(problem.model, problem)
    assert all(torch.equal(p, b) for p, b in zip(problem.params, before, strict=True))
    FAM(0.05).backward(
        problem.model, problem
    )  # the closed form has no third derivatives


def test_estimate_through_a_reentrant_checkpoint_is_the_plain_one() -> None:
    grads = []
    for kind in (None, True):
        problem = inputs.checkpointed(kind)
        torch.manual_seed(0)  # of dropout
        FAM(0.05, layer="head").backward(problem.model, problem)
        grads.append([p.grad for p in problem.params])
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-4, atol=1e-6)
