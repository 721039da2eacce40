"""Charts: what is written into a page, and that their numbers are the library's."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib

matplotlib.use("Agg")

import altair as alt
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from PIL import Image

from flatnb import charts, plots, report
from flatnb.charts import board as boards
from flatnb.charts import page as pages
from flatnb.charts.regions import CLASSES, picture
from flatnb.results import records, scoreboard, verdicts

ROOT = Path(__file__).resolve().parents[1]


def chart() -> alt.Chart:
    """A chart of two points, one of which is seen."""
    table = pd.DataFrame(
        {"level": [0, 1], "loss": [1 / 3, 2.0], "name": ["a</b>", "ü"]}
    )
    seen = alt.Chart(charts.data(table)).mark_point(color=plots.RED)
    return (
        seen.transform_filter("datum.level == level")
        .encode(x="loss:Q", y="name:N")
        .add_params(charts.choice("level", ["none", "one"], "flood level"))
        .properties(
            width="container",
            description="Two points.",
            usermeta=charts.about("Choose one."),
        )
    )


def written(text: str) -> dict[str, Any]:
    """What a page holds of a chart."""
    found = re.fullmatch(
        r'<script type="application/json" class="play-data">(.*)</script>', text
    )
    assert found is not None
    return json.loads(found[1])


def columns(page: dict[str, Any]) -> dict[str, list[Any]]:
    """The largest of the tables of a chart in a page."""
    tables = [part["values"] for part in page["vega"]["data"] if "values" in part]
    return max(tables, key=lambda table: len(str(table)))


def test_a_page_has_the_words_the_choices_and_the_rows_of_a_chart() -> None:
    page = written(charts.script(chart()))
    assert (page["label"], page["how"]) == ("Two points.", "Choose one.")
    (param,) = page["params"]
    assert param["value"] == 0
    assert param["bind"]["labels"] == ["none", "one"]
    assert param["bind"]["name"] == "flood level"
    assert columns(page) == {
        "level": [0, 1],
        "loss": [0.3333, 2],
        "name": ["a</b>", "ü"],
    }
    assert any(signal["name"] == "level" for signal in page["vega"]["signals"])


def test_a_page_names_colors_that_it_has() -> None:
    text = charts.script(chart().configure(**pages.STYLE))
    assert '"var(--flatnb-red)"' in text
    assert not re.search(r'"#[0-9A-Fa-f]{6}"', text)
    styles = (ROOT / "book" / "_static" / "custom.css").read_text(encoding="utf-8")
    for name, color in pages.COLORS.items():
        assert f"--flatnb-{name}: {color.lower()};" in styles


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a notebook shows, of which a figure is the current one."""
    found: list[Any] = []
    screen = SimpleNamespace(HTML=str, display=found.append)
    monkeypatch.setattr(pages, "_screen", lambda: screen)
    monkeypatch.setattr(plt, "show", lambda: found.append("figure"))
    monkeypatch.delenv(pages.PAGE, raising=False)
    plt.close("all")
    plt.figure()
    return found


