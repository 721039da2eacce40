"""An ensemble's members are the plain nets, trained alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatnb import ensemble as ensembles
from flatnb.ensemble import Ensemble, groups

MEMBERS, CLASSES = 4, 3
SEEDS = [11, 5, 11, 7]


def make_model(*, momentum: float | None = 0.1, affine: bool = True) -> nn.Module:
    def block(inputs: int, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(inputs, width, bias=False),
            nn.BatchNorm1d(width, momentum=momentum, affine=affine),
            nn.ReLU(),
        )

    head = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, CLASSES))
    return nn.Sequential(block(2, 9), block(9, 8), *head)


def batches(
    steps: int, members: int | None = None, n: int = 12
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of n, every third of 7, as at the end of every epoch."""
    generator = torch.Generator().manual_seed(99)
    lead = () if members is None else (members,)
    for step in range(steps):
        shape = (*lead, 7 if step % 3 == 2 else n)
        x = torch.randn(*shape, 2, generator=generator, dtype=torch.float64)
        yield x, torch.randint(CLASSES, shape, generator=generator)


def losses(logits: Tensor, y: Tensor) -> Tensor:
    y = y.expand(logits.shape[:-1])
    return F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none").view(
        y.shape
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Iterator) -> None:
    for x, y in data:
        optimizer.zero_grad()
        losses(model(x), y).mean(-1).sum().backward()
        optimizer.step()


def assert_member_equals(
    ensemble: Ensemble, i: int, net: nn.Module, tol: float = 1e-9
) -> None:
    measured = ensemble.member(i).state_dict()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(measured[name], value, rtol=tol, atol=tol, msg=name)


OPTIMIZERS: dict[str, Callable] = {
    "sgd": lambda p: torch.optim.SGD(
        p, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3
    ),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, amsgrad=True),
}


@pytest.mark.parametrize("own", [False, True], ids=["shared batch", "own batches"])
@pytest.mark.parametrize("options", [{}, {"momentum": None, "affine": False}], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_member_equals_the_plain_net_trained_alone(optimizer, options, own):
    def make() -> nn.Module:
        return make_model(**options).double()

    ensemble = Ensemble(make, MEMBERS, SEEDS)
    start = [p.detach().clone() for p in ensemble.parameters()]
    members = MEMBERS if own else None
    train(ensemble, OPTIMIZERS[optimizer](ensemble.parameters()), batches(30, members))
    for p, s in zip(ensemble.parameters(), start, strict=True):
        assert (p != s).flatten(1).any(1).all()
    x = torch.randn(5, 2, dtype=torch.float64)
    with torch.random.fork_rng():
        for i, seed in enumerate(SEEDS):
            torch.manual_seed(seed)
            net = make()
            mine = [(x[i], y[i]) if own else (x, y) for x, y in batches(30, members)]
            train(net, OPTIMIZERS[optimizer](net.parameters()), iter(mine))
            assert_member_equals(ensemble, i, net)
            torch.testing.assert_close(ensemble.eval()(x)[i], net.eval()(x))


def test_member_equals_an_ensemble_of_itself():
    together = Ensemble(lambda: make_model().double(), MEMBERS, SEEDS)
    train(together, OPTIMIZERS["sgd"](together.parameters()), batches(20))
    alone = Ensemble(lambda: make_model().double(), 1, SEEDS[1:2])
    train(alone, OPTIMIZERS["sgd"](alone.parameters()), batches(20))
    assert_member_equals(together, 1, alone.member(0))


def test_starts_as_made_under_the_seed_and_leaves_the_global_stream():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ensemble = Ensemble(make_model, MEMBERS, SEEDS)
    assert torch.equal(torch.get_rng_state(), before)
    assert Ensemble(make_model, 3).seeds == [0, 1, 2]
    for i, seed in enumerate(SEEDS):
        torch.manual_seed(seed)
        for p, q in zip(make_model().parameters(), ensemble.parameters(), strict=True):
            assert torch.equal(p, q[i])


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(2, CLASSES))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_diverging_member_leaves_the_others_bit_identical(optimizer):
    def run(bad: bool) -> Ensemble:
        ensemble = Ensemble(make_model, MEMBERS, SEEDS)
        step = OPTIMIZERS[optimizer](ensemble.parameters())
        for k, (x, y) in enumerate(batches(20)):
            step.zero_grad()
            per_member = losses(ensemble(x.float()), y).mean(-1)
            if bad and k == 4:
                per_member = per_member * torch.tensor([1.0, float("inf"), 1.0, 1.0])
            per_member.sum().backward()
            step.step()
        return ensemble

    good, bad = run(False), run(True)
    for name, value in good.state_dict().items():
        unaffected = [0, 2, 3]
        assert torch.equal(value[unaffected], bad.state_dict()[name][unaffected]), name
    assert all(p[1].isnan().any() for p in bad.parameters())


