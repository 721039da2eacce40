"""The operators' own layers against PyTorch's own, and against dense matrices in
float64.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from flatnb.curvature import GaussNewtonOperator, HessianOperator
from flatnb.curvature.second_order import SecondOrder

LAYERS = {
    "1-d": (nn.Conv1d(2, 4, 3, padding=1), (5,)),
    "2-d": (nn.Conv2d(2, 4, 3), (5, 4)),
    "3-d": (nn.Conv3d(2, 4, 2), (3, 3, 4)),
    "strides": (nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (5, 4)),
    "dilation": (nn.Conv2d(2, 4, 2, dilation=2, padding=1), (5, 4)),
    "groups": (nn.Conv2d(2, 4, 3, groups=2), (5, 4)),
    "no bias": (nn.Conv2d(2, 4, 3, bias=False), (5, 4)),
    "same": (nn.Conv2d(2, 4, 3, padding="same"), (5, 4)),
    "reflected": (nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), (5, 4)),
    "transposed": (nn.ConvTranspose2d(2, 4, 2), (5, 4)),
    "BatchNorm": (nn.Sequential(nn.Conv2d(2, 4, 2), nn.BatchNorm2d(4)), (5, 4)),
    "BatchNorm first": (
        nn.Sequential(nn.BatchNorm3d(2), nn.Conv3d(2, 4, 2)),
        (3, 3, 4),
    ),
    "BatchNorm without affine": (
        nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.Conv1d(2, 4, 2)),
        (5,),
    ),
    "max-pooling": (nn.Sequential(nn.Conv2d(2, 4, 2), nn.MaxPool2d(2)), (5, 4)),
    "max-pooling, overlapping": (
        nn.Sequential(
            nn.Conv2d(2, 4, 2),
            nn.MaxPool2d((3, 2), (2, 1), (1, 0), (1, 2), False, True),
        ),
        (5, 4),
    ),
    "max-pooling in 1-d": (nn.Sequential(nn.Conv1d(2, 4, 2), nn.MaxPool1d(2)), (5,)),
    "ReLU": (nn.Sequential(nn.Conv2d(2, 4, 2), nn.ReLU(), nn.Conv2d(4, 4, 2)), (5, 4)),
    "ReLU in place": (
        nn.Sequential(nn.Conv2d(2, 4, 2), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 2)),
        (5, 4),
    ),
}


def problem(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A smooth net with a convolution before the one in question, and one after it."""
    torch.manual_seed(0)
    layer, size = LAYERS[name]
    dims = len(size)
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    net = nn.Sequential(
        kind(1, 2, 1), nn.Tanh(), layer, nn.Softplus(), kind(4, 3, 1), nn.Flatten(2)
    ).double()
    for module in net.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    net.eval()
    return net, torch.randn(6, 1, *size).double(), torch.arange(6) % 3


def loss(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs.sum(-1), y)


def flat(tensors) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


@pytest.mark.parametrize("name", LAYERS)
def test_hessian_is_the_dense_one(name) -> None:
    net, x, y = problem(name)
    params = dict(net.named_parameters())
    values = tuple(p.detach() for p in params.values())

    def mean_loss(*values: Tensor) -> Tensor:
        return loss(
            functional_call(net, dict(zip(params, values, strict=True)), (x,)), y
        )

    blocks = torch.autograd.functional.hessian(mean_loss, values)
    rows = [
        torch.cat([block.reshape(p.numel(), -1) for block in row], dim=1)
        for p, row in zip(values, blocks, strict=True)
    ]
    torch.testing.assert_close(
        HessianOperator(net, loss, [(x, y)]).dense(),
        torch.cat(rows),
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
def test_products_are_those_of_pytorchs_layers(name, operator, monkeypatch) -> None:
    """On a kept graph and on one made in passing."""
    net, x, y = problem(name)
    kept = operator(net, loss, [(x, y)])
    passing = operator(net, loss, [(x, y)], keep_graph=False)
    v = torch.randn(3, kept.size).double()
    monkeypatch.setattr(
        "flatnb.curvature.operator.SecondOrder", lambda curved: nullcontext()
    )
    plain = torch.stack([operator(net, loss, [(x, y)]) @ one for one in v])
    for found in (kept.rows(v), passing.rows(v)):
        torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)


def test_values_and_gradients_inside_the_context() -> None:
    net, x, y = problem("groups")
    params = list(net.parameters())
    plain = loss(net(x), y)
    with SecondOrder():
        found = loss(net(x), y)
    assert torch.equal(found, plain)
    assert torch.equal(
        flat(torch.autograd.grad(found, params)),
        flat(torch.autograd.grad(plain, params)),
    )
    single = nn.Conv2d(2, 3, 3)  # without a batch
    image = torch.randn(2, 5, 5)
    with SecondOrder():
        assert torch.equal(single(image), F.conv2d(image, single.weight, single.bias))


def test_a_part_of_the_parameters() -> None:
    """A frozen weight before, or a frozen input: nothing is computed for them, or
    missing.
    """
    net, x, y = problem("2-d")
    whole = HessianOperator(net, loss, [(x, y)])
    index = dict(
        zip(
            whole.names,
            torch.arange(whole.size).split([p.numel() for p in whole.objective.params]),
            strict=True,
        )
    )
    for names in (["2.weight"], ["2.bias", "4.weight"], ["0.bias"]):
        at = torch.cat([index[name] for name in names])
        part = HessianOperator(net, loss, [(x, y)], params=names)
        torch.testing.assert_close(
            part.dense(), whole.dense()[at][:, at], rtol=1e-10, atol=1e-12
        )
