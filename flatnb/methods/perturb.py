"""Which parameters a method moves: functions for its argument `perturb`.

Methods that move the weights move all trainable parameters, unless given a function

    perturb(name, parameter, module) -> bool or float >= 0

that is asked about each of them in every step: `name` is the parameter's name in the
net ("net. ..." in an `Ensemble`), `module` the layer that holds it. Its answer f_t
multiplies the move of tensor t, and norms are over the tensors with f_t > 0; the
gradient is still that of all parameters. SAM moves tensor t by

    eps_t = f_t rho g_t / ||g||_P,      ||g||_P^2 = sum of ||g_t||^2 over f_t > 0

>>> from flatnb import SAM
>>> def tenth_in_the_head(name, parameter, module):
...     return 0.1 if name.startswith("head") else 1.0
>>> method = SAM(rho=0.05, perturb=tenth_in_the_head)
"""

import re
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from flatnb import _checks

Perturb = Callable[[str, Tensor, nn.Module], float]


def only_norms(name: str, parameter: Tensor, module: nn.Module) -> bool:
    """True for the scales and shifts of normalization layers: SAM-ON.

    A layer counts if its class, or a base, has a name that ends in Norm or Norm1d to
    Norm3d. Source: Mueller et al., "Normalization Layers Are All That Sharpness-Aware
    Minimization Needs", NeurIPS 2023. The authors' code goes by the parameter's name.

    >>> norm = nn.BatchNorm1d(3)
    >>> only_norms("body.1.weight", norm.weight, norm)
    True
    """
    kinds = [kind.__name__ for kind in type(module).__mro__]
    return any(re.fullmatch(r".*norm(\dd)?", kind, re.IGNORECASE) for kind in kinds)


def all_but_norms_and_biases(name: str, parameter: Tensor, module: nn.Module) -> bool:
    """False for what `only_norms` selects, and where a name's last part has "bias".

    >>> layer = nn.Linear(3, 2)
    >>> all_but_norms_and_biases("head.bias", layer.bias, layer)
    False
    """
    bias = "bias" in name.rpartition(".")[2]
    return not bias and not only_norms(name, parameter, module)


def factors(perturb: Perturb, net: nn.Module, params: Sequence[Tensor]) -> list[float]:
    """What `perturb` answers for each of `params`; a tied one is asked about once.

    >>> net = nn.Linear(3, 2)
    >>> factors(all_but_norms_and_biases, net, list(net.parameters()))
    [1.0, 0.0]
    """
    asked = "a function of name, parameter and layer, such as only_norms"
    _checks.instance("perturb", perturb, Callable, asked)
    allowed = "True, False or a finite number >= 0"
    answers: dict[Tensor, float] = {}
    for name, p in net.named_parameters():
        if p.requires_grad:
            module = net.get_submodule(name.rpartition(".")[0])
            answer = float(perturb(name, p, module))
            place = f"perturb({name!r}, …)"
            answers[p] = _checks.number(place, answer, allowed, 0.0, closed=True)
    if not any(answers.values()):
        raise ValueError(
            f"perturb={getattr(perturb, '__name__', perturb)} selects none of the "
            f"{len(params)} trainable parameters; ERM() moves none"
        )
    return [answers[p] for p in params]
