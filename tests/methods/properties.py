"""What must hold for every method: each property is a function that takes a maker of
methods.

A property builds fresh problems and fresh methods, so that noise starts at the same
place.
"""

from __future__ import annotations

import copy
import functools
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import replace

import inputs
import pytest
import torch
from inputs import Problem
from torch import Tensor, nn

import flatnb.metrics
from flatnb.ensemble import Ensemble
from flatnb.methods import Method

Maker = Callable[[], Method]


# -- tools
# --------------------------------------------------------------------------------------


def identical(a: Iterable[Tensor | None], b: Iterable[Tensor | None]) -> bool:
    """Equal bit for bit."""
    return all(
        (s is None and t is None)
        or (s is not None and t is not None and torch.equal(s, t))
        for s, t in zip(a, b, strict=True)
    )


@torch.no_grad()
def assert_close(
    a: Iterable[Tensor | None], b: Iterable[Tensor | None], tol: float
) -> None:
    """Equal to `tol`, relative to the largest entry of all."""
    a, b = list(a), list(b)
    size = max(
        [float(t.detach().to_dense().abs().max()) for t in b if t is not None],
        default=0.0,
    )
    for s, t in zip(a, b, strict=True):
        assert (s is None) == (t is None)
        if s is not None and t is not None:
            assert (
                float((s.to_dense() - t.to_dense()).abs().max()) <= tol * size + 1e-30
            )


def gradient(make: Maker, problem: Problem, **kw: object) -> list[Tensor | None]:
    """The gradient that a fresh method leaves, from seed 5."""
    torch.manual_seed(5)
    problem.model.zero_grad()
    make().backward(problem.model, problem, **kw)
    return problem.grads


def with_batchnorm(problem: Problem) -> bool:
    return bool(problem.statistics)


def _overflow(grad: Tensor) -> Tensor:
    return grad * torch.inf


class Calls:
    """A closure that counts its calls, and may run something before or after each."""

    def __init__(
        self, closure: Callable[[], Tensor], action: Callable[[int], None] | None = None
    ):
        self.closure, self.action, self.count = closure, action, 0

    def __call__(self) -> Tensor:
        self.count += 1
        if self.action is not None:
            self.action(self.count)
        return self.closure()


# -- the contract
# ---------------------------------------------------------------------------------


def assert_parameters_restored(make: Maker) -> None:
    """Bit for bit, in the same storage, and nothing but `p.grad` is left behind."""
    for build in (*inputs.typical.values(), *inputs.recurrent.values()):
        problem = build()
        before = [p.detach().clone() for p in problem.params]
        pointers = [p.data_ptr() for p in problem.params]
        make().backward(problem.model, problem)
        assert identical(problem.params, before)
        assert [p.data_ptr() for p in problem.params] == pointers
        assert all(
            p.grad is not None and p.grad.abs().sum() > 0 for p in problem.params
        )
        assert not any(m._forward_hooks for m in problem.model.modules())


def assert_gradients_accumulate(make: Maker) -> None:
    """`p.grad` becomes what it was plus weight times the gradient, in place."""
    for build in inputs.typical.values():
        problem = build()
        g = gradient(make, problem)
        for p in problem.params:
            p.grad = torch.ones_like(p)
        torch.manual_seed(5)
        make().backward(problem.model, problem, weight=0.25)
        wanted = [1 + 0.25 * t for t in g if t is not None]
        assert_close(problem.grads, wanted, 1e-6)


def assert_one_pass_a_closure_call(make: Maker) -> None:
    """The closure runs `passes` times on average over 12 steps, a multiple of every k
    here.

    It runs once more without gradient where that updates BatchNorm.
    """
    problem, method = inputs.plain(), make()
    calls = Calls(problem)
    for _ in range(12):
        method.backward(problem.model, calls)
    costs_three = (
        getattr(method, "layer", None) is not None
    )  # one call, differentiated thrice
    assert calls.count == pytest.approx(12 * (1 if costs_three else method.passes))


