"""Real training loops: `method.backward` where `loss.backward()` stood, nothing else
changed.
"""

from __future__ import annotations

import inputs
import pytest
import torch
import torch.nn.functional as F
from inputs import Problem
from properties import assert_close, gradient, identical
from torch import Tensor, nn

from flatnb.ensemble import Ensemble
from flatnb.methods import ERM, FAM, GNP, NSO, SAM, Flooding, SoftAD, compose
from flatnb.metrics import cross_entropy

METHODS = {
    "ERM": ERM,
    "SoftAD": lambda: SoftAD(0.3),
    "SAM": lambda: SAM(0.05),
    "GNP": lambda: GNP(0.05, 0.8),
    "NSO": lambda: NSO(0.01),
    "FAM": lambda: FAM(0.01),
}
every_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


def halves(problem: Problem) -> list[Problem]:
    return [
        Problem(problem.model, problem.x[part], problem.y[part])
        for part in torch.arange(len(problem.x)).chunk(2)
    ]


# -- accumulation
# ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [ERM, lambda: SoftAD(0.3), lambda: NSO(0.01), lambda: FAM(0.1)]
)
def test_accumulated_micro_batches_are_the_whole_batch(make) -> None:
    """For objectives that are means over examples."""
    whole, parts = inputs.plain(), inputs.plain()
    make().backward(whole.model, whole)
    for part in halves(parts):
        make().backward(parts.model, part, weight=0.5)  # a fresh method: the same noise
    assert_close(parts.grads, whole.grads, 1e-5)


@pytest.mark.parametrize(
    "make", [lambda: SAM(0.1), lambda: GNP(0.1, 0.8), lambda: Flooding(1.0)]
)
def test_each_micro_batch_is_a_batch_of_its_own(make) -> None:
    """Radii and flood levels: the average of the micro-batches' own gradients."""
    problem = inputs.plain()
    own = [gradient(make, part) for part in halves(problem)]
    wanted = [(a + b) / 2 for a, b in zip(*own, strict=True)]
    problem.model.zero_grad()
    for part in halves(problem):
        make().backward(problem.model, part, weight=0.5)
    assert_close(problem.grads, wanted, 1e-6)


# -- mixed precision
# ------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scaled_and_clipped_training(make, dtype) -> None:
    """Autocast, GradScaler, accumulation, one `unscale_`, clipping, scheduler: the
    loss falls.
    """
    problem, method = inputs.noisy(), make()
    groups = [
        {"params": problem.model.body.parameters(), "weight_decay": 1e-3},
        {"params": problem.model.head.parameters(), "lr": 0.2},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10)

    def losses(part: Problem) -> Tensor:
        with torch.autocast("cpu", dtype):
            return part()

    values = []
    for _ in range(30):
        optimizer.zero_grad()
        for part in halves(problem):
            loss = method.backward(
                problem.model, lambda p=part: losses(p), weight=0.5, scaler=scaler
            )
            values.append(float(loss))
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(problem.model.parameters(), 0.5)
        assert torch.isfinite(norm)
        assert torch.stack([p.grad.norm() for p in problem.params]).norm() < 0.5 + 1e-5
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    assert sum(values[-20:]) < 0.9 * sum(
        values[:20]
    )  # dropout makes a single one noisy
    assert scaler.get_scale() == 2.0**13  # never skipped, three times grown
    assert (
        optimizer.param_groups[0]["lr"] < 1e-8
    )  # the scheduler reaches what is stepped


