"""The valley w₁w₂ = 1: fifty steps of each method are those of the library."""

import re
from collections.abc import Callable, Iterator

import pytest
import torch
from figures import cell, drawn, finding, handle, slide
from playwright.sync_api import Page
from torch import Tensor, nn

import flatnb
from flatnb import curvature

STARTS = [(3.0, 1.0), (0.4, 2.0), (1.0, 1.0)]
STEPS, LR = 50, 0.05


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def loss(w: Tensor) -> Tensor:
    return (w[0] * w[1] - 1) ** 2 / 2


def by_library(method: flatnb.Method, start: tuple[float, float]) -> Tensor:
    """The points of a path in your own loop: the net's weights are w."""
    net = nn.Linear(1, 1, bias=False)
    net.weight = nn.Parameter(torch.tensor([start]))
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    points = [net.weight[0].detach().clone()]
    for _ in range(STEPS):
        optimizer.zero_grad()
        method.backward(net, lambda: loss(net.weight[0])[None])
        optimizer.step()
        points.append(net.weight[0].detach().clone())
    return torch.stack(points)


def by_figure(tab: Page, name: str, value: float, start: tuple[float, float]) -> Tensor:
    script = "([name, value, start, s]) => flatnb.valley.path(name, value, start, s)"
    points = tab.evaluate(script, [name, value, start, {"lr": LR, "steps": STEPS}])
    return torch.tensor(points, dtype=torch.float64)


def noise_of_the_figure(tab: Page) -> Callable[[Tensor, torch.Generator], None]:
    """A distribution for the library: what the figure draws, in its order."""
    count = STEPS * tab.evaluate("flatnb.valley.DRAWS") * 2
    script = "(count) => Array.from({length: count}, flatnb.normals(0))"
    numbers = iter(tab.evaluate(script, count))

    def fill(values: Tensor, _: torch.Generator) -> None:
        values.copy_(torch.tensor([next(numbers) for _ in range(values.numel())]))

    return fill


METHODS = {
    "ERM": lambda value, tab: flatnb.ERM(),
    "SAM": lambda value, tab: flatnb.SAM(value),
    "GNP": lambda value, tab: flatnb.GNP(
        value, alpha=tab.evaluate("flatnb.valley.ALPHA")
    ),
    "NSO": lambda value, tab: flatnb.NSO(
        value, k=tab.evaluate("flatnb.valley.DRAWS"), noise=noise_of_the_figure(tab)
    ),
    "Flooding": lambda value, tab: flatnb.Flooding(value),
    "SoftAD": lambda value, tab: flatnb.SoftAD(value),
}


@pytest.mark.parametrize("value", [0.1, 0.3])
@pytest.mark.parametrize("name", METHODS)
def test_fifty_steps_are_those_of_the_library(
    toy: Callable[..., Page], name: str, value: float
) -> None:
    tab = toy("valley")
    for start in STARTS:
        path = by_figure(tab, name, value, start)
        expected = by_library(METHODS[name](value, tab), start)
        torch.testing.assert_close(path, expected, rtol=0, atol=1e-6)


def test_fam_descends_the_loss_plus_relative_flatness(
    toy: Callable[..., Page],
) -> None:
    """The library's FAM is for classifiers: here is kappa of this net, by the library,
    and fifty steps of autograd."""
    w = torch.tensor([1.7, 0.9])
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    nn.utils.vector_to_parameters(w, net.parameters())

    def half_square(z: Tensor, y: Tensor) -> Tensor:
        return (z - y).square().mean() / 2

    data = [(torch.ones(1, 1), torch.ones(1, 1))]
    kappa = curvature.relative_flatness(net, "1", half_square, data).value
    assert kappa == pytest.approx(float(w.prod() ** 2))

    tab, lam = toy("valley"), 0.05
    for start in STARTS:
        points = [torch.tensor(start)]
        for _ in range(STEPS):
            w = points[-1].clone().requires_grad_()
            (loss(w) + lam * w.prod() ** 2).backward()
            points.append(w.detach() - LR * w.grad)
        path = by_figure(tab, "FAM", lam, start)
        torch.testing.assert_close(path, torch.stack(points), rtol=0, atol=1e-6)