def assert_returns_plain_loss(make: Maker) -> None:
    """Detached; the mean at w if the method evaluates there."""
    for build in inputs.typical.values():
        problem = build()
        torch.manual_seed(5)
        loss = make().backward(problem.model, problem)
        torch.manual_seed(5)
        at_w = problem().mean()
        assert loss.shape == ()
        assert not loss.requires_grad
        assert loss.dtype == at_w.dtype
        # Methods that evaluate nothing at w return the average over points near it.
        assert torch.allclose(loss, at_w, rtol=1e-6 if evaluates_at_w(make) else 0.2)


def evaluates_at_w(make: Maker) -> bool:
    problem = inputs.plain()
    before = [p.detach().clone() for p in problem.params]
    at_w = []
    make().backward(
        problem.model,
        Calls(problem, lambda _: at_w.append(identical(problem.params, before))),
    )
    return at_w[0]


def assert_batchnorm_updated_once(make: Maker) -> None:
    """Running statistics, of every kind, are those after one forward at w."""
    for build in (*inputs.batchnorms.values(), inputs.noisy):
        problem, plain = build(), build()
        for batch, same in zip(problem.batches(3), plain.batches(3), strict=True):
            torch.manual_seed(5)
            make().backward(problem.model, batch)
            torch.manual_seed(5)
            same()
            assert identical(problem.statistics, plain.statistics)
        for ours, theirs in zip(
            problem.model.modules(), plain.model.modules(), strict=True
        ):
            assert ours.training == theirs.training
            assert getattr(ours, "momentum", 0) == getattr(theirs, "momentum", 0)


def assert_same_masks(make: Maker) -> None:
    """All passes draw the same from the global stream, which ends as after one pass."""
    problem = inputs.noisy()
    drawn: list[Tensor] = []

    def closure() -> Tensor:
        losses = problem()
        drawn.append(torch.rand(4))
        return losses

    torch.manual_seed(5)
    problem()
    first, end = torch.rand(4), torch.get_rng_state()
    torch.manual_seed(5)
    make().backward(problem.model, closure)
    assert all(torch.equal(d, first) for d in drawn)
    assert torch.equal(torch.get_rng_state(), end)


def assert_noise_leaves_global_stream(make: Maker) -> None:
    """The method's own noise is not drawn from the global stream, and not set by its
    seed.
    """
    problem = inputs.plain()
    state = torch.get_rng_state()
    make().backward(problem.model, problem)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    g = gradient(make, problem)
    torch.manual_seed(2)
    problem.model.zero_grad()
    make().backward(problem.model, problem)
    assert identical(problem.grads, g)


def assert_finite_on_degenerate_input(make: Maker) -> None:
    for name, build in inputs.degenerate.items():
        problem = build()
        before = [p.detach().clone() for p in problem.params]
        loss = make().backward(problem.model, problem)
        assert torch.isfinite(loss), name
        assert all(torch.isfinite(g).all() for g in problem.grads if g is not None), (
            name
        )
        assert identical(problem.params, before), name


def assert_finite_at_level(make: Maker) -> None:
    """The loss is exactly at the level, the threshold, for every example."""
    problem = inputs.at_level()
    loss = make().backward(problem.model, problem)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(g).all() for g in problem.grads if g is not None)


def assert_overflow_is_skipped(make: Maker) -> None:
    """An infinite gradient in the first pass only: restored, and seen by a
    GradScaler.
    """
    deep = inputs.classification(lambda: inputs.StochasticDepth(starts_with=True), (4,))
    for build, of_block in ((inputs.plain, False), (deep, True)):
        _assert_overflow_is_skipped(make, build(), None)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        problem = build()
        # In the second case the infinite gradient is that of a block the later passes
        # leave out, and a perturbation of zero would make all else look well.
        _assert_overflow_is_skipped(make, problem, scaler, of_block)
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1, momentum=0.9)
        before = [p.detach().clone() for p in problem.params]
        scaler.step(optimizer)
        scaler.update()
        assert identical(problem.params, before)
        assert scaler.get_scale() == 32.0


def _assert_overflow_is_skipped(
    make: Maker, problem: Problem, scaler: object, of_block: bool = False
) -> None:
    before = [p.detach().clone() for p in problem.params]
    calls = Calls(problem)

    def closure() -> Tensor:
        losses = calls()
        if calls.count == 1 and losses.requires_grad:
            (problem.model.block.weight if of_block else losses).register_hook(
                _overflow
            )
        return losses

    if of_block:
        closure()  # with the hook from here on
        problem.model.used, calls.count = False, 1
    make().backward(problem.model, closure, scaler=scaler)
    assert identical(problem.params, before)
    assert not all(torch.isfinite(g).all() for g in problem.grads if g is not None)


