"""Spectra as a chart: the eigenvalues of several matrices, one step of training at a
time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from flatnb import plots
from flatnb.charts.page import about, data, pick, slider

if TYPE_CHECKING:
    import altair as alt
    from numpy.typing import ArrayLike

SHAPES = ("circle", "diamond", "square", "triangle-up")


def spectra(
    spectra: Mapping[str, ArrayLike],
    truth: ArrayLike,
    steps: Sequence[int],
    findings: Sequence[str],
    floor: float,
) -> alt.TopLevelMixin:
    """Eigenvalues over their order, for each name an array (steps, d); what is below the
    floor is drawn there.

    The reader moves the step, at first the last one, and reads its finding. Rings are
    the eigenvalues of the truth.
    """
    import altair as alt

    names = list(spectra)
    parts = []
    for name, values in spectra.items():
        drawn = np.clip(values, floor, None)
        place = np.arange(1, drawn.shape[1] + 1)
        for step, row in enumerate(drawn):
            part = pd.DataFrame({"place": place, "value": row})
            parts.append(part.assign(step=step, name=name))
    rows = pd.concat(parts)
    top = float(max(rows["value"].max(), np.max(truth)))
    colors = [plots.color(name) for name in names]
    linear = alt.Scale(nice=False, zero=False)
    log = alt.Scale(type="log", domain=[floor, top], nice=False)
    x = alt.X("place:Q", title="eigenvalue, in order", scale=linear)
    y = alt.Y("value:Q", title=None, scale=log, axis=alt.Axis(format="~g", tickCount=5))
    color = alt.Color("name:N", scale=alt.Scale(domain=names, range=colors))
    shape = alt.Shape(
        "name:N", scale=alt.Scale(domain=names, range=list(SHAPES[: len(names)]))
    )
    tooltip = ["name:N", "place:Q", alt.Tooltip("value:Q", format=".2g")]
    true = pd.DataFrame({"place": range(1, np.size(truth) + 1), "value": truth})
    curves = alt.Chart().transform_filter("datum.step == step").encode(x=x, y=y)
    words = [f"{step:,}" for step in steps]
    title = f"'eigenvalues at step ' + {pick(words, 'step')} + '; rings: true ones'"
    return alt.layer(
        alt.Chart(data(true))
        .mark_point(size=220, color=plots.GRAY, strokeWidth=2)
        .encode(x=x, y=y, tooltip=tooltip[1:]),
        curves.mark_line(strokeWidth=1.5).encode(color=color),
        curves.mark_point(filled=True, size=45, opacity=1).encode(
            color=color, shape=shape, tooltip=tooltip
        ),
        data=data(rows),
        title=alt.TitleParams(alt.ExprRef(title)),
        width="container",
        height=260,
        description="Eigenvalues of the matrices found, by method.",
        usermeta=about(
            "Move the step: which eigenvalues does each method let go?",
            say="finding",
            step=words,
        ),
    ).add_params(
        slider("step", words, "step", len(steps) - 1),
        alt.param(name="finding", expr=pick(findings, "step")),
    )