def test_input_shared_or_one_batch_a_member():
    ensemble = Ensemble(linear, 3)
    x = torch.randn(3, 2)  # as many examples as members: still shared
    assert ensemble(x).shape == (3, 3, CLASSES)
    torch.testing.assert_close(ensemble(x.expand(3, 3, 2).contiguous()), ensemble(x))
    with pytest.raises(ValueError, match=r"\(4, 5, 2\); allowed: .*, \(3, n, \.\.\.\)"):
        ensemble(torch.randn(4, 5, 2))


def test_images_shared_or_one_batch_a_member():
    ensemble = Ensemble(lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES)), 3)
    x = torch.randn(3, 1, 3, 4)  # as many examples as members: still shared
    assert ensemble(x).shape == (3, 3, CLASSES)
    own = torch.randn(3, 5, 1, 3, 4)
    expected = torch.stack([ensemble.member(i)(own[i]) for i in range(3)])
    torch.testing.assert_close(ensemble(own), expected)
    with pytest.raises(ValueError, match=r"\(12,\); allowed: "):
        ensemble(torch.randn(12))


def test_flatten_after_linear_changes_nothing():
    ensemble = Ensemble(lambda: nn.Sequential(*linear(), nn.Flatten(), nn.GELU()), 2)
    x = torch.randn(5, 2)
    torch.testing.assert_close(ensemble(x)[1], ensemble.member(1)(x))


@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False}], ids=str
)
def test_second_derivatives(options):
    ensemble = Ensemble(lambda: make_model(**options).double(), 2)
    x, y = next(batches(1))

    def curvature(model: nn.Module) -> list[Tensor]:
        params = list(model.parameters())
        loss = losses(model(x), y).mean(-1).sum()
        grads = torch.autograd.grad(loss, params, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in grads), params))

    measured = curvature(ensemble)
    for i in range(2):
        for mine, plain in zip(measured, curvature(ensemble.member(i)), strict=True):
            torch.testing.assert_close(mine[i], plain, rtol=1e-8, atol=1e-10)


def test_gradcheck_through_batch_statistics():
    norm = Ensemble(lambda: nn.Sequential(nn.BatchNorm1d(2), *linear()).double(), 2)
    x = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))
    assert torch.autograd.gradgradcheck(norm, (x,))


def test_batchnorm_without_running_statistics():
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Linear(2, 4), nn.BatchNorm1d(4, track_running_stats=False)
        ).double()

    ensemble = Ensemble(make, 2).eval()
    x = torch.randn(6, 2, dtype=torch.float64)
    torch.testing.assert_close(ensemble(x)[1], ensemble.member(1)(x))


def test_batchnorm_refuses_a_single_example():
    with pytest.raises(ValueError, match=r"more than 1 value per channel"):
        Ensemble(make_model, 2)(torch.randn(1, 2))


def test_running_statistics_can_be_reset_as_update_bn_does():
    ensemble = Ensemble(make_model, 3)
    data = [torch.randn(8, 2) for _ in range(4)]
    torch.optim.swa_utils.update_bn(data, ensemble)
    net = ensemble.member(2)
    torch.optim.swa_utils.update_bn(data, net)
    assert_member_equals(ensemble, 2, net, tol=1e-5)


def test_evaluation_in_groups_equals_one_pass(monkeypatch):
    ensemble = Ensemble(lambda: make_model().double(), 3)
    ensemble(torch.randn(9, 2, dtype=torch.float64))
    ensemble.eval()
    monkeypatch.setitem(ensembles._EVALUATED_AT_ONCE, "cpu", 270)  # 10 rows of width 9
    for shape in ((101, 2), (3, 101, 2)):
        x = torch.randn(shape, dtype=torch.float64)
        whole = ensemble(x)
        sizes: list[int] = []
        with torch.no_grad():
            handle = ensemble.net[1][0].register_forward_hook(recorder(sizes))
            torch.testing.assert_close(ensemble(x), whole)
        handle.remove()
        assert sizes == [10] * 10 + [1]


def recorder(rows: list[int]) -> Callable:
    def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        rows.append(output.shape[1])

    return hook


