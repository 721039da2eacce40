"""Nets with what breaks curvature code, each with data in float64 and its dense
Hessian.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


class Tied(nn.Module):
    """Embedding and output layer share their weight; one parameter is used nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.hidden = nn.Linear(4, 4)
        self.unused = nn.Parameter(torch.randn(3))
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(self.embed(tokens).mean(1))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.qkv = nn.Linear(4, 12)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = self.qkv(x)[:, None].chunk(3, dim=-1)
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]
        return self.out(self.norm(x).mean(1))


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn(self.conv(x)))


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)
    )


def convolutional() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        Residual(3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    with torch.no_grad():
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2)
    return net


@dataclass
class Case:
    """A net and data in batches of 12 and a short last one."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    classes: int
    piecewise_linear: bool = False
    regression: bool = False
    model: nn.Module = field(init=False)
    batches: list[tuple[Tensor, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        state = torch.get_rng_state()
        torch.manual_seed(0)
        self.model = self.make().double()
        x = self.inputs(29)
        y = torch.randint(0, self.classes, (29,))
        if self.regression:
            y = torch.randn(29, self.classes, dtype=torch.float64)
        self.batches = [(x[i : i + 12], y[i : i + 12]) for i in (0, 12, 24)]
        torch.set_rng_state(state)

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        return F.mse_loss if self.regression else F.cross_entropy

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        x, y = zip(*self.batches, strict=True)
        return torch.cat(x), torch.cat(y)

    @cached_property
    def hessian(self) -> Tensor:
        """By `torch.autograd.functional.hessian` of the mean loss over all data at
        once.
        """
        return dense_hessian(self.model, self.loss, *self.data)


def dense_hessian(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> Tensor:
    named = dict(model.named_parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in named.values()])
    was = [m.training for m in model.modules()]
    model.eval()

    def mean_loss(w: Tensor) -> Tensor:
        pieces = w.split([p.numel() for p in named.values()])
        state = {
            n: v.reshape(p.shape)
            for (n, p), v in zip(named.items(), pieces, strict=True)
        }
        return loss(functional_call(model, state, (x,)), y)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        matrix = torch.autograd.functional.hessian(mean_loss, flat, vectorize=False)
    for module, mode in zip(model.modules(), was, strict=True):
        module.training = mode
    return matrix


def real(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape, dtype=torch.float64)


def tokens(count: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randint(0, count, (n, 4))


CASES = {
    "perceptron": Case(perceptron, real(5), 3, piecewise_linear=True),
    "regression": Case(perceptron, real(5), 3, piecewise_linear=True, regression=True),
    "convolution and BatchNorm": Case(
        convolutional, real(2, 10, 10), 3, piecewise_linear=True
    ),
    "tied embedding, unused parameter": Case(Tied, tokens(6), 6),
    "attention": Case(Attention, tokens(5), 3),
}
