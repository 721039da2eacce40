import pytest
import torch

import flatnb
from flatnb.experiments import spaces


@pytest.mark.parametrize("method", spaces.METHODS)
@pytest.mark.parametrize("budget", [1, 4, 40])
def test_every_method_gets_exactly_the_budget_learning_rate_included(method, budget):
    settings = spaces.space(method, budget)
    assert len(settings) == budget
    assert len({tuple(setting.items()) for setting in settings}) == budget
    ranges = {"lr": spaces.RATES["adam"], **spaces.RANGES[method]}
    for setting in settings:
        assert list(setting) == list(ranges)
        for name, value in setting.items():
            assert (
                ranges[name].low * (1 - 1e-5) <= value <= ranges[name].high * (1 + 1e-5)
            )


def test_settings_of_two_dimensions_cover_each_axis_evenly():
    for axis in (0, 1):
        found = sorted(point[axis] for point in spaces._points(2, 40))
        gaps = [b - a for a, b in zip([0.0, *found], [*found, 1.0], strict=True)]
        assert max(gaps) < 4 / 40


def test_more_budget_keeps_the_first_settings():
    assert spaces.space("GNP", 20)[:7] == spaces.space("GNP", 7)


def test_the_four_of_the_paper_share_one_grid():
    grids = [
        [
            next(v for k, v in s.items() if k != "lr")
            for s in spaces.fixed_rate(m, 40, 1e-3)
        ]
        for m in ("Flooding", "IFlood", "SoftAD", "SAM")
    ]
    assert all(grid == grids[0] for grid in grids)
    assert grids[0] == pytest.approx(torch.linspace(0.01, 2, 40).tolist(), abs=1e-5)


def test_without_hyperparameters_one_learning_rate_is_one_setting():
    assert spaces.fixed_rate("ERM", 40, 1e-3) == [{"lr": 1e-3}]


@pytest.mark.parametrize("method", spaces.METHODS)
def test_builds_a_method_of_one_value_a_member_or_of_numbers(method):
    single = spaces.build(method, [spaces.default(method, 0.1)], torch.ones(1, 4))
    several = spaces.build(method, spaces.space(method, 3), torch.ones(3, 4))
    assert type(single) is type(several)
    assert isinstance(single, getattr(flatnb, method, flatnb.ERM))
    for name in spaces.RANGES[method]:
        if hasattr(several, name):
            assert getattr(several, name).shape == (3,)
            assert isinstance(getattr(single, name), float)


def test_adaflood_has_the_levels_of_each_setting_and_pays_for_its_auxiliary_nets():
    settings, losses = spaces.space("AdaFlood", 3), torch.tensor([[0.1, 2.0]] * 3)
    method = spaces.build("AdaFlood", settings, losses)
    for levels, own, setting in zip(method.levels, losses, settings, strict=True):
        gamma = setting["gamma"]
        torch.testing.assert_close(levels, -((1 - gamma) * (-own).exp() + gamma).log())
    assert spaces.passes("AdaFlood") == spaces.FOLDS
    assert spaces.work("AdaFlood", 40) == 40 + spaces.FOLDS - 1
    assert (spaces.passes("SAM"), spaces.work("SAM", 40)) == (2, 80)


def test_errors_say_what_is_allowed():
    with pytest.raises(ValueError, match="allowed: ERM, AdamW"):
        spaces.space("Sam", 3)
    with pytest.raises(ValueError, match="budget=0"):
        spaces.space("SAM", 0)
    with pytest.raises(ValueError, match="allowed: lr, rho"):
        spaces.build("SAM", [{"lr": 0.1, "radius": 0.1}])
    with pytest.raises(ValueError, match="give the losses of auxiliary nets"):
        spaces.build("AdaFlood", [spaces.default("AdaFlood", 0.1)])
    with pytest.raises(ValueError, match="at least one"):
        spaces.build("SAM", [])
