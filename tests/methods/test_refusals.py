"""Slips, models and graphs that a step would get wrong: right, or refused by name.

And what a step leaves when it is interrupted at any line.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import inputs
import pytest
import torch
from inputs import Problem
from properties import assert_close, identical
from table import METHODS
from torch import Tensor, nn

import flatnb.methods
from flatnb.ensemble import Ensemble
from flatnb.methods import (
    BSAM,
    ERM,
    FAM,
    GNP,
    NSO,
    SAM,
    AdaFlood,
    Flooding,
    IFlood,
    Method,
    SoftAD,
    compose,
)

MOVING = [SAM(0.1), NSO(0.1), GNP(0.1, 0.5), compose(SoftAD(0.1), SAM(0.1))]
ONE_PASS = [ERM(), Flooding(0.1), IFlood(0.1), SoftAD(0.1)]


def refused(
    method: Method, problem: Problem, closure: Callable, error: type, words: str
) -> None:
    """Raised, and nothing changed."""
    before = [p.detach().clone() for p in problem.params]
    grads = problem.grads
    with pytest.raises(error, match=words):
        method.backward(problem.model, closure)
    assert identical(problem.params, before)
    assert identical(problem.grads, grads)


# -- arguments
# ------------------------------------------------------------------------------------


def optimizer(problem: Problem) -> torch.optim.Optimizer:
    return torch.optim.SGD(problem.params, 0.1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda m, p: m.backward(p.model, p().mean()),
            "closure=tensor.*; allowed: a function",
        ),
        (
            lambda m, p: m.backward(p.model, optimizer(p)),
            "closure=SGD.*; allowed: a function",
        ),
    ],
)
def test_arguments(call: Callable, words: str) -> None:
    for method in (ERM(), SAM(0.1)):
        problem = inputs.plain()
        with pytest.raises((TypeError, ValueError), match=words):
            call(method, problem)
        assert all(p.grad is None for p in problem.params)


# -- closures that do more than compute
# -----------------------------------------------------------


@pytest.mark.parametrize("method", [*ONE_PASS, *MOVING], ids=repr)
@pytest.mark.parametrize("filled", [False, True])
def test_backward_in_the_closure(method: Method, filled: bool) -> None:
    problem = inputs.plain()

    def returns_the_loss() -> Tensor:
        loss = problem().mean()
        loss.backward()
        return loss

    def returns_losses() -> Tensor:
        losses = problem()
        losses.mean().backward(retain_graph=True)
        return losses

    for p in problem.params if filled else []:
        p.grad = torch.ones_like(p)
    for closure in (returns_the_loss, returns_losses):
        refused(method, problem, closure, ValueError, r"it called backward\(\)")


@pytest.mark.parametrize("method", MOVING, ids=repr)
def test_a_graph_made_outside_the_closure(method: Method) -> None:
    problem = inputs.plain()

    def penalty() -> Tensor:
        return 0.1 * torch.stack([p.square().sum() for p in problem.params]).sum()

    before = penalty()
    words = r"computed before it.*Compute that inside the closure, or detach\(\) it"
    refused(method, problem, lambda: problem() + before, RuntimeError, words)
    before = penalty()
    ERM().backward(problem.model, lambda: problem() + before)  # once is no trouble
    words = r"called backward\(\) itself, or it uses something that was computed before"
    refused(ERM(), problem, lambda: problem() + before, RuntimeError, words)


@pytest.mark.parametrize("method", [ERM(), Flooding(9.0), SAM(0.1), NSO(0.1)], ids=repr)
def test_another_model_is_noticed_where_gradients_are_zero(method: Method) -> None:
    problem, other = inputs.plain(), inputs.plain()
    for p in problem.params:
        p.grad = torch.zeros_like(p)
    words = "do not depend on this model|a trainable tensor .* not in this model"
    refused(method, problem, other, ValueError, words)


# -- losses that are one number
# -------------------------------------------------------------------


@pytest.mark.parametrize("make", [m for n, m in METHODS.items() if n != "AdaFlood"])
def test_a_loss_of_one_number_is_a_batch_of_one(make: Callable[[], Method]) -> None:
    method = make()
    if isinstance(method, FAM) or "FAM" in repr(method):
        return  # its closed form wants one row of logits per loss
    first, second = inputs.plain(), inputs.plain()
    values = [
        make().backward(p.model, lambda p=p, shape=shape: p().mean().reshape(shape))
        for p, shape in ((first, ()), (second, (1,)))
    ]
    assert values[0].shape == ()
    assert torch.equal(*values)
    assert identical(first.grads, second.grads)


def test_the_gradient_of_one_number_is_that_of_its_backward() -> None:
    problem, reference = inputs.exact(), inputs.exact()
    losses = {"boxes": reference().mean(), "classes": reference().square().sum()}
    sum(losses.values()).backward()
    ERM().backward(
        problem.model,
        lambda: sum({"a": problem().mean(), "b": problem().square().sum()}.values()),
    )
    assert_close(problem.grads, reference.grads, 1e-12)


def test_members_each_give_one_number() -> None:
    model = Ensemble(lambda: nn.Sequential(nn.Linear(4, 3)), 2).double()
    x = torch.randn(6, 4).double()
    grads = []
    for losses in (
        lambda: model(x).square().mean((1, 2)),
        lambda: model(x).square().mean(2),
    ):
        model.zero_grad()
        value = SAM(0.1).backward(model, losses)
        assert value.shape == (2,)
        grads.append([p.grad for p in model.parameters()])
    assert_close(*grads, 1e-12)
    with pytest.raises(ValueError, match=r"shape \(\); allowed: \(2, n\) or \(2,\)"):
        ERM().backward(model, lambda: model(x).mean())


def test_adaflood_and_fam_say_that_they_need_each_examples_loss() -> None:
    problem = inputs.plain()
    method = AdaFlood(torch.ones(12))
    method.select(torch.arange(12))
    words = r"levels selected: \(12,\), losses: \(1,\); call select"
    refused(method, problem, lambda: problem().mean(), ValueError, words)
    words = r"shape \(12, 3\) for losses of shape \(1,\).*one row per example"
    refused(FAM(0.1), problem, lambda: problem().mean(), ValueError, words)


# -- models
# --------------------------------------------------------------------------------------


class Named(nn.Module):
    """A net whose parts have names that wrappers, ensembles and methods have, too."""

    def __init__(self) -> None:
        super().__init__()
        self.generators = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self._orig_mod, self.module, self.net = (
            nn.Linear(4, 4),
            nn.Linear(4, 4),
            nn.Linear(4, 4),
        )
        self.members, self.seeds, self.find_unused_parameters = 3, None, True
        self.no_sync = self.static_graph = self.require_backward_grad_sync = True
        self.parts, self.core, self.calls, self.passes = (), None, 7, 5
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.generators, self._orig_mod, self.module, self.net):
            x = layer(x).tanh()
        return self.head(x)


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_a_net_may_call_its_parts_as_it_likes(make: Callable[[], Method]) -> None:
    grads = []
    for build in (Named, lambda: nn.Sequential(Named())):
        torch.manual_seed(1)
        problem = Problem(build(), torch.randn(12, 4), torch.arange(12) % 3)
        method = make()
        method.backward(problem.model, problem)
        grads.append(problem.grads)
    assert_close(*grads, 1e-6)
    assert all(g is not None for g in grads[0])


def test_optimizers_that_step_in_the_backward() -> None:
    problem = inputs.exact()
    problem.params[0].register_post_accumulate_grad_hook(lambda p: None)
    words = r"has a post-accumulate-grad hook.*after method\.backward"
    for method in (ERM(), *MOVING):
        refused(method, problem, problem, ValueError, words)


# -- tensors outside the model, frozen ones, and what is kept
# ---------------------------------------------------


@pytest.mark.parametrize("method", MOVING, ids=repr)
def test_trainable_tensors_outside_the_model(method: Method) -> None:
    problem, scale = inputs.plain(), nn.Parameter(torch.ones(()))
    words = r"trainable tensor of shape \(\) that is not in this model.*nn\.ModuleList"
    refused(method, problem, lambda: problem() * scale, ValueError, words)
    assert scale.grad is None
    ERM().backward(problem.model, lambda: problem() * scale)  # as loss.backward()
    assert scale.grad is not None


@pytest.mark.parametrize("method", MOVING, ids=repr)
def test_frozen_parameters_that_the_forward_writes(method: Method) -> None:
    """Each pass would write a momentum encoder again."""
    problem = inputs.plain()
    slow = copy.deepcopy(problem.model.head).requires_grad_(False)
    problem.model.slow = slow

    def follow() -> Tensor:
        with torch.no_grad():
            slow.weight.lerp_(problem.model.head.weight, 0.1)
        return problem()

    with pytest.raises(ValueError, match="wrote a frozen parameter"):
        method.backward(problem.model, follow)
    ERM().backward(problem.model, follow)


def test_constants_are_not_written() -> None:
    """A graph of the user's own that holds a buffer survives a step."""
    problem = inputs.plain()
    problem.model.register_buffer("spread", torch.full((4,), 2.0))
    x = torch.randn(3, 4, requires_grad=True)
    kept = (x / problem.model.spread).sum()
    SAM(0.1).backward(problem.model, problem)
    kept.backward()
    assert x.grad is not None