def test_a_page_has_chart_and_figure(
    outputs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(pages.PAGE, "1")
    charts.show(chart)
    assert outputs == [charts.script(chart().configure(**pages.STYLE)), "figure"]


def test_a_notebook_shows_the_chart_alone(outputs: list[Any]) -> None:
    charts.show(chart)
    (live,) = outputs
    assert live.to_dict()["config"]["background"] == "#FFFFFF"
    assert plt.get_fignums() == []


def test_without_altair_there_is_the_figure(
    outputs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "find_spec", lambda name: None)
    charts.show(lambda: pytest.fail("draws a chart"))
    assert outputs == ["figure"]


def test_where_nothing_shows_a_chart_there_is_the_figure(
    outputs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_screen", lambda: None)
    charts.show(lambda: pytest.fail("draws a chart"))
    assert outputs == ["figure"]


# --- the scoreboard -----------------------------------------------------------------


@pytest.fixture(scope="module")
def views() -> pd.DataFrame:
    rules = scoreboard.rules("plane/spiral-*/*/narrow-tuned", "none/*", "none/*")
    return scoreboard.views(rules, ["ERM", "EMA"])


@pytest.fixture(scope="module")
def board(views: pd.DataFrame) -> dict[str, Any]:
    return written(charts.script(charts.scoreboard(views)))


def view(board: dict[str, Any], **chosen: str) -> pd.DataFrame:
    """The rows of the chart that a reader sees after choosing, by method."""
    rows = pd.DataFrame(columns(board))
    for param in board["params"]:
        if param["name"] in chosen:
            index = param["bind"]["labels"].index(chosen[param["name"]])
            rows = rows[rows[param["name"]] == index]
    return rows.set_index("method")


@pytest.mark.parametrize(
    ("metric", "label", "worth"),
    [
        ("test_accuracy", "accuracy", verdicts.WORTH),
        ("test_loss", "loss", None),
        ("test_ece", "calibration", None),
    ],
)
@pytest.mark.parametrize("baseline", ["ERM", "EMA"])
def test_the_chart_says_what_the_verdicts_say(
    board: dict[str, Any], metric: str, label: str, worth: float | None, baseline: str
) -> None:
    shown = view(
        board,
        rule="tuned, constant",
        metric=label,
        place="spiral, three sets",
        baseline=baseline,
    )
    tests = verdicts.gains("plane/spiral-*/*/narrow-tuned", metric, worth, baseline)
    tests = tests.rename(index=report.NAMES)
    assert set(shown.index) == set(tests.index)
    tests = tests.loc[shown.index]
    scale = 100 if metric in ("test_accuracy", "test_ece") else 1
    better = 1 if metric == "test_accuracy" else -1
    for name, value in (
        ("gain", better * scale * tests["difference"]),
        ("interval", scale * tests["interval"]),
        ("p", tests["p_holm"]),
    ):
        assert shown[name].tolist() == pytest.approx(value.tolist(), rel=1e-3)
    words = shown["verdict"].map(list(boards.VERDICTS).__getitem__)
    assert words.tolist() == tests["verdict"].tolist()
    assert shown["n"].tolist() == tests["n"].tolist()
    assert "at an edge" in words.tolist()  # no verdict there, however large the gain


def test_what_is_not_recorded_is_said(views: pd.DataFrame) -> None:
    lost = views["metric"].eq("test_ece") & views["baseline"].eq("EMA")
    page = written(charts.script(charts.scoreboard(views[~lost])))
    rows = view(page, metric="calibration", baseline="EMA")
    assert set(rows.index) == {boards.NOT_RECORDED}
    assert rows["gain"].isna().all()
    assert len(rows) == len(
        view(page, metric="loss", baseline="EMA").groupby(["rule", "place"])
    )


def test_every_verdict_has_a_look_of_its_own(views: pd.DataFrame) -> None:
    assert set(views["verdict"]) <= set(boards.VERDICTS)
    shapes = [shape for _, shape in boards.VERDICTS.values()]
    assert len(set(shapes)) == len(shapes)


# --- double descent -----------------------------------------------------------------

RECORD = "double-descent/mnist1d-n4000/Flooding"


@pytest.fixture(scope="module")
def descent() -> dict[str, Any]:
    return written(charts.script(charts.descent(records.load(RECORD))))


@pytest.mark.parametrize(
    ("quantity", "name"), [(0, "test_loss"), (1, "test_error"), (2, "train_loss")]
)
def test_the_curves_are_those_of_the_record(
    descent: dict[str, Any], quantity: int, name: str
) -> None:
    record = records.load(RECORD)
    curves = {key: np.array(t) for key, t in record["curves"]["all"].items()}
    curves["test_error"] = 100 * (1 - curves["test_accuracy"])
    rows = pd.DataFrame(columns(descent))
    rows = rows[rows["quantity"] == quantity]
    levels = [setting["level"] for setting in record["settings"]]
    assert len(rows) == len(levels) * (len(record["curves"]["epochs"]) - 1)
    for level in (0, levels.index(0.2)):
        shown = rows[rows["level"] == level]
        seeds = curves[name][level, :, 1:]
        half = scipy.stats.sem(seeds) * scipy.stats.t.ppf(0.975, len(seeds) - 1)
        assert shown["epoch"].tolist() == record["curves"]["epochs"][1:]
        assert shown["mean"].to_numpy() == pytest.approx(seeds.mean(0), rel=1e-3)
        assert shown["low"].to_numpy() == pytest.approx(seeds.mean(0) - half, rel=1e-3)
        assert shown["high"].to_numpy() == pytest.approx(seeds.mean(0) + half, rel=1e-3)


def test_the_sentences_are_of_the_ends_and_of_the_lowest_test_loss(
    descent: dict[str, Any],
) -> None:
    record = records.load(RECORD)
    loss = np.array(record["curves"]["all"]["test_loss"]).mean(1)
    stop = loss[0].argmin()
    level = [setting["level"] for setting in record["settings"]].index(0.2)
    (finding,) = (s for s in descent["vega"]["signals"] if s["name"] == descent["say"])
    sentences = json.loads(
        finding["update"].partition("[quantity]")[0].replace("'", '"')
    )
    text = sentences[0][level]
    assert f"At b = 0.2 the test loss ends at {loss[level, -1]:.2f}" in text
    assert f"Plain training ends at {loss[0, -1]:.2f}" in text
    assert f"had {loss[0, stop]:.2f}" in text
    assert f"after {record['curves']['epochs'][stop]} epochs" in text
    assert "At b" not in sentences[0][0]
    assert descent["words"]["level"][level] == "b = 0.2 nats"


# --- spectra ------------------------------------------------------------------------


def test_the_spectra_are_those_given_and_not_below_the_floor() -> None:
    values = {
        "GD": np.array([[3.0, 2.0], [3.0, 1.0]]),
        "NSO": np.array([[2, 0.5], [2, 0]]),
    }
    chart = charts.spectra(values, [2.5], [0, 1500], ["first", "last"], floor=0.01)
    page = written(charts.script(chart))
    rows = pd.DataFrame(columns(page))
    for name, matrix in values.items():
        for step in (0, 1):
            shown = rows[(rows["name"] == name) & (rows["step"] == step)]
            assert shown["place"].tolist() == [1, 2]
            assert shown["value"].tolist() == matrix[step].clip(0.01).tolist()
    assert {"place": [1], "value": [2.5]} in [
        part.get("values") for part in page["vega"]["data"]
    ]
    assert page["words"]["step"] == ["0", "1,500"]
    assert page["params"][0]["value"] == 1  # the last step, as in the picture
    (finding,) = (s for s in page["vega"]["signals"] if s["name"] == page["say"])
    assert finding["update"] == '["first", "last"][step]'


# --- groups -------------------------------------------------------------------------


def said(page: dict[str, Any], **values: Any) -> str:
    """The sentence of a chart for some values of its parameters."""
    (finding,) = (s for s in page["vega"]["signals"] if s["name"] == page["say"])
    script = finding["update"]
    for name, value in values.items():
        script = re.sub(rf"\b{name}\b(?!\")", str(value), script)
    script = re.sub(r"\((\w+) \? (\d+) : 0\)", r"(\2 if \1 else 0)", script)
    return eval(script)


def test_the_sentence_is_of_the_groups_that_are_on() -> None:
    table = pd.DataFrame(
        {
            "batch": [15, 15, 50, 50, 50],
            "seed": [3, 4, 3, 4, 4],
            "kappa": [1.0, 2.0, 3.0, 4.0, 5.0],
            "norm": [5.0, 4.0, 3.0, 2.0, 1.0],
            "gap": [-0.5, 0.0, 0.25, 0.5, 1 / 3],
        }
    )
    chart = charts.groups(
        table,
        {"kappa": "κ", "norm": "norm", "gap": "loss gap"},
        [("kappa", "gap"), ("norm", "kappa")],
        by=("batch", "batch size"),
        finding=lambda nets, x, y: f"{x} and {y} of {nets['batch'].tolist()}",
    )
    page = written(charts.script(chart))
    assert [param["bind"]["name"] for param in page["params"][:2]] == [
        "batch size 15",
        "batch size 50",
    ]
    on = {"on0": True, "on1": True}
    assert said(page, view=0, **on) == "kappa and gap of [15, 15, 50, 50, 50]"
    assert said(page, view=1, **on | {"on0": False}) == "norm and kappa of [50, 50, 50]"
    assert said(page, view=1, **on | {"on1": False}) == "norm and kappa of [15, 15]"
    assert said(page, view=0, on0=False, on1=False) == "All groups are off."
    titles = page["params"][2]["bind"]["labels"]
    assert titles == ["loss gap over κ", "κ over norm"]
    rows = pd.DataFrame(columns(page))
    assert rows["group"].tolist() == [0, 0, 1, 1, 1]
    assert rows["seed"].tolist() == [0, 1, 0, 1, 1]
    for name in ("kappa", "norm", "gap"):
        assert rows[name].tolist() == pytest.approx(table[name].tolist(), abs=1e-4)


# --- decision regions ---------------------------------------------------------------


def test_a_picture_has_the_color_of_the_likelier_class() -> None:
    chance = np.array([[0.0, 0.25, 0.5], [1.0, 0.75, 0.5]])  # rows: x2 from below
    head, _, body = picture(chance).partition(",")
    assert head == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(body))).convert("RGBA")
    pixels = np.array(image)[::-1]
    gold, blue = (
        [int(color[i : i + 2], 16) for i in (1, 3, 5)] for color, _ in CLASSES.values()
    )
    assert pixels[0, :2, :3].tolist() == [gold, gold]
    assert pixels[1, :2, :3].tolist() == [blue, blue]
    opacity = pixels[..., 3]
    assert (opacity[:, 2] == 0).all()  # undecided: the page is seen
    assert (
        opacity[0, 0] == opacity[1, 0] == 2 * opacity[0, 1] == 2 * opacity[1, 1] > 100
    )


