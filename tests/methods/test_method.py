"""What a closure may return, which models are refused, and what a step does besides
its passes.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import inputs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import BAD_COUNTS, BAD_REALS
from properties import Calls, identical
from table import ROWS
from torch import nn

from flatnb._tensors import l2_norm
from flatnb.ensemble import Ensemble
from flatnb.methods import (
    ERM,
    FAM,
    GNP,
    NSO,
    SAM,
    Flooding,
    Method,
    WeightNoise,
    compose,
)
from flatnb.methods.method import Hyperparameter

METHODS = [ERM(), SAM(0.1), NSO(0.1)]


# -- closures
# -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize(
    ("result", "error", "words"),
    [
        (lambda p: p()[:0], ValueError, r"shape \(0,\): the batch is empty"),
        (lambda p: p()[:, None], ValueError, r"shape \(12, 1\);.*losses\.squeeze\(1\)"),
        (
            lambda p: p().expand(2, 3, 12),
            ValueError,
            r"flatten\(1\)\.mean.*losses\.flatten\(\)",
        ),
        (
            lambda p: {"a": p().mean()},
            TypeError,
            r"returned dict; allowed: a tensor of losses \(n,\) or \(\)",
        ),
        (
            lambda p: [p()],
            TypeError,
            r'returned list.*cross_entropy\(\.\.\., reduction="none"\)',
        ),
        (lambda p: p() * 1j, RuntimeError, "only for real scalar outputs"),
        (lambda p: p().expand(5, 12), ValueError, "average tokens or pixels"),
        (lambda p: p().mean().item(), TypeError, "returned float"),
        (lambda p: None, TypeError, "returned NoneType"),
        (lambda p: (p(), p.y), TypeError, "returned tuple"),
        (lambda p: p().detach(), ValueError, "without a graph"),
        (lambda p: torch.no_grad()(p)(), ValueError, r"outside torch.no_grad\(\)"),
        (
            lambda p: torch.ones(12, requires_grad=True) * 1,
            ValueError,
            "do not depend on this model|a trainable tensor .* not in this model",
        ),
    ],
)
def test_closure_errors(method, result, error, words) -> None:
    problem = inputs.plain()
    before = [p.detach().clone() for p in problem.params]
    with pytest.raises(error, match=words):
        method.backward(problem.model, lambda: result(problem))
    assert identical(problem.params, before)
    assert all(p.grad is None for p in problem.params)


def test_closure_errors_of_an_ensemble() -> None:
    model = Ensemble(lambda: nn.Sequential(nn.Linear(4, 3)), 2)
    x, y = torch.randn(6, 4), torch.arange(6) % 3

    def losses() -> torch.Tensor:
        return F.cross_entropy(model(x).flatten(0, 1), y.repeat(2), reduction="none")

    with pytest.raises(ValueError, match=r"shape \(12,\); allowed: \(2, n\) or \(2,\)"):
        ERM().backward(model, losses)
    with pytest.raises(ValueError, match=r"shape \(6, 2\); allowed: \(2, n\)"):
        ERM().backward(model, lambda: losses().view(2, 6).T)
    assert ERM().backward(model, lambda: losses().view(2, 6)).shape == (2,)


def test_another_model_than_the_closures_is_noticed() -> None:
    problem, other = inputs.plain(), inputs.plain()
    for method in METHODS:
        words = "do not depend on this model|a trainable tensor .* not in this model"
        with pytest.raises(ValueError, match=words):
            method.backward(other.model, problem)


def test_nothing_to_train() -> None:
    problem = inputs.plain()
    problem.model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter with requires_grad=True"):
        ERM().backward(problem.model, problem)


def test_a_tensor_hyperparameter_needs_an_ensemble_of_its_size() -> None:
    problem = inputs.plain()
    with pytest.raises(ValueError, match=r"rho has 3 values.*no Ensemble"):
        SAM(torch.ones(3)).backward(problem.model, problem)
    model = Ensemble(lambda: nn.Sequential(nn.Linear(4, 3)), 2)
    with pytest.raises(ValueError, match=r"rho has 3 values.*of 2 members"):
        SAM(torch.ones(3)).backward(model, lambda: model(problem.x).square().sum(-1))
    assert all(p.grad is None for p in model.parameters())


# -- hyperparameters
# -----------------------------------------------------------------------------


def hyperparameters() -> Iterator[tuple[Method, str, Any]]:
    """Every checked attribute of every method, and its value."""
    for row in ROWS.values():
        method = row()
        for name in dir(type(method)):
            attribute = inspect.getattr_static(type(method), name)
            if isinstance(attribute, Hyperparameter):
                yield method, name, getattr(method, name)


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [pytest.param(*h, id=f"{type(h[0]).__name__} {h[1]}") for h in hyperparameters()],
)
def test_what_is_set_later_is_checked(method, name, value) -> None:
    bad = BAD_REALS if isinstance(value, float) else BAD_COUNTS
    for other, error in bad:
        with pytest.raises(error, match=rf"{name}.*allowed: "):
            setattr(method, name, other)
        assert getattr(method, name) is value
    if isinstance(value, int):
        good = [3, np.int64(3), torch.tensor(3)]
    else:
        good = [1, np.float32(0.25), np.int64(1), torch.tensor(0.25), Fraction(1, 4)]
    for other in good:
        setattr(method, name, other)
        assert type(getattr(method, name)) is type(value)
        assert getattr(method, name) == other


def test_a_tensor_hyperparameter_is_a_copy() -> None:
    rho = torch.ones(2)
    method = SAM(rho)
    rho.fill_(-1)
    assert method.rho.tolist() == [1, 1]


def test_passes_follow_the_number_of_draws() -> None:
    for method, passes in ((NSO(0.1), 6), (WeightNoise(0.1), 3)):
        method.k = 3
        assert method.passes == passes


# -- models that are refused
# ----------------------------------------------------------------------


def test_sharded_models_are_refused() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    # Its constructor needs a process group; what is asked is the class.
    problem = inputs.plain()
    model = _bare(FullyShardedDataParallel, problem.model)
    model.training_state = None
    for method in (ERM(), SAM(), FAM(0.1), compose(Flooding(0.1), SAM())):
        with pytest.raises(ValueError, match="the model is spread over processes"):
            method.backward(model, problem)


def test_static_graph_is_refused() -> None:
    problem = inputs.plain()
    model = _bare(nn.parallel.DistributedDataParallel, problem.model)
    model.static_graph = True
    with pytest.raises(ValueError, match="static_graph=True; allowed: False"):
        SAM().backward(model, problem)


def test_an_engine_of_deepspeed_is_refused() -> None:
    # It reduces and steps from gradients of its own; what is asked is the name.
    problem = inputs.plain()
    model = type("DeepSpeedEngine", (nn.Sequential,), {})(problem.model)
    with pytest.raises(ValueError, match="DeepSpeed"):
        SAM().backward(model, problem)


@pytest.mark.parametrize("scaler", [True, 65536.0, object()])
def test_what_is_no_scaler_is_refused(scaler: object) -> None:
    problem = inputs.plain()
    with pytest.raises(TypeError, match=r"scaler=.*; allowed: a torch.amp.GradScaler"):
        SAM().backward(problem.model, problem, scaler=scaler)


def test_an_output_in_place_of_its_loss_is_refused() -> None:
    problem = inputs.plain()
    with pytest.raises(TypeError, match=r"returned dict; .* output\.loss"):
        SAM().backward(problem.model, lambda: {"loss": problem().mean()})


def _bare(kind: type[nn.Module], inner: nn.Module) -> nn.Module:
    wrapper = kind.__new__(kind)
    nn.Module.__init__(wrapper)
    wrapper._fsdp_wrapped_module = wrapper.module = inner
    return wrapper


# -- the rest of a step
# ---------------------------------------------------------------------------


def test_method_that_fails_on_the_way_leaves_no_trace() -> None:
    class Broken(Method):
        def rule(self, step) -> None:
            grads = step.gradient()
            step.move(grads, 5.0)
            step.add_gradient(grads, 1.0)
            raise OSError("on the way")

    problem = inputs.noisy()
    before = copy.deepcopy(problem.model)
    for p in problem.params:
        p.grad = torch.ones_like(p)
    with pytest.raises(OSError, match="on the way"):
        Broken().backward(problem.model, problem)
    assert identical(problem.params, before.parameters())
    assert all((p.grad == 1).all() for p in problem.params)


def test_gradients_stay_empty_after_an_error() -> None:
    problem = inputs.plain()

    def fail(count: int) -> None:
        if count == 2:
            raise OSError("stop")

    for method in (SAM(0.1), GNP(0.1, 0.5), NSO(0.1)):
        with pytest.raises(OSError, match="stop"):
            method.backward(problem.model, Calls(problem, fail))
        assert all(p.grad is None for p in problem.params)


def test_batchnorm_costs_weight_noise_one_forward_without_gradient() -> None:
    for build, extra in ((inputs.plain, 0), (inputs.noisy, 1)):
        for method in (NSO(0.1, 2), WeightNoise(0.1, 2)):
            grads = []
            calls = Calls(
                problem := build(), lambda _, g=grads: g.append(torch.is_grad_enabled())
            )
            method.backward(problem.model, calls)
            assert grads == [False] * extra + [True] * method.passes


def test_a_frozen_layer_costs_no_forward() -> None:
    problem = inputs.plain()
    problem.model.body[0].requires_grad_(False)
    calls = Calls(problem)
    NSO(0.1).backward(problem.model, calls)
    assert calls.count == 2


def test_no_forward_for_statistics_in_eval_mode() -> None:
    problem = inputs.noisy()
    problem.model.eval()
    calls = Calls(problem)
    NSO(0.1).backward(problem.model, calls)
    assert calls.count == 2


def test_noise_methods_return_the_loss_at_w_where_they_evaluate_it() -> None:
    problem = inputs.noisy()
    torch.manual_seed(5)
    loss = NSO(0.5).backward(problem.model, problem)
    torch.manual_seed(5)
    assert torch.equal(loss, problem().mean().detach())


def test_hooks_of_the_optimizers_kind_see_each_gradient_once() -> None:
    """`p.grad` is not replaced while accumulating: flattened or bucketed gradients
    stay valid.
    """
    for method in (ERM(), SAM(0.1), GNP(0.1, 0.5), NSO(0.1)):
        problem = inputs.plain()
        for p in problem.params:
            p.grad = torch.zeros_like(p)
        pointers = [p.grad.data_ptr() for p in problem.params]
        method.backward(problem.model, problem)
        assert [p.grad.data_ptr() for p in problem.params] == pointers


def test_norm_is_accurate_where_float32_accumulation_is_not() -> None:
    """The sum of many small squares beside large ones."""
    tensors = [torch.full((3000, 1000), 1e-3), torch.full((5,), 100.0)]
    exact = (3e6 * float(torch.tensor(1e-3).double() ** 2) + 5e4) ** 0.5
    assert abs(float(l2_norm(tensors)) / exact - 1) < 1e-9
    members = [torch.stack([t, 2 * t]) for t in tensors]
    assert torch.allclose(
        l2_norm(members, 2),
        torch.tensor([exact, 2 * exact], dtype=torch.double),
        rtol=1e-9,
    )


def test_repr_is_how_it_is_written() -> None:
    assert repr(SAM(0.1)) == "SAM(rho=0.1)"
    assert repr(ERM()) == "ERM()"
    assert repr(SAM(torch.ones(4))) == "SAM(rho=<4 values>)"


def test_state_of_a_method_without_memory() -> None:
    assert SAM().state_dict() == {"calls": 0}
    with pytest.raises(ValueError, match=r"state has the entries \['x'\]"):
        SAM().load_state_dict({"x": 1})