# -- interrupts
# -----------------------------------------------------------------------------------

SOURCES = str(Path(flatnb.methods.__file__).parent)


def interrupted(call: Callable[[], object], at: int) -> bool:
    """Whether `call` met the interrupt at the `at`-th line of flatnb.methods it ran."""
    lines = 0

    def trace(frame, event, arg):
        nonlocal lines
        if not frame.f_code.co_filename.startswith(SOURCES):
            return None
        if event == "line":
            lines += 1
            if lines == at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    try:
        sys.settrace(trace)
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
        # A tracer can stop a `with` before its exit, which no signal can.
        torch.set_grad_enabled(True)
    return False


INTERRUPTED: dict[str, Callable[[], Method]] = {
    "ERM": ERM,
    "SAM": lambda: SAM(0.1),
    "GNP": lambda: GNP(0.1, 0.8),
    "NSO": lambda: NSO(0.1),
    "FAM": lambda: FAM(0.1),
}


def interrupt_everywhere(name: str, filled: int, first: int, stride: int) -> None:
    """`filled`: how many of the parameters have a gradient before."""
    make, at, came = INTERRUPTED[name], first, True
    while came:
        problem = _small(filled)
        weights = [p.detach().clone() for p in problem.params]
        method = make()
        came = interrupted(lambda m=method, p=problem: m.backward(p.model, p), at)
        assert identical(problem.params, weights), f"line {at}"
        assert all(p.grad is not None for p in problem.params[:filled]), f"line {at}"
        at += stride
    assert at > 100


