"""A scatter plot whose groups of points are switched on and off, with what can be said of
those that are on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pandas as pd

from flatnb import plots
from flatnb.charts.page import about, choice, data, pick, switch

if TYPE_CHECKING:
    import altair as alt

LOOKS = ((plots.BLACK, "circle"), (plots.RED, "triangle-up"), (plots.BLUE, "square"))


def groups(
    table: pd.DataFrame,
    measures: Mapping[str, str],
    target: tuple[str, str],
    by: tuple[str, str],
    finding: Callable[[pd.DataFrame, str], str],
) -> alt.TopLevelMixin:
    """One of the measures, of columns of positive numbers with their names, against a
    target, a column with its name; a point per row of the table.

    `by` is the column of the groups, of at most three, and what its values are. The
    reader switches groups, chooses the measure, and a seed or all of them; the finding
    is of all rows of the groups that are on.
    """
    import altair as alt

    names = [f"{by[1]} {value}" for value in sorted(table[by[0]].unique())]
    members = [table[table[by[0]] == value] for value in sorted(table[by[0]].unique())]
    subsets = [
        pd.concat([part for i, part in enumerate(members) if mask >> i & 1])
        for mask in range(1, 2 ** len(members))
    ]
    findings = [
        ["All groups are off.", *(finding(subset, name) for subset in subsets)]
        for name in measures
    ]
    seeds = sorted(table["seed"].unique())
    rows = table[[*measures, target[0], "seed"]].assign(
        group=table[by[0]].rank(method="dense").astype(int) - 1,
        seed=table["seed"].map(seeds.index),
    )
    extents = [
        [0.9 * float(table[name].min()), 1.1 * float(table[name].max())]
        for name in measures
    ]
    on = [f"on{i}" for i in range(len(names))]
    mask = " + ".join(f"({name} ? {2**i} : 0)" for i, name in enumerate(on))
    params = [
        *(switch(name, label) for name, label in zip(on, names, strict=True)),
        choice("measure", list(measures.values()), "over"),
        choice("seed", ["all", *map(str, seeds)], "seed", menu=True),
        alt.param(name="extent", expr=f"{extents}[measure]"),
        alt.param(name="finding", expr=f"{pick(findings, 'measure')}[{mask}]"),
    ]
    colors, shapes = zip(*LOOKS[: len(names)], strict=True)
    extent = [alt.ExprRef(f"extent[{end}]") for end in (0, 1)]
    x = alt.Scale(type="log", domain=extent, nice=False)
    lowest, highest = table[target[0]].agg(["min", "max"])
    margin = 0.05 * float(highest - lowest)
    y = alt.Scale(domain=[float(lowest) - margin, float(highest) + margin])
    ticks = [digit * 10.0**power for power in range(-5, 5) for digit in (1, 3)]
    over = f"'{target[1]} over ' + {pick(list(measures.values()), 'measure')}"
    columns = ", ".join(f"datum.{name}" for name in measures)
    return (
        alt.Chart(data(rows))
        .transform_filter(f"[{', '.join(on)}][datum.group]")
        .transform_filter("seed == 0 || datum.seed == seed - 1")
        .transform_calculate(x=f"[{columns}][measure]", name=pick(names, "datum.group"))
        .mark_point(filled=True, opacity=0.75, size=70)
        .encode(
            x=alt.X(
                "x:Q", title=None, scale=x, axis=alt.Axis(format="~g", values=ticks)
            ),
            y=alt.Y(f"{target[0]}:Q", title=None, scale=y),
            color=alt.Color("name:N", scale=alt.Scale(domain=names, range=colors)),
            shape=alt.Shape("name:N", scale=alt.Scale(domain=names, range=shapes)),
            tooltip=[
                alt.Tooltip("name:N", title=" "),
                *(
                    alt.Tooltip(f"{name}:Q", title=title, format=".3g")
                    for name, title in (*measures.items(), target)
                ),
            ],
        )
        .properties(
            title=alt.TitleParams(alt.ExprRef(over)),
            width="container",
            height=280,
            description=f"The {target[1]} of nets over a measure of them.",
            usermeta=about(
                "Switch groups off, or look at one seed: what does the sign depend on?",
                say="finding",
            ),
        )
        .add_params(*params)
    )
