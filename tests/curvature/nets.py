"""Random nets, losses and data with all that curvature code stumbles over; one case
per seed.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import register_parametrization as parametrized

Loss = Callable[[Tensor, Tensor], Tensor]
Batches = list[tuple[Tensor, Tensor]]

ACTIVATIONS = [
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    lambda: nn.LeakyReLU(0.2, inplace=True),
    lambda: nn.Hardtanh(inplace=True),
    nn.GELU,
    lambda: nn.SiLU(inplace=True),
    nn.Mish,
    nn.Softplus,
    nn.Tanh,
    nn.PReLU,
    nn.ELU,
]


@dataclass
class Case:
    """A net, a loss, data in batches, and the parameters to differentiate by."""

    label: str
    model: nn.Module
    loss: Loss
    batches: Batches
    params: list[str]

    def to(self, dtype: torch.dtype) -> Case:
        batches = [(_cast(x, dtype), _cast(y, dtype)) for x, y in self.batches]
        loss = self.loss.to(dtype) if isinstance(self.loss, nn.Module) else self.loss
        return Case(self.label, self.model.to(dtype), loss, batches, self.params)


def _cast(data: Tensor, dtype: torch.dtype) -> Tensor:
    return data.to(dtype) if data.is_floating_point() else data


# -- nets
# --------------------------------------------------------------------------------------


class Residual(nn.Module):
    """x is added in place to what the inner layers made, as in torchvision's
    ResNets.
    """

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        y += x
        return F.relu(y, inplace=True)


class Twice(nn.Module):
    """One layer as a module, by keyword, and by its weight in `F.linear`."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(width, width), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "keyword":
            return self.layer(input=x)
        if self.how == "twice":
            return self.layer(F.relu(self.layer(x)))
        if self.how == "sides":
            return self.layer(F.relu(x)) + self.layer(F.relu(-x))
        return self.layer(x) + F.relu(F.linear(-x, self.layer.weight))


