"""Losses of practice through the closure: one number an example, whatever they are made
of.

Each test is also an example of how to write the closure.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from properties import assert_close
from torch import Tensor, nn

from flatnb.methods import ERM, FAM, NSO, SAM, IFlood, Method, SoftAD

METHODS = [ERM(), SoftAD(0.5), SAM(0.1), NSO(0.02)]


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(12, 4).double()


Y = torch.arange(12) % 3


def gradient(model: nn.Module, method: Method, closure) -> list[Tensor]:
    model, method = copy.deepcopy(model), copy.deepcopy(method)  # noise starts anew
    method.backward(model, lambda: closure(model))
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_label_smoothing(model, x, smoothing) -> None:
    """Smoothed cross-entropy is the cross-entropy of the smoothed labels, for every
    method.
    """
    labels = F.one_hot(Y, 3).double() * (1 - smoothing) + smoothing / 3

    def built_in(m: nn.Module) -> Tensor:
        return F.cross_entropy(m(x), Y, reduction="none", label_smoothing=smoothing)

    def by_hand(m: nn.Module) -> Tensor:
        return -(labels * m(x).log_softmax(-1)).sum(-1)

    for method in (*METHODS[:3], FAM(0.1)):
        assert_close(
            gradient(model, method, built_in), gradient(model, method, by_hand), 1e-9
        )


def test_mixup_targets(model, x) -> None:
    """Two labels with shares: the loss of the mixed target is the mixed loss."""
    share, other = 0.3, Y.flip(0)
    mixed = share * x + (1 - share) * x.flip(0)
    target = (
        share * F.one_hot(Y, 3).double() + (1 - share) * F.one_hot(other, 3).double()
    )

    def soft(m: nn.Module) -> Tensor:
        return F.cross_entropy(m(mixed), target, reduction="none")

    def two(m: nn.Module) -> Tensor:
        z = m(mixed)
        first = F.cross_entropy(z, Y, reduction="none")
        return share * first + (1 - share) * F.cross_entropy(z, other, reduction="none")

    for method in (*METHODS[:3], FAM(0.1)):
        assert_close(gradient(model, method, soft), gradient(model, method, two), 1e-9)


def test_ignored_examples_count_as_zero_in_the_mean(model, x) -> None:
    """`ignore_index` gives those examples the loss 0; n stays the number of
    examples.
    """
    y = Y.clone()
    y[:4] = -100

    def closure(m: nn.Module) -> Tensor:
        return F.cross_entropy(m(x), y, reduction="none")

    def kept(m: nn.Module) -> Tensor:
        return F.cross_entropy(m(x[4:]), y[4:], reduction="none")

    erm = gradient(model, ERM(), closure)
    assert_close(erm, [g * 8 / 12 for g in gradient(model, ERM(), kept)], 1e-12)
    # Leaving them out is better: below a level, a loss of 0 would count as an example
    # to raise, though without gradient.
    assert_close(
        gradient(model, IFlood(0.9), closure),
        [g * 8 / 12 for g in gradient(model, IFlood(0.9), kept)],
        1e-12,
    )


def test_weights_of_classes_stay_in_the_losses(model, x) -> None:
    """`weight=` with reduction="none": multiply by n / sum of weights for PyTorch's
    mean.
    """
    w = torch.tensor([0.5, 1.0, 3.0]).double()

    def closure(m: nn.Module) -> Tensor:
        return F.cross_entropy(m(x), Y, w, reduction="none") * len(Y) / w[Y].sum()

    reference = torch.autograd.grad(
        F.cross_entropy(model(x), Y, w), tuple(model.parameters())
    )
    assert_close(gradient(model, ERM(), closure), reference, 1e-12)


class Tagger(nn.Module):
    """Logits for each token of a sequence, (n, tokens, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.core = nn.GRU(6, 8, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.core(self.embedding(tokens))[0])


def token_losses(model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    """The mean over each sequence's own tokens; padding is labelled -100."""
    logits = model(tokens).transpose(1, 2)  # (n, classes, tokens)
    losses = F.cross_entropy(logits, labels, reduction="none")
    return losses.sum(1) / (labels != -100).sum(1)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_tokens_are_averaged_by_sequence(method) -> None:
    """Padding has no influence, and a sequence of many tokens weighs as much as a
    short one.
    """
    model = Tagger().double()
    tokens, labels = torch.randint(0, 11, (6, 9)), torch.randint(0, 5, (6, 9))
    labels[:3, 5:] = -100
    other = tokens.clone()
    other[:3, 5:] = 0  # the GRU reads from the left: padding comes last
    grads = [
        gradient(model, method, lambda m, t=t: token_losses(m, t, labels))
        for t in (tokens, other)
    ]
    assert_close(*grads, 1e-9)


def test_losses_for_each_token_are_refused_with_advice() -> None:
    model = Tagger()
    tokens, labels = torch.randint(0, 11, (6, 9)), torch.randint(0, 5, (6, 9))
    with pytest.raises(ValueError, match=r"shape \(6, 9\).*average tokens or pixels"):
        ERM().backward(
            model,
            lambda: F.cross_entropy(
                model(tokens).transpose(1, 2), labels, reduction="none"
            ),
        )


def test_tokens_as_examples() -> None:
    """Or every token is an example: the loss is the mean over all tokens but padding."""
    model = Tagger().double()
    tokens, labels = torch.randint(0, 11, (6, 9)), torch.randint(0, 5, (6, 9))
    labels[:3, 5:] = -100
    reference = torch.autograd.grad(
        F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten()),
        tuple(model.parameters()),
    )

    def closure(m: nn.Module) -> Tensor:
        kept = labels.flatten() != -100
        return F.cross_entropy(
            m(tokens).flatten(0, 1)[kept], labels.flatten()[kept], reduction="none"
        )

    assert_close(gradient(model, ERM(), closure), reference, 1e-10)


def test_weight_decay_inside_the_loss(model, x) -> None:
    """For parity with codes that have it there: it then tilts SAM's perturbation,
    too.
    """
    decay, rho = 0.1, 0.05

    def closure(m: nn.Module) -> Tensor:
        penalty = (
            0.5 * decay * torch.stack([p.square().sum() for p in m.parameters()]).sum()
        )
        return F.cross_entropy(m(x), Y, reduction="none") + penalty

    params = tuple(model.parameters())
    g = torch.autograd.grad(F.cross_entropy(model(x), Y), params)
    g = [a + decay * p for a, p in zip(g, params, strict=True)]
    norm = torch.stack([a.square().sum() for a in g]).sum().sqrt()
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p, a in zip(moved.parameters(), g, strict=True):
            p.add_(a, alpha=rho / float(norm))
    wanted = torch.autograd.grad(
        F.cross_entropy(moved(x), Y), tuple(moved.parameters())
    )
    wanted = [a + decay * p for a, p in zip(wanted, moved.parameters(), strict=True)]
    assert_close(gradient(model, SAM(rho), closure), wanted, 1e-9)


def test_regression(model, x) -> None:
    """Any loss with one number an example: here the squared error over outputs."""
    target = torch.randn(12, 3).double()
    reference = torch.autograd.grad(
        (model(x) - target).square().mean(), tuple(model.parameters())
    )
    grads = gradient(model, ERM(), lambda m: (m(x) - target).square().mean(-1))
    assert_close(grads, reference, 1e-12)
