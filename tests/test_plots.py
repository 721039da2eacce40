"""The figures' style: palette, intervals, bands and differences."""

import itertools

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from flatnb import methods, plots
from flatnb.experiments import tuning

# Colour blindness of full severity as a map of linear RGB (Machado, Oliveira, Fernandes
# 2009).
SIGHT = {
    "full": np.eye(3),
    "protan": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deutan": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritan": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
NEAR = 55  # in CIELAB: the two blues lie at 53
LOOKS = {name: look for name, look in tuning.LOOKS.items() if look is not None}
COLORS = sorted(plots.PALETTE.values())
METHODS = ("ERM", "Flooding", "IFlood", "SoftAD", "SAM", "ASAM", "GNP", "NSO")
METHODS += ("WeightNoise", "FAM")  # of chapter 12


def linear(color: str) -> np.ndarray:
    """sRGB to linear RGB."""
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def cielab(rgb: np.ndarray) -> np.ndarray:
    """Linear RGB to CIELAB under D65."""
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    xyz = to_xyz @ rgb.clip(0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


@pytest.mark.parametrize("sight", SIGHT)
def test_colors_stay_apart_for_every_eye(sight):
    seen = [cielab(SIGHT[sight] @ linear(color)) for color in COLORS]
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(distances) > 15


@pytest.mark.parametrize("color", [*COLORS, plots.GRAY])
def test_colors_contrast_with_the_white_ground(color):
    luminance = linear(color) @ np.array([0.2126, 0.7152, 0.0722])
    assert 1.05 / (luminance + 0.05) >= 3  # WCAG 2.1, graphics


def test_methods_of_one_color_differ_in_line_and_marker():
    for a, b in itertools.combinations(LOOKS.values(), 2):
        if a.color == b.color:
            assert a.dash != b.dash
            assert a.marker != b.marker


def test_methods_of_near_colors_differ_in_marker():
    """In a small mark, two blues are one."""
    for a, b in itertools.combinations(LOOKS.values(), 2):
        lab = [cielab(linear(plots.PALETTE[look.color])) for look in (a, b)]
        if np.linalg.norm(lab[0] - lab[1]) < NEAR:
            assert a.marker != b.marker


def test_no_two_methods_are_drawn_alike_by_any_name():
    drawn = {name: (plots.color(name), plots.marker(name)) for name in LOOKS}
    assert len(set(drawn.values())) == len(drawn)
    for name, look in drawn.items():
        prose = plots.named(name)
        assert look == (plots.color(prose), plots.marker(prose)), name


def test_a_name_of_records_is_drawn_as_prose_has_it():
    assert plots.named("SAM-EMA, 70 epochs") == "SAM + EMA, 70 epochs"
    assert plots.named("SGD") == "SGD"
    assert plots.named("trace penalty") == "trace penalty"
    assert plots.line("GD, small start") == plots.line("ERM")


def test_what_the_scoreboard_compares_has_a_color_each():
    colors = [plots.color(name) for name in METHODS]
    assert len({*colors, plots.GRAY}) == len(METHODS) + 1


def test_every_method_is_declared_or_said_to_be_undeclared():
    for name in methods.__all__:
        kind = getattr(methods, name)
        if isinstance(kind, type) and issubclass(kind, methods.Method | methods.BSAM):
            declared = (name in tuning.METHODS) + (name in tuning.UNDECLARED)
            assert declared == (name != "Method"), name


def test_a_method_and_its_labels_are_drawn_alike():
    for spelled in ("SAM", "SAM(rho=0.05)", "SAM, tuned"):
        assert plots.color(spelled) == plots.PALETTE[LOOKS["SAM"].color]
        assert plots.line(spelled)["linestyle"] == LOOKS["SAM"].dash
        assert plots.marker(spelled) == LOOKS["SAM"].marker
    assert plots.color("ASAM(rho=1)") == plots.PALETTE[LOOKS["ASAM"].color]
    assert plots.marker("ASAM") != plots.marker("SAM")
    assert plots.color("SAMBA") == plots.color("") == plots.GRAY


def frame(methods=("ERM", "SAM(rho=0.1)"), repeats=4, epochs=3) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    keys = itertools.product(methods, range(repeats), range(epochs))
    return pd.DataFrame(
        [
            {"method": m, "seed": s, "epoch": e, "test_loss": rng.normal()}
            for m, s, e in keys
        ]
    )


def test_curves_draw_the_mean_of_each_method(ax):
    table = frame().sample(frac=1, random_state=0)  # any order of rows
    plots.curves(ax, table, "test_loss")
    assert {line.get_label() for line in ax.lines} == {"ERM", "SAM(rho=0.1)"}
    assert len(ax.collections) == 2  # a band each
    for line in ax.lines:
        rows = table[table.method == line.get_label()]
        np.testing.assert_allclose(
            line.get_ydata(), rows.groupby("epoch").test_loss.mean()
        )
        np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2])
        assert line.get_color() == plots.color(line.get_label())
    assert ax.get_xlabel() == "epoch"
    assert ax.get_ylabel() == "test loss"