def test_the_trace_is_that_of_the_hessian(toy: Callable[..., Page]) -> None:
    for start in STARTS:
        hessian = torch.func.hessian(loss)(torch.tensor(start))
        trace = toy("valley").evaluate("(w) => flatnb.valley.trace(w)", start)
        assert trace == pytest.approx(float(hessian.trace()))


def ending(text: str) -> tuple[float, ...]:
    """w₁w₂ and the traces of the method and of ERM, as the figure says them."""
    numbers = re.search(r"= ([\d.]+) with trace ([\d.]+); .* ([\d.]+)\. ", text)
    assert numbers, text
    return tuple(map(float, numbers.groups()))


def test_the_figure_says_where_the_paths_end(toy: Callable[..., Page]) -> None:
    tab = toy("valley", cell("valley"))
    end = tab.evaluate("flatnb.valley.path('SAM', 0.3, [3, 1]).at(-1)")
    plain = tab.evaluate("flatnb.valley.path('ERM', 0, [3, 1]).at(-1)")
    expected = [end[0] * end[1], *(x**2 + y**2 for x, y in (end, plain))]
    assert ending(finding(tab)) == pytest.approx(expected, abs=0.06)
    assert "follows the valley to flatter ground" in finding(tab)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ERM", "It stops where it meets the valley"),
        ("GNP", "It follows the valley to flatter ground"),
        ("NSO", "and the function shrinks a little"),
        ("Flooding", "Its loss is held near 0.10"),
        ("SoftAD", "Its loss is held near 0.10"),
        ("FAM", "it can only shrink the function"),
    ],
)
def test_each_method_is_explained(
    toy: Callable[..., Page], name: str, words: str
) -> None:
    tab = toy("valley", cell("valley"))
    tab.get_by_label(name, exact=True).check()
    drawn(tab)
    assert words in finding(tab)
    assert tab.locator(".play-slider:visible").count() == (1 if name == "ERM" else 2)
    assert tab.get_by_role("button", name="New noise").is_visible() == (name == "NSO")


def test_long_steps_leave_the_sharp_part(toy: Callable[..., Page]) -> None:
    """The chapter's second exercise."""
    tab = toy("valley", cell("valley"))
    tab.get_by_label("ERM", exact=True).check()
    slide(tab, "learning rate", 0.3)
    assert "trace 2.2. Steps this long cannot stay" in finding(tab)
    assert "above 2/η = 6.7" in finding(tab)


def test_the_start_moves_by_mouse_and_keys(toy: Callable[..., Page]) -> None:
    tab = toy("valley", cell("valley"))
    start = handle(tab)
    assert start.get_attribute("aria-valuetext") == "w₁ = 3.00, w₂ = 1.00"
    start.focus()
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("Shift+ArrowUp")
    drawn(tab)
    assert start.get_attribute("aria-valuetext") == "w₁ = 2.95, w₂ = 1.25"
    before, box = finding(tab), start.bounding_box()
    assert box is not None
    tab.mouse.move(box["x"] + 22, box["y"] + 22)
    tab.mouse.down()
    tab.mouse.move(box["x"] - 100, box["y"] + 22)
    tab.mouse.up()
    drawn(tab)
    first, second = re.findall(r"\d\.\d\d", start.get_attribute("aria-valuetext") or "")
    assert float(first) < 2.5 and second == "1.25"
    assert finding(tab) != before
    tab.get_by_role("button", name="Reset").click()
    drawn(tab)
    assert start.get_attribute("aria-valuetext") == "w₁ = 3.00, w₂ = 1.00"


def test_new_noise_is_another_path(toy: Callable[..., Page]) -> None:
    tab = toy("valley", cell("valley"))
    tab.get_by_label("NSO", exact=True).check()
    drawn(tab)
    path = ".play-plot path[pathLength], .play-plot g path"
    lines = f"[...document.querySelectorAll('{path}')].map((p) => p.getAttribute('d')).join()"
    before = tab.evaluate(lines)
    tab.get_by_role("button", name="New noise").click()
    drawn(tab)
    assert tab.evaluate(lines) != before
