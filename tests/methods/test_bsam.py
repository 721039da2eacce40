"""bSAM: the update in float64 by hand, state, draws, refusals."""

from __future__ import annotations

import copy
import io

import oracle
import pytest
import torch
from torch import Tensor, nn

from flatnb.ensemble import Ensemble, member_learning_rates
from flatnb.methods import BSAM, Method
from flatnb.methods.noise import Stream, normal

N, LR, RHO, B1, B2, DELTA, DAMPING, S0 = 30, 0.2, 0.05, 0.8, 0.95, 12.0, 0.1, 0.7
SETTINGS = {
    "lr": LR,
    "examples": N,
    "rho": RHO,
    "betas": (B1, B2),
    "prior_precision": DELTA,
    "damping": DAMPING,
    "s_init": S0,
    "seed": 3,
}


def loss_at(w: Tensor) -> Tensor:
    scale = torch.linspace(1, 2, 6, dtype=torch.float64)
    return (scale * w**2).sum() / 2 + (w**4).sum() + torch.sin(w).sum()


def slope(w: Tensor) -> Tensor:
    w = w.clone().requires_grad_()
    return torch.autograd.grad(loss_at(w), w)[0]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))

    def closure(self) -> Tensor:
        loss = loss_at(self.weight)
        loss.backward()
        return loss


def by_hand(steps: int) -> tuple[Tensor, Tensor]:
    w = torch.linspace(-1, 1, 6, dtype=torch.float64)
    m = torch.zeros(6, dtype=torch.float64)
    s = torch.full((6,), S0, dtype=torch.float64)
    stream, loss = Stream(3, normal), torch.zeros(())
    for _ in range(steps):
        (u,) = stream.draw([w])
        g = slope(w + (1 / (N * s)).sqrt() * u)
        up = w + RHO * g / s
        loss = loss_at(up)
        m = B1 * m + (1 - B1) * (slope(up) + DELTA / N * w)
        w = w - LR * m / s
        s = B2 * s + (1 - B2) * (s.sqrt() * g.abs() + DAMPING + DELTA / N)
    return w, loss


def test_update_is_the_formula() -> None:
    net = Net()
    optimizer = BSAM(net.parameters(), **SETTINGS)
    for _ in range(4):
        loss = optimizer.step(net.closure)
    w, expected = by_hand(4)
    torch.testing.assert_close(net.weight.detach(), w, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss, expected)
    assert not loss.requires_grad


def test_a_closure_may_clear_gradients() -> None:
    nets = Net(), Net()
    for net in nets:
        optimizer = BSAM(net.parameters(), **SETTINGS)

        def cleared(net: Net = net, optimizer: BSAM = optimizer) -> Tensor:
            optimizer.zero_grad()
            return net.closure()

        for _ in range(2):
            optimizer.step(cleared if net is nets[0] else net.closure)
    assert torch.equal(nets[0].weight, nets[1].weight)


def test_steps_across_a_save_equal_unbroken_ones() -> None:
    unbroken, broken = Net(), Net()
    optimizer = BSAM(unbroken.parameters(), **SETTINGS)
    for _ in range(6):
        optimizer.step(unbroken.closure)
    optimizer = BSAM(broken.parameters(), **SETTINGS)
    for _ in range(3):
        optimizer.step(broken.closure)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optimizer = BSAM(broken.parameters(), lr=1.0, examples=1)
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        optimizer.step(broken.closure)
    assert torch.equal(unbroken.weight, broken.weight)


def test_follows_a_scheduler() -> None:
    net = Net()
    optimizer = BSAM(net.parameters(), **SETTINGS)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: 0.0 if epoch else 1.0
    )
    optimizer.step(net.closure)
    scheduler.step()
    before = net.weight.detach().clone()
    optimizer.step(net.closure)
    assert torch.equal(net.weight, before)


def test_trains() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
    x = torch.randn(64, 2)
    y = (x[:, 0] > 0).long()
    optimizer = BSAM(net.parameters(), lr=0.1, examples=64, prior_precision=0.1)

    def closure() -> Tensor:
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        return loss

    for _ in range(100):
        optimizer.step(closure)
    assert (net(x).argmax(1) == y).float().mean() > 0.95


@pytest.mark.parametrize("bad", [1, 2])
def test_a_batch_that_is_not_finite_is_skipped(bad: int) -> None:
    """Weights and state stay, and training goes on; `p.grad` shows what happened."""
    net, calls = Net(), []
    optimizer = BSAM(net.parameters(), **SETTINGS)
    optimizer.step(net.closure)
    before = copy.deepcopy([net.weight, optimizer.state[net.weight]])

    def closure() -> Tensor:
        calls.append(1)
        loss = net.closure()
        if len(calls) == bad:
            net.weight.grad[2] = torch.nan
        return loss

    optimizer.step(closure)
    assert torch.equal(net.weight, before[0])
    assert all(
        torch.equal(optimizer.state[net.weight][k], before[1][k]) for k in ("m", "s")
    )
    optimizer.step(net.closure)
    assert torch.isfinite(net.weight).all()
    assert not torch.equal(net.weight, before[0])