def test_curves_keep_labels_and_take_overrides(ax):
    ax.set_ylabel("test loss [nats]")
    plots.curves(ax, frame(["SAM"]), "test_loss", color="red", label="mine")
    (line,) = ax.lines
    assert line.get_color() == "red" and line.get_label() == "mine"
    assert ax.get_ylabel() == "test loss [nats]"


def test_curves_without_a_method_column(ax):
    plots.curves(ax, frame(["ERM"]).drop(columns="method"), "test_loss")
    (line,) = ax.lines
    assert line.get_color() == plots.GRAY


def test_curves_refuse_a_ragged_table(ax):
    with pytest.raises(ValueError, match="ERM has 3 to 4 rows"):
        plots.curves(ax, frame().drop(index=0), "test_loss")


def test_band_of_one_curve_is_only_its_line(ax):
    plots.band(ax, [0, 1], [[1.0, 2.0]])
    (area,) = ax.collections
    assert sum(len(path.vertices) for path in area.get_paths()) == 0


def test_style_keeps_an_opaque_ground_and_readable_text():
    with matplotlib.rc_context():
        plots.use_style()
        settings = matplotlib.rcParams
        assert settings["savefig.facecolor"] == settings["axes.facecolor"] == "white"
        assert not settings["savefig.transparent"]
        pixels_a_point = 360 / settings["figure.figsize"][0] / 72  # on a phone
        assert settings["xtick.labelsize"] * pixels_a_point >= 9


def paired_tests(tasks, methods):
    """A table like that of `compare.paired`; the first row alone is significant."""
    rows = [
        {"task": task, "method": method, "difference": 0.1 * i, "interval": 0.05}
        for i, (task, method) in enumerate(itertools.product(tasks, methods))
    ]
    p_holm = [0.01, *[0.2] * (len(rows) - 2), np.nan]
    return pd.DataFrame(rows).assign(p_holm=p_holm)


def centers(ax):
    """Of the error bars, by position."""
    return [bar.lines[0].get_xydata()[0].tolist() for bar in ax.containers]


def test_differences_of_one_task_are_a_row_for_each_method(ax) -> None:
    tests = paired_tests("a", ("SAM", "NSO", "FAM"))
    seeds = pd.MultiIndex.from_product([["a"], [0, 1]], names=["task", "seed"])
    each = pd.DataFrame({m: [0.0, 0.3] for m in ("SAM", "NSO", "FAM")}, seeds)
    plots.differences(ax, tests, each)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["SAM", "NSO", "FAM"]
    assert centers(ax) == [pytest.approx([0.1 * i, i]) for i in range(3)]
    (star,) = ax.texts
    assert star.get_text() == "*" and star.xy == (0.0, 0)
    points = [line for line in ax.lines if line.get_marker() == "."]
    assert [line.get_xydata().tolist() for line in points] == [
        [[0.0, i], [0.3, i]] for i in range(3)
    ]


def test_differences_of_several_tasks_are_a_row_for_each_task(ax) -> None:
    plots.differences(ax, paired_tests("ab", ("SAM", "NSO")))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    places = [y for _, y in centers(ax)]
    assert places == pytest.approx([-0.25, 0.25, 0.75, 1.25])
    assert ax.get_legend_handles_labels()[1] == ["SAM", "NSO"]
    colors = [bar.lines[0].get_color() for bar in ax.containers]
    assert colors == [plots.color("SAM"), plots.color("NSO")] * 2


def test_gains_are_blue_where_better_and_marked_where_significant() -> None:
    table = pd.DataFrame(
        {
            "task": ["t", "u", "t", "u"],
            "method": ["SAM", "SAM", "NSO", "NSO"],
            "difference": [-0.1, 0.1, -0.1, 0.0],
            "p_holm": [0.01, 0.01, 0.06, np.nan],
        }
    )
    _, ax = plt.subplots()
    plots.gains(ax, table, "test_loss")
    shown = ax.images[0]
    assert shown.get_array().tolist() == [[0.1, -0.1], [0.1, 0.0]]
    assert shown.cmap(shown.norm(0.1))[:3] == pytest.approx(
        to_rgb(plots.BLUE), abs=0.01
    )
    marks = {(*map(int, line.get_xydata()[0]),): line.get_marker() for line in ax.lines}
    assert marks == {(0, 0): "^", (1, 0): "v"}
    plots.gains(ax, table, "test_accuracy")  # of which more is better
    assert ax.images[1].get_array().tolist() == [[-0.1, 0.1], [-0.1, 0.0]]
    plt.close()