@every_method
def test_overflow_skips_one_step_and_training_goes_on(make) -> None:
    problem, method = inputs.plain(), make()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)

    def losses() -> Tensor:
        with torch.autocast("cpu", torch.float16):
            return problem()

    moved = []
    for _ in range(40):
        before = [p.detach().clone() for p in problem.params]
        optimizer.zero_grad()
        method.backward(problem.model, losses, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        moved.append(not identical(problem.params, before))
    assert not moved[0]
    assert moved[-1]
    assert all(torch.isfinite(p).all() for p in problem.params)


@every_method
def test_whole_loop_inside_an_autocast_region(make) -> None:
    """The weights' casts are renewed after each optimizer step."""
    inside, outside = inputs.plain(), inputs.plain()
    methods = make(), make()
    optimizers = [
        torch.optim.SGD(p.params, lr=0.5, momentum=0.9) for p in (inside, outside)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(5):
            optimizers[0].zero_grad()
            methods[0].backward(inside.model, inside)
            optimizers[0].step()

    def losses() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return outside()

    for _ in range(5):
        optimizers[1].zero_grad()
        methods[1].backward(outside.model, losses)
        optimizers[1].step()
    assert_close(inside.params, outside.params, 1e-6)


# -- optimizers
# -----------------------------------------------------------------------------------


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(
        p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1
    ),
    "SGD foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
    "SGD fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01),
}


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_sam_is_the_loop_written_by_hand(make_optimizer, set_to_none) -> None:
    """Weight decay and momentum act at w; the perturbation knows nothing of them."""
    problem, reference, rho = inputs.exact(), inputs.exact(), 0.1
    optimizer, by_hand = (
        make_optimizer(problem.params),
        make_optimizer(reference.params),
    )
    for batch, same in zip(problem.batches(5), reference.batches(5), strict=True):
        optimizer.zero_grad(set_to_none)
        SAM(rho).backward(problem.model, batch)
        optimizer.step()

        w = [p.detach().clone() for p in reference.params]
        g = torch.autograd.grad(same().mean(), reference.params)
        norm = torch.stack([t.square().sum() for t in g]).sum().sqrt()
        with torch.no_grad():
            for p, t in zip(reference.params, g, strict=True):
                p += rho * t / norm
        g = torch.autograd.grad(same().mean(), reference.params)
        with torch.no_grad():
            for p, old, t in zip(reference.params, w, g, strict=True):
                p.copy_(old)
                p.grad = t
        by_hand.step()
    assert_close(problem.params, reference.params, 1e-9)


def test_unused_parameters_stay_without_gradient() -> None:
    """As after `loss.backward()`, so an optimizer leaves them alone."""
    for make in METHODS.values():
        problem = inputs.plain()
        unused = nn.Parameter(torch.ones(3))
        problem.model.register_parameter("unused", unused)
        optimizer = torch.optim.AdamW(problem.params, 0.1, weight_decay=0.5)
        make().backward(problem.model, problem)
        optimizer.step()
        assert unused.grad is None
        assert (unused == 1).all()


def test_recurrent_net_with_clipping() -> None:
    for build in inputs.recurrent.values():
        problem, method = build(), compose(SoftAD(0.3), SAM(0.02))
        optimizer = torch.optim.Adam(problem.params, 0.02)
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            losses.append(float(method.backward(problem.model, problem)))
            nn.utils.clip_grad_norm_(problem.params, 1.0)
            optimizer.step()
        assert losses[-1] < 0.8 * losses[0]


def test_sparse_gradients_reach_the_optimizer() -> None:
    """A sparse embedding stays sparse where one pass writes the gradient."""
    sparse, dense = inputs.words(sparse=True), inputs.words(sparse=False)
    for problem in (sparse, dense):
        optimizer = torch.optim.SGD(problem.params, 0.5)
        for _ in range(3):
            optimizer.zero_grad()
            ERM().backward(problem.model, problem)
            optimizer.step()
    assert sparse.model.embedding.weight.grad.is_sparse
    assert_close(sparse.params, dense.params, 1e-5)


def test_members_of_an_ensemble_are_clipped_apart() -> None:
    def net() -> nn.Module:
        return nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
        )

    x, y = torch.randn(12, 4), torch.arange(12) % 3
    model = Ensemble(net, 3)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    method = compose(
        SoftAD(torch.tensor([0.01, 0.1, 0.5])), SAM(torch.tensor([0.0, 0.05, 0.1]))
    )
    first = None
    for _ in range(30):
        optimizer.zero_grad()
        loss = method.backward(model, lambda: cross_entropy(model(x), y))
        norms = torch.cat([p.grad.flatten(1) for p in model.parameters()], 1).norm(
            dim=1
        )
        factors = (0.5 / (norms + 1e-6)).clamp(max=1)
        for p in model.parameters():
            p.grad.mul_(factors.view(-1, *[1] * (p.dim() - 1)))
        for i in range(3):
            norm = torch.stack([p.grad[i].norm() for p in model.parameters()]).norm()
            assert norm < 0.5 + 1e-5
        optimizer.step()
        first = loss if first is None else first
    assert (loss < 0.8 * first).all()


def test_double_precision_of_a_label_free_objective() -> None:
    """Nothing asks for classification: an autoencoder's closure."""
    net = nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 4)).double()
    x = torch.randn(32, 4).double()
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(
            float(
                SAM(0.02).backward(
                    net, lambda: F.mse_loss(net(x), x, reduction="none").mean(-1)
                )
            )
        )
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