def test_parameters_are_back_after_an_error() -> None:
    net = Net()
    optimizer = BSAM(net.parameters(), **SETTINGS)
    before = net.weight.detach().clone()
    for fatal in (1, 2):
        calls = []

        def closure(fatal: int = fatal, calls: list = calls) -> Tensor:
            calls.append(1)
            if len(calls) == fatal:
                raise KeyError("stop")
            return net.closure()

        with pytest.raises(KeyError):
            optimizer.step(closure)
        assert torch.equal(net.weight, before)


def test_frozen_and_unused_parameters_stay() -> None:
    net = Net()
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    unused = nn.Parameter(torch.ones(2))
    optimizer = BSAM([net.weight, frozen, unused], **SETTINGS)
    optimizer.step(net.closure)
    assert frozen.tolist() == unused.tolist() == [1.0, 1.0]


def test_wrong_closures_are_refused() -> None:
    net = Net()
    optimizer = BSAM(net.parameters(), **SETTINGS)
    for wrong in (lambda: None, lambda: loss_at(net.weight)):
        with pytest.raises(ValueError, match="must call backward"):
            optimizer.step(wrong)
    with pytest.raises(KeyError, match="noise"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})


@pytest.mark.parametrize(
    "name", ["lr", "examples", "rho", "prior_precision", "damping", "s_init"]
)
@pytest.mark.parametrize(
    "value", [-0.1, oracle.NAN, oracle.INF, "1", None, True, torch.ones(2)]
)
def test_bad_settings_are_refused(name: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{name}.*allowed"):
        BSAM(Net().parameters(), **{**SETTINGS, name: value})


def test_settings_that_must_be_positive_and_betas() -> None:
    for name in ("lr", "examples", "s_init"):
        with pytest.raises(
            ValueError, match=f"{name}=0.0; allowed: a finite number > 0$"
        ):
            BSAM(Net().parameters(), **{**SETTINGS, name: 0.0})
    for betas in ((1.0, 0.9), (0.9, -0.1), (0.9, "0.9")):
        with pytest.raises(ValueError, match=r"betas.*allowed"):
            BSAM(Net().parameters(), **{**SETTINGS, "betas": betas})


# -- samples of the posterior
# ---------------------------------------------------------------------


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_sample_is_the_formula_and_the_mean_comes_back() -> None:
    net, extra = Net(), nn.Parameter(torch.ones(2, 3))
    groups = [{"params": net.weight}, {"params": extra, "examples": 7, "s_init": 0.2}]
    optimizer = BSAM(groups, **SETTINGS)
    for steps in range(
        3
    ):  # before the first step s is s_init; extra never has a gradient
        before = [p.detach().clone() for p in (net.weight, extra)]
        draw = seeded()
        u = torch.randn(6, dtype=torch.float64, generator=draw)
        v = torch.randn(2, 3, generator=draw)
        s = optimizer.state[net.weight]["s"] if steps else torch.full((6,), S0)
        with optimizer.sampled(seeded()):
            torch.testing.assert_close(
                net.weight.detach(), before[0] + u / (N * s).sqrt()
            )
            torch.testing.assert_close(extra.detach(), before[1] + v / (7 * 0.2) ** 0.5)
        assert torch.equal(net.weight, before[0])
        assert torch.equal(extra, before[1])
        optimizer.step(net.closure)


def test_draws_differ_and_repeat_with_the_generator() -> None:
    net = Net()
    optimizer = BSAM(net.parameters(), **SETTINGS)
    optimizer.step(net.closure)

    def draws(generator: torch.Generator) -> list[Tensor]:
        found = []
        for _ in range(2):
            with optimizer.sampled(generator):
                found.append(net.weight.detach().clone())
        return found

    first, second = draws(seeded()), draws(seeded())
    assert not torch.equal(*first)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_average_of_a_linear_prediction_has_the_posterior_variance() -> None:
    net = Net()
    optimizer = BSAM(net.parameters(), **SETTINGS)
    for _ in range(3):
        optimizer.step(net.closure)
    a = torch.linspace(1, 2, 6, dtype=torch.float64)
    mean, variance = (
        a @ net.weight.detach(),
        (a**2 / (N * optimizer.state[net.weight]["s"])).sum(),
    )
    generator, values = seeded(), []
    for _ in range(4000):
        with optimizer.sampled(generator), torch.no_grad():
            values.append(a @ net.weight)
    values = torch.stack(values)
    assert abs(values.mean() - mean) < 5 * (variance / 4000).sqrt()
    assert values.var() == pytest.approx(
        float(variance), rel=0.12
    )  # five standard errors


def test_training_goes_on_as_if_nothing_had_been_sampled() -> None:
    weights = []
    for samples in (0, 3):
        net = Net()
        optimizer = BSAM(net.parameters(), **SETTINGS)
        state = torch.get_rng_state()
        for _ in range(3):
            for _ in range(samples):
                with optimizer.sampled(seeded()):
                    pass
            optimizer.step(net.closure)
        assert torch.equal(torch.get_rng_state(), state)
        weights.append(net.weight.detach())
    assert torch.equal(*weights)


def test_the_mean_is_back_after_an_error_and_frozen_parameters_stay() -> None:
    net, frozen = Net(), nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = BSAM([net.weight, frozen], **SETTINGS)
    before = net.weight.detach().clone()
    with pytest.raises(KeyboardInterrupt), optimizer.sampled(seeded()):
        assert not torch.equal(net.weight, before)
        assert frozen.tolist() == [1.0, 1.0]
        raise KeyboardInterrupt
    assert torch.equal(net.weight, before)
    with optimizer.sampled(seeded()):
        with pytest.raises(RuntimeError, match="leave `sampled` first"):
            optimizer.step(net.closure)
        with pytest.raises(RuntimeError, match="leave `sampled` first"):
            optimizer.sampled(seeded()).__enter__()
    assert torch.equal(net.weight, before)
    optimizer.step(net.closure)


def test_is_an_optimizer_and_no_method() -> None:
    optimizer = BSAM(Net().parameters(), examples=10)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert not isinstance(optimizer, Method)


# -- an ensemble
# ---------------------------------------------------------------------

SEEDS, RATES, RHOS = [4, 9, 4], [0.4, 0.1, 0.2], [0.05, 0.4, 0.0]


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def trained(model: nn.Module, optimizer: BSAM, spoiled: int | None = None) -> None:
    """15 steps of cross-entropy; in the third a member's first gradient is infinite."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (20,), generator=generator)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        logits = model(x)
        losses = -logits.log_softmax(-1)[..., torch.arange(20), y].mean(-1)
        losses.sum().backward()
        if spoiled is not None and calls == 5:
            next(model.parameters()).grad[spoiled, 0, 0] = torch.inf
        return losses

    for _ in range(15):
        loss = optimizer.step(closure)
    assert loss.shape == ((model.members,) if isinstance(model, Ensemble) else ())


def ensemble(spoiled: int | None = None) -> Ensemble:
    model = Ensemble(small, 3, SEEDS)
    rho = torch.tensor(RHOS, dtype=torch.float64)
    settings = {**SETTINGS, "lr": max(RATES), "rho": rho, "member_seeds": SEEDS}
    optimizer = BSAM(model.parameters(), **settings)
    member_learning_rates(optimizer, RATES)
    trained(model, optimizer, spoiled)
    return model


def test_members_train_as_alone_with_a_rate_a_radius_and_a_seed_each() -> None:
    model = ensemble()
    for i, (seed, lr, rho) in enumerate(zip(SEEDS, RATES, RHOS, strict=True)):
        torch.manual_seed(seed)
        alone = small()
        own = {"lr": lr, "rho": rho, "seed": SETTINGS["seed"] + seed}
        trained(alone, BSAM(alone.parameters(), **{**SETTINGS, **own}))
        for p, q in zip(model.member(i).parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_a_member_that_is_not_finite_is_lost_alone() -> None:
    whole, spoiled = ensemble(), ensemble(spoiled=1)
    for p, q in zip(whole.parameters(), spoiled.parameters(), strict=True):
        assert q[1].isnan().all()
        assert torch.equal(p[[0, 2]], q[[0, 2]])


def test_members_that_do_not_fit_are_refused() -> None:
    model = Ensemble(small, 3)
    with pytest.raises(ValueError, match=r"rho has 2 values.*as many seeds"):
        BSAM(model.parameters(), examples=9, rho=torch.ones(2), member_seeds=[0, 1, 2])
    with pytest.raises(ValueError, match=r"shape \(3, 5, 2\).*one seed per member"):
        BSAM(model.parameters(), examples=9, member_seeds=[0, 1])
    with pytest.raises(
        ValueError, match=r"loss of shape \(3,\); allowed.*member_seeds"
    ):
        trained(model, BSAM(model.parameters(), examples=9))