def test_training_mode_is_never_grouped(monkeypatch):
    ensemble = Ensemble(make_model, 3)
    x = torch.randn(50, 2)
    whole = ensemble(x)
    monkeypatch.setitem(ensembles._EVALUATED_AT_ONCE, "cpu", 1)
    with torch.no_grad():
        torch.testing.assert_close(ensemble(x), whole)


def test_member_is_a_plain_copy_with_modes_and_flags():
    ensemble = Ensemble(make_model, 3).double()
    ensemble.net[0].eval()
    ensemble.net[1][0].weight.requires_grad_(False)
    net = ensemble.member(-1)
    assert [type(m) for m in net.modules()] == [type(m) for m in make_model().modules()]
    assert [m.training for m in net.modules()] == [
        m.training for m in ensemble.net.modules()
    ]
    assert [p.requires_grad for p in net.parameters()] == [
        p.requires_grad for p in ensemble.parameters()
    ]
    assert_member_equals(ensemble, 2, net, tol=0)
    with torch.no_grad():
        net[2].weight.zero_()
    assert ensemble.net[2].weight[2].abs().sum() > 0
    with pytest.raises(IndexError, match=r"index 3 is out of bounds"):
        ensemble.member(3)


def test_parameters_frozen_in_the_plain_net_stay_frozen():
    def make() -> nn.Module:
        net = make_model()
        net[0].requires_grad_(False)
        return net

    ensemble = Ensemble(make, 2)
    assert [p.requires_grad for p in ensemble.parameters()] == [
        p.requires_grad for p in make().parameters()
    ]


def test_a_layer_used_twice_stays_one():
    def make() -> nn.Module:
        layer = nn.Linear(2, 2)
        return nn.Sequential(layer, nn.ReLU(), layer)

    ensemble = Ensemble(make, 2)
    assert len(list(ensemble.parameters())) == 2
    x = torch.randn(5, 2)
    torch.testing.assert_close(ensemble(x)[1], ensemble.member(1)(x))


def test_bfloat16_autocast_agrees_to_its_precision():
    ensemble = Ensemble(make_model, 3)
    x = torch.randn(40, 2)
    full = ensemble(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = ensemble(x)
    torch.testing.assert_close(half.float(), full, rtol=0.05, atol=0.05)
    half.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in ensemble.parameters())


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.Conv1d(1, 1, 1), "Conv1d"),
        (nn.LayerNorm(2), "LayerNorm"),
        (nn.Dropout(0.1), "Dropout"),
        (Residual(nn.Linear(2, 2)), "Residual"),
        (nn.Flatten(0), "Flatten"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "ParametrizedLinear"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_an_unsupported_layer_is_named(layer, name):
    with pytest.raises(
        TypeError, match=rf"layer 1.0 is {name}(.|\n)*supports Linear, BatchNorm1d"
    ):
        Ensemble(lambda: nn.Sequential(nn.Linear(2, 2), nn.Sequential(layer)), 2)


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    return net


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((linear, 0), ValueError, r"members=0; allowed: an integer >= 1"),
        ((linear, 2.0), ValueError, r"members=2.0"),
        ((linear, 3, [1, 2]), ValueError, r"2 seeds for 3 members"),
        ((lambda: 3, 2), TypeError, r"make_model\(\)=3"),
        ((tied, 2), ValueError, r"ties parameters"),
        ((lambda: linear().to("meta"), 2), ValueError, r"made its net on meta"),
        (
            (lambda: nn.Linear(2, 2 + int(torch.randint(9, ()))), 5),
            ValueError,
            r"nets that differ",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_construction_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Ensemble(*arguments)


@pytest.mark.parametrize(
    ("width", "members", "at_once"),
    [(1, 600, 2**24), (2000, 9, 2**24), (5000, 3, 2**24), (10, 7, 250), (10, 7, 1)],
)
def test_groups_cover_the_members_and_bound_their_parameters(width, members, at_once):
    net = nn.Linear(width, width)
    cut = groups(net, members, at_once)
    if at_once == 2**24:
        assert groups(net, members) == cut
    assert [i for group in cut for i in group] == list(range(members))
    sizes = [len(group) for group in cut]
    assert max(sizes) - min(sizes) <= 1
    each = sum(p.numel() for p in net.parameters())
    assert max(sizes) * each <= at_once or max(sizes) == 1
    assert len(cut) == 1 or -(-members // (len(cut) - 1)) * each > at_once
