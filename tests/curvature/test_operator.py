"""Products against dense matrices, and every refusal."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case, dense_hessian, perceptron, real
from torch import nn

from flatnb.curvature import (
    GaussNewtonOperator,
    HessianOperator,
    gauss_newton_trace,
    spectral_density,
    top_eigenvalues,
    trace,
)


def operator(case: Case, **settings) -> HessianOperator:
    return HessianOperator(case.model, case.loss, case.batches, **settings)


def close(a: torch.Tensor, b: torch.Tensor, tol: float = 1e-12) -> bool:
    return float((a - b).abs().max()) <= tol * max(1.0, float(b.abs().max()))


def test_products_equal_the_dense_hessian(case: Case):
    op = operator(case)
    vectors = torch.randn(
        op.size, 5, dtype=torch.float64, generator=torch.manual_seed(1)
    )
    assert close(op @ vectors[:, 0], case.hessian @ vectors[:, 0])
    assert close(op @ vectors, case.hessian @ vectors)
    assert op.products == 6
    assert close(op.dense(), case.hessian)


def test_zeros_that_ask_for_a_graph_do_not_reach_a_product(
    case: Case, monkeypatch: pytest.MonkeyPatch
):
    """torch 2.6 puts such zeros in for a parameter that a loss does not use."""
    grad = torch.autograd.grad

    def as_in_2_6(outputs, inputs, *others, materialize_grads=False, **settings):
        found = grad(outputs, inputs, *others, allow_unused=True, **settings)
        zeros = (torch.zeros_like(one, requires_grad=True) for one in inputs)
        return tuple(z if g is None else g for g, z in zip(found, zeros, strict=True))

    monkeypatch.setattr(torch.autograd, "grad", as_in_2_6)
    op = operator(case)
    for vectors in torch.ones(op.size), torch.ones(op.size, 2):
        assert not (op @ vectors.double()).requires_grad


def test_a_graph_that_is_not_kept_changes_nothing(case: Case):
    for kind in (HessianOperator, GaussNewtonOperator):
        kept = kind(case.model, case.loss, case.batches)
        v = torch.randn(kept.size, 2, dtype=torch.float64)
        passing = kind(case.model, case.loss, case.batches, keep_graph=False)
        assert passing._kept == []
        assert close(passing @ v, kept @ v)


def test_gauss_newton_equals_the_sum_over_examples(case: Case):
    op = GaussNewtonOperator(case.model, case.loss, case.batches)
    x, y = case.data
    objective = op.objective

    def outputs(w):
        with objective.evaluating():
            return objective.outputs(x, objective.split(w))

    jacobian = torch.autograd.functional.jacobian(outputs, objective.vector).flatten(
        0, 1
    )
    z = outputs(objective.vector)
    loss_hessian = torch.autograd.functional.hessian(
        lambda flat: case.loss(flat.reshape(z.shape), y), z.reshape(-1)
    )
    assert close(op.dense(), jacobian.mT @ loss_hessian @ jacobian)


def test_a_subset_of_parameters_is_a_block_of_the_matrix(case: Case):
    names = [name for name, _ in case.model.named_parameters()][1:3]
    op = operator(case, params=names)
    sizes = [p.numel() for p in case.model.parameters()]
    block = slice(sizes[0], sum(sizes[:3]))
    assert op.names == tuple(names)
    assert close(op.dense(), case.hessian[block, block])
    matrices = operator(case, params=lambda name, p: p.ndim > 1)
    assert all(p.ndim > 1 for p in matrices.objective.params)


def test_the_operator_keeps_the_parameters_it_was_made_with():
    case = CASES["perceptron"]
    model = perceptron().double()
    model.load_state_dict(case.model.state_dict())
    op = HessianOperator(model, case.loss, case.batches)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert close(op.dense(), case.hessian)


def test_float32_autocast_and_wrappers():
    case = CASES["perceptron"]
    model = perceptron()
    model.load_state_dict(case.model.float().state_dict())
    case.model.double()
    batches = [(x.float(), y) for x, y in case.batches]
    op = HessianOperator(nn.DataParallel(model), case.loss, batches)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = HessianOperator(model, case.loss, batches).dense()
        again = op.dense()
    assert inside.dtype == torch.float32
    reference = dense_hessian(model.double(), case.loss, *case.data)
    assert close(inside.double(), reference, 1e-5) and close(
        again.double(), reference, 1e-5
    )


def test_a_compiled_model_is_unwrapped():
    case = CASES["perceptron"]
    op = HessianOperator(torch.compile(case.model), case.loss, case.batches)
    assert op.names == operator(case).names
    assert close(op.dense(), case.hessian)


def test_recurrent_and_encoder_layers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(2, 2, batch_first=True)
            self.encoder = nn.TransformerEncoderLayer(2, 1, 3, batch_first=True)
            self.out = nn.Linear(2, 2)

        def forward(self, x):
            return self.out(self.encoder(self.rnn(x)[0]).mean(1))

    case = Case(Net, real(3, 2), 2)
    case.model.eval()
    assert close(operator(case).dense(), case.hessian)


def bad(model=None, loss=F.cross_entropy, batches=None, **settings):
    case = CASES["perceptron"]
    given = case.batches if batches is None else batches
    return HessianOperator(model or case.model, loss, given, **settings)


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, training=True)


def frozen() -> nn.Module:
    return perceptron().double().requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bad(batches=[]), "at least one"),
        (lambda: bad(batches=CASES["perceptron"].data), r"\[\(x, y\)\]"),
        (
            lambda: bad(batches=[(torch.zeros(0, 5).double(), torch.zeros(0))]),
            "at least one",
        ),
        (
            lambda: bad(loss=lambda z, y: F.cross_entropy(z, y, reduction="none")),
            "scalar",
        ),
        (lambda: bad(loss=nn.CrossEntropyLoss(reduction="sum")), "as a sum does"),
        (lambda: bad(loss=lambda z, y: z.sum() * float("nan")), "nan"),
        (lambda: bad(perceptron()), "same dtype"),  # as PyTorch says it
        (lambda: bad(perceptron().bfloat16()), "allowed: float32, float64"),
        (lambda: bad(frozen()), "params=none; .* there is none"),
        (lambda: bad(frozen(), params=["0.weight"]), "require a gradient"),
        (lambda: bad(params=["weight"]), "params=weight; .*: 0.weight, 0.bias"),
        (
            lambda: bad(params=lambda name, p: False),
            "params=none; allowed: one or more",
        ),
        (
            lambda: bad(nn.Sequential(perceptron().double(), Noisy())),
            "dropout or noise",
        ),
        (
            lambda: operator(
                CASES["tied embedding, unused parameter"], params=["unused"]
            ),
            "unused",
        ),
        (lambda: bad() @ torch.zeros(3), r"v is \(3,\); allowed: \(111,\)"),
    ],
)
def test_bad_input_is_a_clear_error(make, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        make()


class _Square(torch.autograd.Function):
    """x * x, whose backward pass forgets that the slope depends on x for one of two
    entries.
    """

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        return g * y, g * x.detach()


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (
            nn.Parameter(torch.randn(3)),
            nn.Parameter(torch.randn(3)),
        )

    def forward(self, x):
        return x + _Square.apply(self.left, self.right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wrong_second_derivative_is_refused(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), Product()).to(dtype)
    batches = [(torch.randn(9, 5, dtype=dtype), torch.arange(9) % 3)]
    with pytest.raises(ValueError, match="the second derivative of the model is wrong"):
        HessianOperator(model, F.cross_entropy, batches)
    HessianOperator(model, F.cross_entropy, batches, params=["0.weight", "2.left"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_has_the_hessian_of_its_formula_or_is_refused(dim, dtype):
    for seed in range(10):
        torch.manual_seed(seed)
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(5, 4), dim=dim)
        model = nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 3)).to(dtype)
        x, y = torch.randn(9, 5, dtype=dtype), torch.arange(9) % 3
        try:
            op = HessianOperator(model, F.cross_entropy, [(x, y)])
        except ValueError as error:
            assert "weight norm" in str(error)
            continue
        objective = HessianOperator(
            model.double(), F.cross_entropy, [(x.double(), y)]
        ).objective
        step = 1e-5 * torch.eye(op.size, dtype=torch.float64)
        w = objective.vector
        rows = [
            (objective.gradient(w + e)[1] - objective.gradient(w - e)[1]) for e in step
        ]
        exact = torch.stack(rows) / 2e-5
        tolerance = 1e-7 if dtype == torch.float64 else 1e-2
        assert close((op @ torch.eye(op.size)).double(), exact, tolerance)


@pytest.mark.parametrize("constant", [0.0, 0.4])
@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: F.cross_entropy(z, y, reduction="sum") / 7,
        lambda z, y: F.mse_loss(z, F.one_hot(y, 3).to(z), reduction="sum"),
    ],
)
def test_a_sum_is_refused_with_whatever_is_added(loss, constant):
    case = CASES["perceptron"]
    with pytest.raises(ValueError, match="as a sum does"):
        HessianOperator(case.model, lambda z, y: loss(z, y) + constant, case.batches)


def test_a_loss_of_probabilities_is_measured():
    model = nn.Sequential(nn.Linear(3, 1), nn.Sigmoid())
    data = [(torch.randn(8, 3), torch.ones(8, 1))]
    assert HessianOperator(model, nn.BCELoss(), data).size == 4


def test_a_sum_over_a_perfect_fit_is_refused():
    model = nn.Linear(2, 1).double()
    x = torch.randn(8, 2).double()
    with pytest.raises(ValueError, match="as a sum does"):
        HessianOperator(model, nn.MSELoss(reduction="sum"), [(x, model(x).detach())])


def test_a_first_layer_that_overwrites_its_input_leaves_the_data():
    model = nn.Sequential(nn.SiLU(inplace=True), nn.Linear(5, 3)).double()
    x, y = torch.randn(9, 5).double(), torch.arange(9) % 3
    before = x.clone()
    op = HessianOperator(model, F.cross_entropy, [(x, y)], keep_graph=False)
    first, second = op @ torch.ones(op.size), op @ torch.ones(op.size)
    assert torch.equal(x, before) and torch.equal(first, second)


def test_a_late_infinite_example_is_seen():
    case = CASES["perceptron"]
    batches = [(x.clone(), y) for x, y in case.batches]
    batches[-1][0][-1] = float("inf")
    with pytest.raises(ValueError, match="the loss is nan"):
        HessianOperator(case.model, case.loss, batches)


def test_names_of_wrappers_are_free_for_a_net_of_its_own():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._orig_mod, self.module = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module(self._orig_mod(x))

    data = [(torch.randn(4, 2), torch.randint(0, 2, (4,)))]
    assert HessianOperator(Net(), F.cross_entropy, data).size == 12


def test_a_net_in_place_of_its_operator_is_refused() -> None:
    net = nn.Linear(2, 1)
    for measure in (trace, gauss_newton_trace, top_eigenvalues, spectral_density):
        with pytest.raises(TypeError, match=r"operator=Linear.*HessianOperator"):
            measure(net)


def test_a_loss_in_place_of_the_net_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model=<function mse_loss.*an nn.Module"):
        HessianOperator(F.mse_loss, nn.Linear(2, 1), [])