def test_every_set_method_and_setting_has_its_net() -> None:
    ramp = np.linspace(0, 1, 9)
    corners = ([-1.0, 0.0], [1.0, 4.0])
    sets = {
        name: charts.Points(
            np.array([[0.0, 1.0], [0.5, 2.0]]), np.array([0, 1]), corners
        )
        for name in ("gaussian", "spiral")
    }
    nets = {
        name: {
            method: [
                charts.Region(
                    np.tile(ramp**power, (5, 1)), f"{method} {power}", f"on {name}"
                )
                for power in (1, 2, 3)
            ]
            for method in ("ERM", "SAM")
        }
        for name in sets
    }
    page = written(charts.script(charts.regions(sets, nets, at=1)))
    assert page["params"][-1]["value"] == 1
    assert said(page, set=1, method=0, setting=2) == "on spiral"
    tables = {
        key: pd.DataFrame(part["values"])
        for part in page["vega"]["data"]
        if "values" in part
        for key in ("url", "part", "label")
        if key in part["values"]
    }
    assert tables["url"]["net"].tolist() == list(range(12))
    grids = [net.chance for s in sets for m in nets[s] for net in nets[s][m]]
    assert tables["url"]["url"].tolist() == [picture(grid) for grid in grids]
    line = tables["part"]
    for net, power in ((0, 1), (4, 2), (11, 3)):
        across = line[line["net"] == net]["x1"].to_numpy()
        assert across == pytest.approx(-1 + 2 * 0.5 ** (1 / power), abs=0.02)
    assert (line["x2"].min(), line["x2"].max()) == (0, 4)
    assert tables["label"]["set"].tolist() == [0, 0, 1, 1]
    assert tables["label"]["label"].tolist() == ["class 0", "class 1"] * 2
