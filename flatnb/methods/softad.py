"""Soft ascent-descent (SoftAD): a smooth, per-example form of Flooding."""

from functools import partial

import torch
from torch import Tensor

from flatnb.methods.method import KW_ONLY, Hyperparameter, Method, per_member, real


class SoftAD(Method):
    """SoftAD: examples above the threshold descend, those below ascend, softly.

        objective  theta + sigma mean_i rho(x_i),   x_i = (l_i - theta) / sigma
        gradient   mean_i phi(x_i) grad l_i
        rho(x) = sqrt(x^2 + 1) - 1,   phi(x) = rho'(x) = x / sqrt(x^2 + 1)

    One pass. Examples near theta count little, outliers at most 1; sigma -> 0 is
    IFlood. theta >= 0 (0.01 to 2 in the paper) and sigma > 0 are in units of the loss.

    Source: Holland and Nakatani, "Soft ascent-descent as a stable and flexible
    alternative to flooding", NeurIPS 2024, equations (7) and (8), which have sigma = 1.
    For other sigma the authors' loss class uses sigma^2 rho(x), whose weights vanish
    with sigma: here `code_form=True`. Without it phi(x) stays, as in their figures.

    >>> SoftAD(theta=1.0).objective(torch.tensor([1.0, 1.0])).item()
    1.0
    """

    theta: Hyperparameter = Hyperparameter()
    sigma: Hyperparameter = Hyperparameter(partial(real, open_low=True), default=1.0)
    _: KW_ONLY
    code_form: bool = False

    def objective(self, losses: Tensor) -> Tensor:
        theta = per_member("theta", self.theta, losses, pointwise=True)
        sigma = per_member("sigma", self.sigma, losses, pointwise=True)
        # sigma rho(x) = d^2 / (sigma + sqrt(d^2 + sigma^2)): the root minus sigma would
        # lose all digits for small d.
        d = losses - theta
        root = torch.hypot(d, torch.as_tensor(sigma, dtype=d.dtype))
        value = d * (d / (root + sigma))
        return (theta + (sigma * value if self.code_form else value)).mean(-1)
