"""Rescaling by c: the net, its trace, relative flatness and ellipse are the library's."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from figures import cell, finding, slide
from playwright.sync_api import Page
from torch import Tensor, nn

from flatnb import curvature
from flatnb.book import play

NAMES = {"first": ("0.weight", "0.bias"), "last": ("2.weight",), "bias": ("2.bias",)}
FACTORS = [1 / 4, 1 / 2, 1.0, 2.0, 4.0]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@dataclass
class Case:
    """A net, its points, and the same for the figure."""

    net: nn.Sequential
    x: Tensor
    y: Tensor

    def rescaled(self, c: float) -> nn.Sequential:
        net = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2))
        net.load_state_dict(self.net.state_dict())
        with torch.no_grad():
            net[0].weight *= c
            net[0].bias *= c
            net[2].weight /= c
        return net

    def trace(self, c: float, *names: str) -> float:
        """Of the Hessian, by second derivatives."""
        params = dict(self.rescaled(c).named_parameters())
        chosen = {name: params[name].detach() for name in names or params}

        def loss(some: dict[str, Tensor]) -> Tensor:
            z = torch.func.functional_call(self.net, {**params, **some}, (self.x,))
            return F.cross_entropy(z, self.y)

        blocks = torch.func.hessian(loss)(chosen)
        sizes = {name: chosen[name].numel() for name in chosen}
        return sum(
            blocks[name][name].detach().reshape(size, size).trace().item()
            for name, size in sizes.items()
        )

    def hessian(self, c: float) -> curvature.HessianOperator:
        data = [(self.x, self.y)]
        return curvature.HessianOperator(self.rescaled(c), F.cross_entropy, data)

    def weights(self) -> dict[str, Any]:
        values = (p.tolist() for p in self.net.state_dict().values())
        return dict(zip(["W1", "b1", "W2", "b2"], values, strict=True))

    def blocks(self) -> dict[str, float]:
        return {block: self.trace(1.0, *names) for block, names in NAMES.items()}

    def data(self) -> str:
        """What the chapter's cell displays, without its element."""
        tops = [curvature.top_eigenvalues(self.hessian(c)).values[0] for c in FACTORS]
        html = play.data(
            net=self.weights(),
            points=self.x,
            labels=self.y,
            blocks=self.blocks(),
            sizes={"first": 15, "last": 10},
            factors=FACTORS,
            eigenvalues=tops,
        ).data
        return html.split(">", 1)[1].removesuffix("</script>")


@pytest.fixture
def case() -> Case:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(30, 2)
    return Case(net, x, (x.sum(1) > 0).long())


@pytest.mark.parametrize("c", [0.3, 1.0, 5.0])
def test_the_net_is_rescaled_as_the_library_has_it(
    toy: Callable[..., Page], case: Case, c: float
) -> None:
    script = """([net, points, c]) => {
        const { rescaled, logits, kappa } = flatnb.rescaling;
        const same = rescaled(net, c);
        return [points.map((x) => logits(same, x)), kappa(same, points), same];
    }"""
    given = [case.weights(), case.x.tolist(), c]
    logits, kappa, same = toy("rescaling").evaluate(script, given)
    net = case.rescaled(c)
    for found, p in zip(same.values(), net.parameters(), strict=True):
        torch.testing.assert_close(torch.tensor(found), p.detach())
    torch.testing.assert_close(torch.tensor(logits), case.net(case.x).detach())
    data = [(case.x, case.y)]
    exact = curvature.relative_flatness(net, "2", F.cross_entropy, data).value
    assert kappa == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("c", [0.3, 1.0, 5.0])
def test_the_trace_at_c_follows_from_the_blocks(
    toy: Callable[..., Page], case: Case, c: float
) -> None:
    script = "([blocks, c]) => flatnb.rescaling.trace(blocks, c)"
    trace = toy("rescaling").evaluate(script, [case.blocks(), c])
    assert trace == pytest.approx(case.trace(c), rel=1e-9)
    library = curvature.gauss_newton_trace(case.hessian(c)).value
    assert trace == pytest.approx(library, rel=1e-9)


@pytest.mark.parametrize("c", [0.3, 1.0, 5.0])
def test_steps_to_the_ellipse_raise_the_loss_equally(
    toy: Callable[..., Page], case: Case, c: float
) -> None:
    blocks, rise = case.blocks(), 0.01
    curvatures = [blocks["first"] / 15, blocks["last"] / 10]
    script = "([curvatures, c, rise]) => flatnb.rescaling.axes(curvatures, c, rise)"
    axes = toy("rescaling").evaluate(script, [curvatures, c, rise])
    # A step of length a in a random direction of n raises the loss by a² tr H / 2n.
    for a, names, n in zip(
        axes, [NAMES["first"], NAMES["last"]], [15, 10], strict=True
    ):
        assert a**2 * case.trace(c, *names) / (2 * n) == pytest.approx(rise)


def test_the_figure_says_the_measures_at_c(
    toy: Callable[..., Page], case: Case
) -> None:
    tab = toy("rescaling", cell("rescaling", case.data()))
    slide(tab, "factor", 2)
    assert finding(tab).startswith("The net as it was trained")
    slide(tab, "factor", 3)
    trace, top = case.trace(2.0), curvature.top_eigenvalues(case.hessian(2.0)).values[0]
    data = [(case.x, case.y)]
    kappa = curvature.relative_flatness(case.net, "2", F.cross_entropy, data).value
    text = finding(tab)
    assert text.startswith("No prediction changes.")
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]
    expected = [trace, trace / case.trace(1.0), float(top)]
    expected += [float(top / curvature.top_eigenvalues(case.hessian(1.0)).values[0])]
    assert numbers == pytest.approx([*expected, kappa], rel=0.06)