def _small(filled: int) -> Problem:
    torch.manual_seed(4)
    net = inputs.Net(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), 3, 3)
    problem = Problem(net, torch.randn(6, 4), torch.arange(6) % 3)
    for p in problem.params[:filled]:
        p.grad = torch.ones_like(p)
    return problem


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupt_leaves_no_weight_moved(name: str) -> None:
    for filled in (0, 2, 6):
        interrupt_everywhere(name, filled, 1 + filled, 9)


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupt_at_every_line(name: str) -> None:
    for filled in (0, 2, 6):
        interrupt_everywhere(name, filled, 1, 1)


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_an_interrupt_of_bsam_leaves_no_weight_perturbed(stride: int) -> None:
    def start() -> tuple[Problem, BSAM]:
        problem = _small(0)
        return problem, BSAM(problem.params, lr=0.1, examples=6)

    def closure(problem: Problem) -> Tensor:
        loss = problem().mean()
        loss.backward()
        return loss

    stepped, reference = start()
    reference.step(lambda: closure(stepped))
    at, came = 1, True
    while came:
        problem, method = start()
        before = [p.detach().clone() for p in problem.params]
        came = interrupted(lambda m=method, p=problem: m.step(lambda: closure(p)), at)
        for p, old, new in zip(problem.params, before, stepped.params, strict=True):
            assert torch.equal(p, old) or torch.equal(p, new), f"line {at}"
        at += stride
    assert at > 100


def test_a_weight_that_is_no_finite_number() -> None:
    problem = inputs.plain()
    for weight in (float("nan"), torch.ones(3)):
        with pytest.raises((TypeError, ValueError), match=r"weight=.*finite number"):
            ERM().backward(problem.model, problem, weight=weight)  # type: ignore[arg-type]


def test_a_failure_in_the_last_backward_keeps_the_gradients_of_before() -> None:
    net, calls = nn.Linear(3, 2), []
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    for p in net.parameters():
        p.grad = torch.zeros_like(p)

    def hook(grad: torch.Tensor) -> None:
        calls.append(grad)
        if len(calls) == 2:
            raise MemoryError

    def closure() -> torch.Tensor:
        z = net(x)
        z.register_hook(hook)
        return nn.functional.cross_entropy(z, y, reduction="none")

    with pytest.raises(MemoryError):
        NSO(0.1).backward(net, closure)
    assert all(not p.grad.any() for p in net.parameters() if p.grad is not None)


def test_batch_norm_in_eval_mode_leaves_older_graphs_alone() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    older = net(torch.randn(4, 3)).square().mean()
    ERM().backward(net, lambda: net(torch.randn(4, 3)).square().mean(1))
    older.backward()


@pytest.mark.parametrize("method", [SAM(0.1), GNP(0.1, 0.5)], ids=repr)
def test_sparse_gradients_are_refused_by_name(method: Method) -> None:
    problem = inputs.words(sparse=True)
    with pytest.raises(ValueError, match=r"is sparse.*sparse=False"):
        method.backward(problem.model, problem)


@pytest.mark.parametrize("method", [ERM(), Flooding(0.1), NSO(0.1)], ids=repr)
def test_sparse_gradients_without_norms_are_taken(method: Method) -> None:
    problem = inputs.words(sparse=True)
    method.backward(problem.model, problem)
    assert any(p.grad is not None and p.grad.is_sparse for p in problem.params)
