"""Double descent as a chart: Flooding at one level at a time, and plain training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flatnb import plots
from flatnb.charts.page import GRID, about, choice, data, pick, slider
from flatnb.report import plus_minus
from flatnb.results.statistics import interval

if TYPE_CHECKING:
    import altair as alt
    from numpy.typing import NDArray

# What is drawn: its name, its unit, the format of its numbers.
QUANTITIES = {
    "test_loss": ("test loss", "nats", ".2f"),
    "test_error": ("test error", "%", ".1f"),
    "train_loss": ("training loss", "nats", ".2f"),
}
PLAIN, FLOODED = "plain training", "Flooding"


def descent(record: Mapping[str, Any], at: float = 0.2) -> alt.TopLevelMixin:
    """Test loss, test error or training loss over the epochs of a record of
    `flatnb.experiments.double_descent`: mean and 95 % interval over its seeds.

    The reader moves the flood level, first `at`. Plain training, of level 0, stays; a
    dot marks where its test loss is lowest. Thin lines are the other levels.
    """
    import altair as alt

    levels = [setting["level"] for setting in record["settings"]]
    curves = _curves(record)
    names, units, _ = zip(*QUANTITIES.values(), strict=True)
    labels = [f"{name} [{unit}]" for name, unit in zip(names, units, strict=True)]
    rows = _rows(record, curves)
    drawn = rows.groupby("quantity")
    lows = [0, math.floor(drawn["low"].min()[1]), 0]  # losses from 0 on
    extents = list(map(list, zip(lows, drawn["high"].max().round(2), strict=True)))
    words = [f"b = {b:g} nats" if b else "0, plain training" for b in levels]
    title = f"{pick(labels, 'quantity')} + ', flood level ' + {pick(words, 'level')}"
    found = _findings(record, curves)
    params = [
        choice("quantity", names, "curves of the"),
        slider("level", words, "flood level", levels.index(at)),
        alt.param(name="extent", expr=f"{extents}[quantity]"),
        alt.param(name="finding", expr=f"{pick(found, 'quantity')}[level]"),
    ]
    marks = [10**power * digit for power in range(5) for digit in (1, 3)]
    log = alt.Scale(type="log", nice=False)
    x = alt.X("epoch:Q", title="epoch", scale=log, axis=alt.Axis(values=marks))
    extent = [alt.ExprRef(f"extent[{end}]") for end in (0, 1)]
    y = alt.Y("mean:Q", title=None, scale=alt.Scale(domain=extent))
    scale = alt.Scale(
        domain=[PLAIN, FLOODED], range=[plots.BLACK, plots.color("Flooding")]
    )
    dash = alt.Scale(domain=[PLAIN, FLOODED], range=[[1, 0], [6, 3]])
    legend = alt.Legend(symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=3)
    tooltip = [alt.Tooltip("method:N"), alt.Tooltip("epoch:Q")]
    tooltip += [
        alt.Tooltip(f"{name}:Q", format=".3g") for name in ("mean", "low", "high")
    ]
    base = alt.Chart().transform_filter("datum.quantity == quantity")
    shown = base.transform_filter("datum.level == 0 || datum.level == level")
    shown = shown.transform_calculate(
        method=f"datum.level == 0 ? '{PLAIN}' : '{FLOODED}'"
    ).encode(x=x, color=alt.Color("method:N", scale=scale, legend=legend))
    return alt.layer(
        base.mark_line(color=GRID, strokeWidth=1).encode(x=x, y=y, detail="level:N"),
        shown.mark_area(opacity=0.2).encode(y=alt.Y("low:Q"), y2="high:Q"),
        shown.mark_line(strokeWidth=2.5).encode(
            y=y, strokeDash=alt.StrokeDash("method:N", scale=dash), tooltip=tooltip
        ),
        shown.transform_filter("datum.level == 0 && datum.lowest")
        .mark_point(filled=True, size=90, opacity=1)
        .encode(y=y, tooltip=tooltip),
        data=data(rows),
        title=alt.TitleParams(alt.ExprRef(title)),
        width="container",
        height=260,
        description="Plain training and Flooding over the epochs.",
        usermeta=about(
            "Move the flood level: when does the curve fall again?",
            say="finding",
            level=words,
        ),
    ).add_params(*params)


def _curves(record: Mapping[str, Any]) -> dict[str, tuple[NDArray, NDArray]]:
    """Of each quantity mean and half-width over seeds, (levels, evaluations)."""
    recorded = {name: np.array(t) for name, t in record["curves"]["all"].items()}
    recorded["test_error"] = 100 * (1 - recorded["test_accuracy"])
    return {name: interval(recorded[name].swapaxes(0, 1)) for name in QUANTITIES}


def _stop(curves: Mapping[str, tuple[NDArray, NDArray]]) -> int:
    """The evaluation at which plain training's test loss is lowest, in hindsight."""
    return int(curves["test_loss"][0][0].argmin())


def _rows(
    record: Mapping[str, Any], curves: Mapping[str, tuple[NDArray, NDArray]]
) -> pd.DataFrame:
    """Codes of quantity and level, and what is drawn at each epoch but 0."""
    parts = []
    for quantity, (means, halves) in enumerate(curves.values()):
        for level, (mean, half) in enumerate(zip(means, halves, strict=True)):
            part = pd.DataFrame({"epoch": record["curves"]["epochs"], "mean": mean})
            part = part.assign(low=mean - half, high=mean + half)
            part = part.assign(quantity=quantity, level=level)
            parts.append(part.assign(lowest=part.index == _stop(curves)).iloc[1:])
    return pd.concat(parts)


def _findings(
    record: Mapping[str, Any], curves: Mapping[str, tuple[NDArray, NDArray]]
) -> list[list[str]]:
    """A sentence for each quantity and level."""
    epochs, stop = record["curves"]["epochs"], _stop(curves)
    found = []
    for (mean, half), (name, unit, spec) in zip(
        curves.values(), QUANTITIES.values(), strict=True
    ):
        ends = [
            f"{plus_minus(*numbers, spec)} {unit}"
            for numbers in zip(mean[:, -1], half[:, -1], strict=True)
        ]
        early = f"{plus_minus(mean[0, stop], half[0, stop], spec)} {unit}"
        before = (
            f"had {early} after {epochs[stop]} epochs, where its test loss is lowest."
        )
        found.append([f"Plain training ends at a {name} of {ends[0]}. It {before}"])
        for setting, end in list(zip(record["settings"], ends, strict=True))[1:]:
            flooded = f"At b = {setting['level']:g} the {name} ends at {end}."
            plain = f"Plain training ends at {ends[0]} and {before}"
            found[-1].append(f"{flooded} {plain}")
    return found
