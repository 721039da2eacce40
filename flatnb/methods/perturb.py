"""Which parameters a method moves: the functions for its argument `perturb`.

A method that moves the weights (SAM and its variants, GNP, NSO, WeightNoise) moves all
trainable parameters, unless `perturb` is given. It is a function

    perturb(name, parameter, module) -> bool or float >= 0

that is asked about each trainable parameter: `name` is the parameter's name in the net,
`module` the layer that holds it. Its answer f multiplies the move of this parameter.
False or 0 leaves it in place, True or 1 moves it in full; any other number gives the
parameter, or its group, a radius of its own. With g_t the part of the gradient g that
belongs to tensor t, SAM moves tensor t by

    eps_t = f_t rho g_t / ||g||_P,      ||g||_P^2 = sum of ||g_t||^2 over all t with f_t
    > 0

so rho is the radius of the ball that holds the perturbed parameters alone, where f is 0
or
1. Every other method does the same: what it would add to tensor t is multiplied by f_t,
and the norm in its formula is taken over the tensors with f_t > 0. The gradient is
still that of all trainable parameters, and every pass costs what it did.

    >>> from flatnb.methods import SAM
    >>> from flatnb.methods.perturb import only_norms
    >>> SAM(rho=0.5, perturb=only_norms)
    SAM(rho=0.5, perturb=only_norms)
    >>> def tenth_in_the_head(name, parameter, module):
    ...     return 0.1 if name.startswith("head") else 1.0
    >>> method = SAM(rho=0.05, perturb=tenth_in_the_head)

`perturb` is asked in each step, so layers may be frozen and unfrozen in between. In an
`Ensemble`, names begin with "net.", and parameters have a leading member axis. A tensor
with several names is asked about under the first.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

_NORM = re.compile(r".*Norm(\dd)?", re.IGNORECASE)


def only_norms(name: str, parameter: Tensor, module: nn.Module) -> bool:
    """True for the scales and shifts of normalisation layers: SAM-ON.

    A layer counts if its class, or a class that it inherits from, has a name that ends
    in Norm, Norm1d, Norm2d or Norm3d. These are the batch, layer, group, instance and
    RMS norms of PyTorch and most of other packages.

    Source: Mueller, Vlaar, Rolnick and Hein, "Normalization Layers Are All That
        Sharpness-Aware
    Minimization Needs", NeurIPS 2023. The authors' code selects parameters whose name
    contains "norm" or "bn", and takes ||g|| over these, as here.
    """
    return any(_NORM.fullmatch(kind.__name__) for kind in type(module).__mro__)


def all_but_norms_and_biases(name: str, parameter: Tensor, module: nn.Module) -> bool:
    """False for what `only_norms` selects, and where the last part of a name has "bias" in it."""
    return "bias" not in name.rpartition(".")[2] and not only_norms(
        name, parameter, module
    )