def assert_stochastic_depth_restored(make: Maker) -> None:
    """A parameter that takes part in one pass and not in the other is put back all the
    same.
    """
    for starts_with in (True, False):
        problem = inputs.classification(
            lambda s=starts_with: inputs.StochasticDepth(s), (4,)
        )()
        before = [p.detach().clone() for p in problem.params]
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.0, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            make().backward(problem.model, problem)
            optimizer.step()
        assert identical(problem.params, before)


def assert_errors_undone(make: Maker) -> None:
    """The closure raises in a later pass: parameters, gradients, statistics and
    streams.
    """
    for build in (inputs.plain, inputs.noisy):
        for filled in (False, True):
            for fatal in range(2, _calls(make, build) + 1):
                _assert_error_undone(make, build(), fatal, filled)


def _calls(make: Maker, build: inputs.Make) -> int:
    calls = Calls(problem := build())
    make().backward(problem.model, calls)
    return calls.count


def _assert_error_undone(
    make: Maker, problem: Problem, fatal: int, filled: bool
) -> None:
    def action(count: int) -> None:
        if count == fatal:
            raise KeyboardInterrupt

    torch.manual_seed(5)
    reference = copy.deepcopy(problem)
    reference()
    end = torch.get_rng_state()
    if filled:
        for p in problem.params:
            p.grad = torch.full_like(p, 0.5)
    before, grads = [p.detach().clone() for p in problem.params], problem.grads
    torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt):
        make().backward(problem.model, Calls(problem, action))
    assert identical(problem.params, before)
    assert identical(problem.grads, grads)
    assert identical(problem.statistics, reference.statistics)
    assert torch.equal(torch.get_rng_state(), end)
    assert not torch.is_autocast_enabled("cpu")


def assert_resumes(make: Maker) -> None:
    """10 + 10 steps across a save through a file equal 20, bit for bit."""

    def start() -> tuple[Problem, torch.optim.Optimizer, Method]:
        problem = inputs.noisy()
        return (
            problem,
            torch.optim.SGD(problem.model.parameters(), 0.1, momentum=0.9),
            make(),
        )

    def train(
        state: tuple[Problem, torch.optim.Optimizer, Method], batches: list
    ) -> None:
        problem, optimizer, method = state
        for batch in batches:
            optimizer.zero_grad()
            method.backward(problem.model, lambda b=batch: _losses(problem, b))
            optimizer.step()

    torch.manual_seed(5)
    unbroken = start()
    batches = unbroken[0].batches(20)
    train(unbroken, batches)

    torch.manual_seed(5)
    first = start()
    train(first, batches[:10])
    file = io.BytesIO()
    torch.save(
        [
            first[0].model.state_dict(),
            first[1].state_dict(),
            first[2].state_dict(),
            torch.get_rng_state(),
        ],
        file,
    )
    torch.manual_seed(99)
    second = start()
    file.seek(0)
    model, optimizer, method, stream = torch.load(file, weights_only=True)
    second[0].model.load_state_dict(model)
    second[1].load_state_dict(optimizer)
    second[2].load_state_dict(method)
    torch.set_rng_state(stream)
    train(second, batches[10:])
    assert identical(second[0].params, unbroken[0].params)
    assert identical(second[0].statistics, unbroken[0].statistics)


def _losses(problem: Problem, batch: Problem) -> Tensor:
    return problem.loss(problem.model(batch.x), batch.y)


def assert_lr_zero_changes_nothing(make: Maker) -> None:
    problem, method = inputs.noisy(), make()
    before = [p.detach().clone() for p in problem.params]
    optimizer = torch.optim.SGD(
        problem.model.parameters(), lr=0.0, momentum=0.9, weight_decay=0.1
    )
    for batch in problem.batches(5):
        optimizer.zero_grad()
        method.backward(problem.model, batch)
        optimizer.step()
    assert identical(problem.params, before)


# -- numbers of other formats
# ---------------------------------------------------------------------


