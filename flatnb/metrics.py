"""What is measured of a net on a split: loss, accuracy, calibration, gradient norm.

Nets are measured in eval mode and in their parameters' precision; each module's mode is
put back. All values have the shape (), or (members,) for an `Ensemble`.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatnb._nets import in_mode, unwrap
from flatnb._nets import members as members_of
from flatnb._tensors import l2_norm, wide
from flatnb.data import Split

# Bounds of an evaluation's memory: examples times members, and entries of the inputs,
# at once; for a backward pass, which keeps activations, a quarter of both.
_ROWS = {"cpu": 1 << 16, "cuda": 1 << 19}
_ENTRIES = 1 << 21
_BINS = 15
_GRADIENT_EXAMPLES = 2048


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Softmax cross-entropy per example, in nats, as a method's closure returns it.

    Logits are (..., n, classes), class indices y (n,) or (..., n), losses (..., n).

    >>> cross_entropy(torch.zeros(5, 8, 2), torch.zeros(8, dtype=torch.long)).shape
    torch.Size([5, 8])
    """
    if logits.dim() < 2 or y.shape not in (logits.shape[:-1], logits.shape[-2:-1]):
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} with y of shape {tuple(y.shape)}; "
            "allowed: logits (..., n, classes) with y (n,) or (..., n)"
        )
    y = y.expand(logits.shape[:-1])
    losses = F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none")
    return losses.view(y.shape)


@torch.no_grad()
def evaluate(model: nn.Module, split: Split) -> dict[str, Tensor]:
    r"""The metrics of a net on a split, in one pass of bounded memory.

    "loss" is the mean cross-entropy in nats, "accuracy" the fraction classified
    correctly, and "ece" the calibration error of the most probable class,

    .. math:: \sum_b \frac{|I_b|}{n} |\mathrm{acc}(I_b) - \mathrm{conf}(I_b)|

    where :math:`I_b` holds the examples whose largest probability lies in ((b-1)/15,
    b/15], acc is their accuracy, conf the mean of that probability. It is biased
    upwards where bins hold few examples. Source: C. Guo et al., "On Calibration of
    Modern Neural Networks", ICML 2017, (3).

    >>> from flatnb.data import plane
    >>> sorted(evaluate(nn.Linear(2, 2), plane("spiral", n_test=100).test))
    ['accuracy', 'ece', 'loss']
    """
    net = unwrap(model)
    losses, correct, gaps = [], [], []
    with in_mode(net, training=False):
        for part in _parts(net, split):
            logits = net(part.x)
            right = logits.argmax(-1) == part.y
            log_p = logits.log_softmax(-1)
            y = part.y.expand(right.shape).unsqueeze(-1)
            losses.append(-log_p.gather(-1, y).squeeze(-1).sum(-1))
            correct.append(right.sum(-1))
            gaps.append(_gaps(log_p, right))
    return {
        "loss": torch.stack(losses).sum(0) / len(split),
        "accuracy": torch.stack(correct).sum(0) / len(split),
        "ece": torch.stack(gaps).sum(0).abs().sum(-1) / len(split),
    }


def gradient_norm(model: nn.Module, split: Split) -> Tensor:
    """The l2 norm of the gradient of the first 2,048 examples' mean cross-entropy.

    Over the trainable parameters, whose `p.grad` is left as it is.

    >>> from flatnb.data import plane
    >>> bool(gradient_norm(nn.Linear(2, 2), plane("spiral", n_test=100).test) > 0)
    True
    """
    net = unwrap(model)
    split = split[:_GRADIENT_EXAMPLES]
    params = [p for p in net.parameters() if p.requires_grad]
    sums = [torch.zeros_like(p) for p in params]
    with in_mode(net, training=False):
        for part in _parts(net, split, share=4):
            loss = cross_entropy(net(part.x), part.y).sum() / len(split)
            grads = torch.autograd.grad(loss, params, materialize_grads=True)
            torch._foreach_add_(sums, [g.detach() for g in grads])
    return l2_norm(sums, members_of(net))


def _gaps(log_p: Tensor, correct: Tensor) -> Tensor:
    """The sum of correct - confidence over the examples of each bin, (..., bins)."""
    confidence = log_p.amax(-1).exp().to(wide(log_p))
    index = confidence.mul(_BINS).ceil().long().sub(1).clamp(0, _BINS - 1)
    sums = confidence.new_zeros(*confidence.shape[:-1], _BINS)
    return sums.scatter_add_(-1, index, correct.to(confidence.dtype) - confidence)


def _parts(net: nn.Module, split: Split, share: int = 1) -> Iterator[Split]:
    """`split` in parts of bounded memory."""
    members = members_of(net) or 1
    entries = split.x.numel() // split.y.numel()  # of an example
    bound = _ROWS.get(split.x.device.type, _ROWS["cpu"])
    rows = max(1, min(bound // members, _ENTRIES // entries) // share)
    for first in range(0, len(split), rows):
        yield split[first : first + rows]
