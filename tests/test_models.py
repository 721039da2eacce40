"""The nets: shapes, layers and sizes of the papers."""

from unittest.mock import Mock

import pytest
import torch
from torch import nn

from flatnb import models
from flatnb._torchvision import load as load_torchvision


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


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: models.mlp(0, 5, 1, 2), "inputs=0"),
        (lambda: models.mlp(2, -5, 1, 2), "width=-5"),
        (lambda: models.mlp(2, 5, -1, 2), "hidden=-1"),
        (lambda: models.mlp(2, 5.0, 1, 2), "width=5.0"),
        (lambda: models.small_cnn(1, 0), "classes=0"),
        (lambda: models.small_cnn(1, 2, width=0), "width=0"),
        (lambda: models.resnet18(10, channels=0), "channels=0"),
        (lambda: models.resnet34(True), "classes=True"),
    ],
)
def test_arguments_out_of_range_are_named(make, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A hub folder with a file of ResNet-18's weights: torchvision's own start, not
    ImageNet's.
    """
    home = tmp_path_factory.mktemp("torch")
    checkpoints = home / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.manual_seed(1)
    torch.save(
        load_torchvision().models.resnet18().state_dict(), checkpoints / RESNET18
    )
    return str(home)


RESNET18 = "resnet18-f37072fd.pth"  # as torchvision's address ends


def test_pretrained_is_torchvisions_net_but_for_its_last_layer(
    hub, monkeypatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", hub)
    net = models.pretrained("resnet18", 3, size=48).eval()
    torch.manual_seed(1)
    whole = load_torchvision().models.resnet18().eval()
    features = nn.Sequential(*list(whole.children())[:-1], nn.Flatten())
    x = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(net(x), net[-1](features(x)))
    assert net[-1].weight.shape == (3, 512)


def test_pretrained_takes_gray_images_of_any_size(hub, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", hub)
    net = models.pretrained("resnet18", 3, size=32).eval()
    x = torch.randn(2, 1, 1, 1).expand(
        2, 1, 8, 8
    )  # of one color each, which resizing keeps
    torch.testing.assert_close(net(x), net(x[..., :1, :1].expand(2, 3, 32, 32)))


def test_pretrained_refuses_unknown_nets_and_says_what_to_do_without_weights(
    tmp_path, monkeypatch
) -> None:
    with pytest.raises(
        ValueError, match=r"net='vgg11'; allowed: resnet18, resnet34, resnet50"
    ):
        models.pretrained("vgg11", 3)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", Mock(side_effect=OSError("no\nroute")))
    with pytest.raises(
        FileNotFoundError, match=r"resnet18 are not in .*no.*route.*connect to"
    ):
        models.pretrained("resnet18", 3)
    (tmp_path / "hub" / "checkpoints" / RESNET18).write_bytes(b"half a fi")
    with pytest.raises(FileNotFoundError, match=r"not whole.*delete"):
        models.pretrained("resnet18", 3)


def test_pretrained_weights_are_read_without_running_code(
    tmp_path, monkeypatch
) -> None:
    place = tmp_path / "hub" / "checkpoints" / RESNET18
    place.parent.mkdir(parents=True)
    torch.save({"fc.weight": Touch(tmp_path / "ran")}, place)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        models.pretrained("resnet18", 3)
    assert not (tmp_path / "ran").exists()


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))