def _in_bfloat16(make: Maker, problem: Problem) -> list[Tensor | None]:
    """The gradient where the closure's forward alone is under autocast."""

    def closure() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return problem()

    torch.manual_seed(5)
    problem.model.zero_grad()
    make().backward(problem.model, closure)
    return problem.grads


def assert_autocast_agrees(make: Maker) -> None:
    """bf16 agrees with float32 to its precision, wherever the autocast region
    begins.
    """
    for build in (inputs.plain, inputs.noisy):
        errors = []
        for batch in build().batches(5):
            reference, rounded = gradient(make, batch), _in_bfloat16(make, batch)
            pairs = [
                (g, h) for g, h in zip(rounded, reference, strict=True) if h is not None
            ]
            size = max(float(h.abs().max()) for _, h in pairs)
            errors.append(max(float((g - h).abs().max()) for g, h in pairs) / size)
        # The least: in up to a fifth of all batches a ReLU that is near zero switches.
        assert min(errors) < 0.03

        inner = _in_bfloat16(make, build())
        problem = build()
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16):
            make().backward(problem.model, problem)
            after = problem.model.head(problem.model.head.weight.new_ones(1, 8))
        outer = problem.grads
        # The casts of perturbed weights are not served again from the region's cache.
        assert_close(outer, inner, 1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(
                after, problem.model.head(problem.model.head.weight.new_ones(1, 8))
            )


def assert_scaler_scales(make: Maker) -> None:
    """`p.grad` is scaled; radii, levels and the returned loss are not."""
    for build in inputs.typical.values():
        problem = build()
        torch.manual_seed(5)
        loss = make().backward(problem.model, problem)
        plain = problem.grads
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
        problem = build()
        torch.manual_seed(5)
        scaled_loss = make().backward(problem.model, problem, weight=0.5, scaler=scaler)
        assert_close(problem.grads, [2.0**11 * g for g in plain if g is not None], 1e-6)
        assert torch.allclose(loss, scaled_loss, rtol=1e-6)
        problem = build()
        torch.manual_seed(5)
        off = torch.amp.GradScaler("cpu", enabled=False)
        make().backward(problem.model, problem, scaler=off)
        assert_close(problem.grads, plain, 1e-6)


# -- structures
# -----------------------------------------------------------------------------------


def assert_frozen_left_alone(make: Maker) -> None:
    """Frozen parameters neither move during the step nor get a gradient."""
    problem = inputs.plain()
    frozen = problem.model.body[0].weight.requires_grad_(False)
    before = frozen.clone()
    moved = []
    make().backward(
        problem.model,
        Calls(problem, lambda _: moved.append(not torch.equal(frozen, before))),
    )
    assert not any(moved)
    assert frozen.grad is None
    assert all(p.grad is not None for p in problem.params if p is not frozen)


def assert_tied_count_once(make: Maker) -> None:
    """Two layers that share a matrix are one layer used twice."""
    assert_close(
        gradient(make, inputs.tied(two_layers=True)),
        gradient(make, inputs.tied(two_layers=False)),
        1e-6,
    )


def assert_sparse_is_dense(make: Maker) -> None:
    """Sparse embedding gradients give what dense ones give; a method that works with
    gradients themselves refuses them, and changes nothing.
    """
    sparse, dense = inputs.words(sparse=True), inputs.words(sparse=False)
    for weight in (1.0, 0.5):  # the second accumulates
        torch.manual_seed(5)
        make().backward(dense.model, dense, weight=weight)
        torch.manual_seed(5)
        try:
            make().backward(sparse.model, sparse, weight=weight)
        except ValueError as error:
            assert re.search("is sparse.*allowed: dense ones", str(error))
            assert all(p.grad is None for p in sparse.params)
            return
        assert_close(sparse.grads, dense.grads, 1e-5)


def assert_checkpointing_changes_nothing(make: Maker) -> None:
    """Activation checkpointing of either kind: same gradients, statistics updated
    once.
    """
    plain = inputs.checkpointed(None)
    g = gradient(make, plain)
    for use_reentrant in (False, True):
        problem = inputs.checkpointed(use_reentrant)
        assert_close(gradient(make, problem), g, 1e-5)
        assert identical(problem.statistics, plain.statistics)


def assert_compiled_is_eager(make: Maker) -> None:
    """A compiled model gives the eager gradient, and is not compiled again as we
    step.
    """
    method, twin, reference = make(), make(), _to_compile()
    if hasattr(method, "attach"):
        torch.compiler.reset()  # what was compiled without hooks would be compiled again
        problem = _to_compile()
        method.attach(problem.model)
        compiled = torch.compile(problem.model, backend="aot_eager")
    else:
        problem, compiled = _compiled()
        problem.model.load_state_dict(reference.model.state_dict())
        problem.model.zero_grad()
    optimizers = [
        torch.optim.SGD(p.params, 0.1, momentum=0.9) for p in (problem, reference)
    ]
    for step, batch in enumerate(problem.batches(4)):
        for optimizer in optimizers:
            optimizer.zero_grad()
        # Two steps to meet zero_grad(), statistics and forwards without gradient the
        # first time.
        with torch.compiler.set_stance("default" if step < 2 else "fail_on_recompile"):
            method.backward(compiled, replace(batch, model=compiled))
        twin.backward(reference.model, replace(batch, model=reference.model))
        assert_close(problem.grads, reference.grads, 1e-5)
        assert_close(problem.statistics, reference.statistics, 1e-6)
        for optimizer in optimizers:
            optimizer.step()


_to_compile = inputs.classification(lambda: inputs._mlp(nn.BatchNorm1d(8)), (4,))


@functools.cache
def _compiled() -> tuple[Problem, nn.Module]:
    """One for all methods: compiling is slow, and one must not force it on another."""
    problem = _to_compile()
    return problem, torch.compile(problem.model, backend="aot_eager")


# -- ensembles
# ------------------------------------------------------------------------------------


def assert_ensemble_is_separate(
    make: Callable[[Tensor | float], Method], low: float
) -> None:
    """Each member is trained as the same net alone, with its own hyperparameter.

    `make(value)` makes the method from a hyperparameter, `low` to 3 `low` over the
    members.
    """
    values = torch.tensor([1.0, 2.0, 3.0]) * low

    def net() -> nn.Module:
        return nn.Sequential(
            nn.Linear(4, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Linear(8, 3),
        )

    x, y = torch.randn(12, 4), torch.arange(12) % 3
    together = Ensemble(net, 3, seeds=[4, 5, 6])
    alone = [Ensemble(net, 1, seeds=[seed]) for seed in (4, 5, 6)]
    losses = _train(together, make(values), x, y)
    for i, (single, value) in enumerate(zip(alone, values.tolist(), strict=True)):
        expected = _train(single, make(value), x, y)
        assert torch.allclose(losses[:, i], expected[:, 0], atol=1e-5)
        for a, b in zip(
            together.state_dict().values(), single.state_dict().values(), strict=True
        ):
            if a.is_floating_point():
                assert torch.allclose(a[i], b[0], atol=2e-5)


def _train(model: nn.Module, method: Method, x: Tensor, y: Tensor) -> Tensor:
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(
            method.backward(model, lambda: flatnb.metrics.cross_entropy(model(x), y))
        )
        optimizer.step()
    return torch.stack(losses)


def assert_members_fail_alone(make: Maker) -> None:
    """One member's NaN leaves the others exact, to the bit."""

    def net() -> nn.Module:
        return nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
        )

    x, y = torch.randn(12, 4), torch.arange(12) % 3
    grads = []
    for broken in (False, True):
        model = Ensemble(net, 3)
        if broken:
            with torch.no_grad():
                next(iter(model.parameters()))[1] = torch.nan
        before = [p.detach().clone() for p in model.parameters()]
        method = make()
        loss = method.backward(
            model, lambda m=model: flatnb.metrics.cross_entropy(m(x), y)
        )
        assert loss.isfinite().tolist() == [True, not broken, True]
        for p, b in zip(model.parameters(), before, strict=True):
            assert torch.equal(p.nan_to_num(7.0), b.nan_to_num(7.0))
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for good, bad in zip(*grads, strict=True):
        assert torch.equal(good[[0, 2]], bad[[0, 2]])
    assert not all(torch.isfinite(g[1]).all() for g in grads[1])
