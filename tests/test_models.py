"""The nets: shapes, layers and sizes of the papers."""

import pytest
import torch
from torch import nn

from flatnb import models


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_mlp_of_the_flooding_papers() -> None:
    net = models.mlp(2, 500, 4, 2)
    kinds = [type(layer) for layer in net]
    assert kinds == [nn.Flatten, *[nn.Linear, nn.BatchNorm1d, nn.ReLU] * 4, nn.Linear]
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    assert [layer.bias is None for layer in linear] == [True] * 4 + [False]
    assert count(net) == 2 * 500 + 3 * 500 * 500 + 4 * 2 * 500 + 500 * 2 + 2
    assert net(torch.randn(7, 2)).shape == (7, 2)


def test_mlp_without_batchnorm_has_biases() -> None:
    net = models.mlp(3, 5, 2, 4, batchnorm=False)
    kinds = [type(layer) for layer in net]
    assert kinds == [nn.Flatten, *[nn.Linear, nn.ReLU] * 2, nn.Linear]
    assert all(layer.bias is not None for layer in net if isinstance(layer, nn.Linear))


def test_mlp_without_hidden_layers_is_affine() -> None:
    net = models.mlp(3, 1, 0, 2).double()
    a, b = torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(net(0.5 * (a + b)), 0.5 * (net(a) + net(b)))


def test_mlp_takes_images() -> None:
    net = models.mlp(64, 8, 1, 10).eval()
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(net(x), net(x.flatten(1)))


@pytest.mark.parametrize("size", [8, 9, 28, 32])
def test_small_cnn_takes_images_of_any_size_from_8(size: int) -> None:
    net = models.small_cnn(2, 5, width=4)
    assert net(torch.randn(3, 2, size, size)).shape == (3, 5)
    assert isinstance(net[-1], nn.Linear)


def test_small_cnn_by_default_is_32_64_128_wide() -> None:
    net = models.small_cnn(1, 10)
    assert [m.out_channels for m in net if isinstance(m, nn.Conv2d)] == [32, 64, 128]


@pytest.mark.parametrize(
    ("make", "layers", "parameters"),
    [(models.resnet18, 18, 11_173_962), (models.resnet34, 34, 21_282_122)],
)
def test_resnets_have_the_published_depth_and_size(make, layers, parameters) -> None:
    # Layers with weights on the main path; parameters as counted for the 32 x 32 form
    # of each.
    net = make(10)
    on_path = [
        name
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in name
    ]
    assert len(on_path) == layers
    assert count(net) == parameters


@pytest.mark.parametrize("make", [models.resnet18, models.resnet34])
def test_resnets_shrink_the_image_eightfold(make) -> None:
    net = make(5, channels=1, width=4).eval()
    sizes = []
    pool = next(m for m in net if isinstance(m, nn.AdaptiveAvgPool2d))
    pool.register_forward_hook(
        lambda module, args, out: sizes.append(tuple(args[0].shape))
    )
    assert net(torch.randn(2, 1, 32, 32)).shape == (2, 5)
    assert sizes == [(2, 32, 4, 4)]


def test_the_seed_decides_the_parameters() -> None:
    nets = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        nets.append(
            torch.cat(
                [p.detach().flatten() for p in models.mlp(2, 3, 1, 2).parameters()]
            )
        )
    assert torch.equal(nets[0], nets[1])
    assert not torch.equal(nets[0], nets[2])


def test_a_negative_number_of_hidden_layers_is_not_none() -> None:
    with pytest.raises(ValueError, match="hidden=-1"):
        models.mlp(2, 5, -1, 2)