class Tied(nn.Module):
    """Two layers on parallel paths share a weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(width, width), nn.Linear(width, width)
        self.right.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.left(F.relu(x)) - self.right(F.relu(-x))


class Gain(nn.Module):
    """A parameter without dimensions, one that nothing reads, and one that does not
    train.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.3))
        self.unused = nn.Parameter(torch.randn(2))
        self.fixed = nn.Parameter(torch.tensor(0.7), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain + self.fixed


class Standardised(nn.Linear):
    """A linear layer whose weight's rows are standardised first."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean(1, keepdim=True)
        return F.linear(x, w / (w.norm(dim=1, keepdim=True) + 0.5), self.bias)


class Mixing(nn.Module):
    """Every example sees the mean of its batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.5 * x.mean(0, keepdim=True)


class Temperature(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2.5


def norm_1d(rng: random.Random, width: int) -> nn.Module:
    return rng.choice(
        [
            lambda: nn.BatchNorm1d(width),
            lambda: nn.BatchNorm1d(width, affine=False),
            lambda: nn.LayerNorm(width),
            lambda: nn.GroupNorm(2, width),
            lambda: nn.GroupNorm(1, width),
        ]
    )()


class WeightNorm(nn.Module):
    """Weight norm in plain operations: the second derivative of PyTorch's is wrong."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return v * (g / torch.norm_except_dim(v, 2, self.dim))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return torch.norm_except_dim(weight, 2, self.dim), weight


def weighted(rng: random.Random, layer: nn.Module) -> nn.Module:
    """Weight norm or spectral norm, the latter old and new."""
    return rng.choice(
        [
            lambda: parametrized(layer, "weight", WeightNorm(0)),
            lambda: parametrized(layer, "weight", WeightNorm(-1)),
            lambda: parametrized(layer, "weight", WeightNorm(1)),
            lambda: parametrized(layer, "weight", WeightNorm(0)),
            lambda: parametrizations.spectral_norm(layer),
            lambda: nn.utils.spectral_norm(layer),
        ]
    )()


def perceptron(
    rng: random.Random, classes: int
) -> tuple[list[nn.Module], tuple[int, ...]]:
    width, layers = rng.choice([2, 4]), []
    features = rng.choice([1, 3])
    last = features
    for _ in range(rng.randint(0, 3)):
        layer: nn.Module = nn.Linear(last, width, bias=rng.random() < 0.8)
        if rng.random() < 0.15:
            layer = weighted(rng, layer)
        layers.append(layer)
        if rng.random() < 0.3:
            layers.append(norm_1d(rng, width))
        layers.append(rng.choice(ACTIVATIONS)())
        if rng.random() < 0.3:
            layers.append(
                rng.choice(
                    [
                        lambda: Residual(
                            nn.Linear(width, width), nn.BatchNorm1d(width)
                        ),
                        lambda: Residual(nn.Linear(width, width)),
                        lambda: Twice(
                            width, rng.choice(["keyword", "twice", "sides", "weight"])
                        ),
                        lambda: Tied(width),
                        Gain,
                        lambda: Standardised(width, width),
                        lambda: nn.Dropout(0.5),
                        Mixing,
                    ]
                )()
            )
        last = width
    layers.append(nn.Linear(last, classes, bias=rng.random() < 0.8))
    if rng.random() < 0.15:
        layers.append(rng.choice([Temperature, Gain, nn.Identity])())
    return layers, (features,)


def convolution(
    rng: random.Random, dims: int, channels: int, filters: int
) -> nn.Module:
    kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    back = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
    bias = rng.random() < 0.7
    if rng.random() < 0.1:
        return back[dims](channels, filters, 2, stride=rng.choice([1, 2]), bias=bias)
    mode = rng.choice(["zeros", "zeros", "reflect", "replicate", "circular"])
    padding = rng.choice([0, 1, "same", "valid"])
    stride = 1 if padding == "same" else rng.choice([1, 2])
    groups = rng.choice([1, 1, channels if filters % channels == 0 else 1])
    layer: nn.Module = kinds[dims](
        channels,
        filters,
        rng.choice([1, 2, 3]),
        stride=stride,
        padding=padding,
        dilation=rng.choice([1, 1, 2]),
        groups=groups,
        bias=bias,
        padding_mode=mode,
    )
    return weighted(rng, layer) if rng.random() < 0.15 else layer


def norm_nd(rng: random.Random, dims: int, channels: int) -> nn.Module:
    batch = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
    instance = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims]
    return rng.choice(
        [
            lambda: batch(channels),
            lambda: batch(channels, affine=False),
            lambda: batch(channels, track_running_stats=False),
            lambda: instance(channels),
            lambda: instance(channels, affine=True),
            lambda: instance(channels, affine=True, track_running_stats=True),
            lambda: nn.GroupNorm(1, channels),
            lambda: nn.GroupNorm(channels, channels),
        ]
    )()


def pooling(rng: random.Random, dims: int) -> nn.Module:
    most = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[dims]
    mean = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}[dims]
    adaptive = {
        1: nn.AdaptiveAvgPool1d,
        2: nn.AdaptiveAvgPool2d,
        3: nn.AdaptiveAvgPool3d,
    }[dims]
    highest = {
        1: nn.AdaptiveMaxPool1d,
        2: nn.AdaptiveMaxPool2d,
        3: nn.AdaptiveMaxPool3d,
    }[dims]
    ceil = rng.random() < 0.5
    return rng.choice(
        [
            lambda: most(2, ceil_mode=ceil),
            lambda: most(3, 1, 1, ceil_mode=ceil),
            lambda: most(2, stride=1, dilation=2, ceil_mode=ceil),
            lambda: mean(2, ceil_mode=ceil),
            lambda: mean(2, 1, 1, ceil_mode=ceil, count_include_pad=ceil),
            lambda: adaptive(2),
            lambda: highest(2),
        ]
    )()


def convolutional(
    rng: random.Random, classes: int
) -> tuple[list[nn.Module], tuple[int, ...]]:
    dims, channels = rng.choice([1, 1, 2, 2, 2, 3]), rng.choice([1, 2])
    size = {1: (9,), 2: (7, 6), 3: (5, 4, 4)}[dims]
    layers: list[nn.Module] = []
    last = channels
    for _ in range(rng.randint(1, 2)):
        layers.append(convolution(rng, dims, last, 2))
        last = 2
        if rng.random() < 0.4:
            layers.append(norm_nd(rng, dims, last))
        layers.append(rng.choice(ACTIVATIONS)())
        if rng.random() < 0.5:
            layers.append(pooling(rng, dims))
    if rng.random() < 0.2:
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        layers.append(Residual(kind(last, last, 1)))
    reduce = {
        1: nn.AdaptiveAvgPool1d,
        2: nn.AdaptiveAvgPool2d,
        3: nn.AdaptiveAvgPool3d,
    }[dims]
    layers += [reduce(1), nn.Flatten(), nn.Linear(last, classes)]
    return layers, (channels, *size)


class Sequence(nn.Module):
    """Tokens through an embedding and a layer that mixes positions."""

    def __init__(self, rng: random.Random, classes: int) -> None:
        super().__init__()
        self.kind = rng.choice(
            ["lstm", "gru", "rnn", "attention", "encoder", "linear", "first"]
        )
        self.embed = nn.Embedding(3, 2)
        make = {
            "lstm": lambda: nn.LSTM(2, 2, batch_first=True),
            "gru": lambda: nn.GRU(2, 2, batch_first=True),
            "rnn": lambda: nn.RNN(2, 2, batch_first=True),
            "attention": lambda: nn.MultiheadAttention(2, 1, batch_first=True),
            "encoder": lambda: nn.TransformerEncoderLayer(
                2, 1, 2, batch_first=True, norm_first=rng.random() < 0.5
            ),
            "linear": lambda: nn.Linear(2, 2),
            "first": lambda: nn.Linear(2, 2),
        }
        self.layer = make[self.kind]()
        self.out = nn.Linear(2, classes)
        if rng.random() < 0.2 and classes == 3:
            self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        if self.kind == "attention":
            x = self.layer(x, x, x)[0]
        elif self.kind in ("lstm", "gru", "rnn"):
            x = self.layer(x)[0]
        elif self.kind == "first":  # positions first, as many libraries have it
            x = F.relu(self.layer(x.transpose(0, 1))).transpose(0, 1)
        else:
            x = self.layer(x)
        return self.out(x.mean(1))


class PerToken(nn.Module):
    """A language model: (n, classes, positions), or its rows (n * positions,
    classes).
    """

    def __init__(self, rng: random.Random, classes: int) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Embedding(3, 2), nn.Linear(2, 2)
        self.act = rng.choice(ACTIVATIONS)()
        self.out = nn.Linear(2, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.act(self.hidden(self.embed(tokens)))).transpose(1, 2)


# -- losses
# -------------------------------------------------------------------------------------


class Scaled(nn.CrossEntropyLoss):
    """A subclass with a temperature."""

    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        return super().forward(outputs / 2, y)


def focal(outputs: Tensor, y: Tensor) -> Tensor:
    each = F.cross_entropy(outputs, y, reduction="none")
    return ((1 - (-each).exp()) ** 2 * each).mean()


def spread(outputs: Tensor, y: Tensor) -> Tensor:
    """Not a mean over examples: it couples them."""
    return F.cross_entropy(outputs, y) + outputs.square().mean().sqrt()


def scaled_up(outputs: Tensor, y: Tensor) -> Tensor:
    return 3 * F.cross_entropy(outputs, y)


def classification(rng: random.Random, classes: int) -> Loss:
    weight = torch.tensor([0.5, 2.0, 1.0][:classes], dtype=torch.float64)
    return rng.choice(
        [
            F.cross_entropy,
            F.cross_entropy,
            nn.CrossEntropyLoss(),
            nn.CrossEntropyLoss(weight=weight),
            nn.CrossEntropyLoss(ignore_index=1),
            nn.CrossEntropyLoss(label_smoothing=0.2),
            functools.partial(F.cross_entropy, label_smoothing=0.1),
            Scaled(),
            focal,
            spread,
            scaled_up,
        ]
    )


def regression(rng: random.Random) -> Loss:
    return rng.choice(
        [
            F.mse_loss,
            nn.MSELoss(),
            F.binary_cross_entropy_with_logits,
            nn.HuberLoss(delta=0.7),
        ]
    )


# -- cases
# --------------------------------------------------------------------------------------


def random_case(seed: int) -> Case:
    """The first net drawn under `seed` whose layers fit the data's size, and whose
    loss moves.
    """
    with torch.random.fork_rng(devices=[]):
        for attempt in range(100):
            rng = random.Random(1000 * seed + attempt)
            torch.manual_seed(1000 * seed + attempt)
            case = _case(rng, seed)
            truth = Truth(case)
            w = truth.vector.requires_grad_()
            try:
                value = truth.loss(w)
            except (RuntimeError, ValueError):
                continue
            (slope,) = torch.autograd.grad(value, w, allow_unused=True)
            if slope is not None and value.isfinite():
                return case
    raise AssertionError(f"no net under seed {seed}")


def _case(rng: random.Random, seed: int) -> Case:
    classes = rng.choice([2, 3])
    family = rng.choice(
        ["perceptron", "perceptron", "convolutional", "convolutional", "sequence"]
    )
    if family == "sequence":
        per_token = rng.random() < 0.3
        model: nn.Module = (PerToken if per_token else Sequence)(rng, classes)
        shape: tuple[int, ...] = (4,)
    else:
        per_token = False
        make = perceptron if family == "perceptron" else convolutional
        layers, shape = make(rng, classes)
        model = nn.Sequential(*layers)
    model.double()
    _settle(model)
    sizes = rng.choice([[1], [2], [5], [4, 4], [4, 1], [1, 5], [3, 1, 2]])
    n = sum(sizes)
    x = torch.randn(n, *shape).double()
    if family == "sequence":
        x = torch.randint(0, 3, (n, *shape))
    targets = (n, 4) if per_token else (n,)
    if rng.random() < 0.7:
        loss = classification(rng, classes)
        y = torch.randint(0, classes, targets)
        if getattr(loss, "ignore_index", -100) == 1:
            y[0] = 0
            while any(bool((part == 1).all()) for part in y.split(sizes)):
                y = torch.randint(0, classes, targets)
    else:
        loss = regression(rng)
        y = torch.rand(n, classes, *targets[1:]).double()
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    if rng.random() < 0.3:
        names = rng.sample(names, rng.randint(1, len(names)))
    chosen = [name for name, _ in model.named_parameters() if name in names]
    ignored = getattr(loss, "ignore_index", None)
    label = f"seed {seed}: {model}, {loss}, ignored {ignored}, batches {sizes}, params {chosen}"
    return Case(label, model.eval(), loss, batches, chosen)


def _settle(model: nn.Module) -> None:
    """Running statistics, scales and shifts that are not those of a fresh layer."""
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.normal_(std=0.5)
                module.running_var.uniform_(0.5, 2)
        for p in model.parameters():
            if p.ndim < 2:
                p.add_(torch.randn_like(p), alpha=0.2)


# -- truth
# --------------------------------------------------------------------------------------


class Truth:
    """The same function of one flat vector, by `functional_call` alone; all in
    float64.
    """

    def __init__(self, case: Case, train: bool = False) -> None:
        self.case, self.train = case, train
        named = dict(case.model.named_parameters())
        self.values = [named[name].detach().double() for name in case.params]
        self.vector = torch.cat([v.reshape(-1) for v in self.values])
        self.examples = sum(len(x) for x, _ in case.batches)

    def state(self, w: Tensor) -> dict[str, Tensor]:
        pieces = w.split([v.numel() for v in self.values])
        pairs = zip(self.case.params, pieces, self.values, strict=True)
        return {name: piece.reshape(v.shape) for name, piece, v in pairs}

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        modes = [(m, m.training) for m in self.case.model.modules()]
        buffers = {n: b.clone() for n, b in self.case.model.named_buffers()}
        self.case.model.train(self.train)
        try:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                return functional_call(
                    self.case.model, {**buffers, **self.state(w)}, (x,)
                )
        finally:
            for module, mode in modes:
                module.training = mode

    def loss(self, w: Tensor) -> Tensor:
        total = torch.zeros((), dtype=w.dtype)
        for x, y in self.case.batches:
            total = total + len(x) / self.examples * self.case.loss(
                self.outputs(w, x), y
            )
        return total

    def gradient(self, w: Tensor) -> Tensor:
        w = w.detach().requires_grad_()
        return torch.autograd.grad(self.loss(w), w)[0]

    def hessian(self) -> Tensor:
        return torch.autograd.functional.hessian(self.loss, self.vector)

    def gauss_newton(self) -> Tensor:
        total = torch.zeros(len(self.vector), len(self.vector), dtype=torch.float64)
        for x, y in self.case.batches:
            z = self.outputs(self.vector, x).detach()
            jacobian = torch.autograd.functional.jacobian(
                lambda w, x=x: self.outputs(w, x).reshape(-1), self.vector
            )
            of_loss = torch.autograd.functional.hessian(
                lambda flat, z=z, y=y: self.case.loss(flat.reshape(z.shape), y),
                z.reshape(-1),
            )
            total += len(x) / self.examples * jacobian.mT @ of_loss @ jacobian
        return total
