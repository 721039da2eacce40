"""Relative flatness (`flatnb.curvature.relative_flatness`) of the logits' layer."""

from torch import Tensor


def kappa_of_logits(phi: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
    """Each example's kappa where the layer makes the logits of a softmax cross-entropy.

        |phi_i|^2 (sum_c p_ic |w_c|^2 - |sum_c p_ic w_c|^2),     p = softmax(logits)

    From inputs phi (..., n, m), logits (..., n, d) and the weight (..., d, m), in whose
    dtype it computes, to (..., n): leading axes are those of an ensemble. The kappa of
    the mean loss is the mean. Rounding may leave a value slightly below 0.

    >>> import torch
    >>> kappa_of_logits(torch.ones(1, 3), torch.zeros(1, 2), torch.eye(2, 3)).tolist()
    [1.5]
    """
    p = logits.to(weight.dtype).softmax(-1)
    squares = (p @ weight.square().sum(-1, keepdim=True)).squeeze(-1)
    spread = squares - (p @ weight).square().sum(-1)
    return phi.to(weight.dtype).square().sum(-1) * spread
