"""MiniLM: its derivatives here, and the published vectors where the packages are."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flatnb import _torchvision
from flatnb.curvature import HessianOperator, Objective
from flatnb.pretrained import Encoder, minilm, pretrained_minilm, tokens

SENTENCES = ["How far is it from Denver to Aspen ?", "Who ?", "a gob of drivel"]


@pytest.fixture
def small(monkeypatch) -> nn.Sequential:
    """A net of the same layers, but few and narrow, in float64."""
    sizes = {"_TOKENS": 30, "_LENGTH": 9, "_WIDTH": 12, "_INNER": 20, "_HEADS": 3}
    for name, value in (sizes | {"_LAYERS": 2}).items():
        monkeypatch.setattr(minilm, name, value)
    return nn.Sequential(Encoder(), nn.Linear(12, 3)).double()


def ids(*lengths: int) -> torch.Tensor:
    """Random token ids, padded to the longest."""
    rows = [torch.randint(1, 30, (length,)) for length in lengths]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def test_size_is_the_published_one() -> None:
    # 22,713,216 with a pooling layer, which the vectors are not taken from.
    count = sum(p.numel() for p in Encoder().parameters())
    assert count == 22_713_216 - (384 * 384 + 384)


def test_a_vector_is_the_mean_over_the_tokens(small, monkeypatch) -> None:
    monkeypatch.setattr(minilm, "_LAYERS", 0)
    encoder = Encoder().double()
    x = torch.tensor([[5, 7, 2], [9, 0, 0]])
    parts = encoder.words.weight[x] + encoder.positions.weight[:3]
    parts = F.layer_norm(parts + encoder.kinds.weight[0], (12,), eps=1e-12)
    expected = torch.stack([parts[0].mean(0), parts[1, 0]])
    torch.testing.assert_close(encoder(x), expected)


def test_padding_and_company_change_nothing(small) -> None:
    x = ids(7, 3, 5)
    together = small(x)
    torch.testing.assert_close(small(F.pad(x, (0, 2))), together)
    for row, length, expected in zip(x, (7, 3, 5), together, strict=True):
        torch.testing.assert_close(small(row[None, :length])[0], expected)
    swapped = small(x[:, [1, 0, *range(2, 7)]])
    assert not torch.allclose(swapped, together)  # the order of tokens counts


def test_gradient_and_hessian_are_those_of_finite_differences(small) -> None:
    data = [(ids(7, 3, 5, 4), torch.tensor([0, 1, 2, 1]))]
    objective = Objective(small, F.cross_entropy, data)
    w, v = objective.vector, torch.randn(objective.size, dtype=torch.float64)
    h = 1e-5
    after, before = [objective.gradient(w + step * v) for step in (h, -h)]
    gradient = objective.gradient()[1]
    slope = (after[0] - before[0]) / (2 * h)
    assert float(gradient @ v) == pytest.approx(slope, rel=1e-6)
    expected = (after[1] - before[1]) / (2 * h)
    found = HessianOperator(small, F.cross_entropy, data) @ v
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_a_missing_package_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, minilm._PACKAGE, None)
    for call in (pretrained_minilm, lambda: tokens(SENTENCES, 8)):
        with pytest.raises(ImportError, match=r"pip install 'flatnb\[sentences\]'"):
            call()


@pytest.mark.parametrize("length", [2, 513, 8.0])
def test_lengths_are_those_that_the_net_has_positions_for(length) -> None:
    with pytest.raises(ValueError, match=r"allowed: an integer in \[3, 513\)"):
        tokens(SENTENCES, length)


def package(folder, monkeypatch) -> None:
    """A folder in place of the published one."""
    fake = SimpleNamespace(get_model_path=lambda: folder)
    monkeypatch.setitem(sys.modules, minilm._PACKAGE, fake)


@pytest.mark.parametrize("change", ["none", "missing", "shape"])
def test_weights_are_read_strictly(change: str, small, tmp_path, monkeypatch) -> None:
    made = Encoder().state_dict()
    saved = {minilm._published(name): value for name, value in made.items()}
    saved["pooler.dense.bias"] = torch.zeros(12)
    if change == "missing":
        del saved["encoder.layer.1.output.dense.bias"]
    elif change == "shape":
        saved["encoder.layer.1.output.dense.bias"] = torch.zeros(1)
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(saved, tmp_path / "model.safetensors")
    package(tmp_path, monkeypatch)
    if change == "none":
        read = pretrained_minilm(classes=4)
        assert read[1].out_features == 4
        state = read[0].state_dict()
        assert all(torch.equal(state[name], value) for name, value in made.items())
    else:
        with pytest.raises((KeyError, RuntimeError)):
            pretrained_minilm()


def reference(folder, x: torch.Tensor) -> torch.Tensor:
    """The vectors of package transformers, as the model's own page computes them."""
    _torchvision.load()
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    mask = (x != 0).long()
    with torch.no_grad():
        last = model(input_ids=x, attention_mask=mask).last_hidden_state
    shares = mask.unsqueeze(-1).float()
    return (last * shares).sum(1) / shares.sum(1)


@pytest.mark.slow  # package transformers imports much
def test_is_the_net_of_transformers(tmp_path, monkeypatch) -> None:
    transformers = pytest.importorskip("transformers")
    _torchvision.load()
    config = transformers.BertConfig(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    model = transformers.BertModel(config)
    with torch.no_grad():
        for p in model.parameters():  # of which many are 0 or 1
            p.add_(torch.randn_like(p), alpha=0.05)
    model.save_pretrained(tmp_path)
    package(tmp_path, monkeypatch)
    x = F.pad(torch.randint(1, 30522, (3, 20)), (0, 4))
    x[1, 5:] = 0
    found = pretrained_minilm()[0](x)
    torch.testing.assert_close(found, reference(tmp_path, x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_vectors_are_the_published_ones() -> None:
    package = pytest.importorskip(minilm._PACKAGE)
    x = tokens(SENTENCES, 24)
    with torch.no_grad():
        found = pretrained_minilm()[0](x)
    expected = reference(package.get_model_path(), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_tokens_are_the_published_ones() -> None:
    pytest.importorskip(minilm._PACKAGE)
    assert tokens(["Hello , world", "no"], 8).tolist() == [
        [101, 7592, 1010, 2088, 102],
        [101, 2053, 102, 0, 0],
    ]
    # Cut, with [SEP] at the end; a byte that could not be read is no token.
    assert tokens(["Hello , wor\ufffdld"], 4).tolist() == [[101, 7592, 1010, 102]]
