"""A scatter plot whose groups of points are switched on and off, with what can be said of
those that are on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from flatnb import plots
from flatnb.charts.page import about, choice, data, pick, switch

if TYPE_CHECKING:
    import altair as alt

LOOKS = ((plots.BLACK, "circle"), (plots.RED, "triangle-up"), (plots.BLUE, "square"))


def groups(
    table: pd.DataFrame,
    names: Mapping[str, str],
    views: Sequence[tuple[str, str]],
    by: tuple[str, str],
    finding: Callable[[pd.DataFrame, str, str], str],
) -> alt.TopLevelMixin:
    """Rows of a table as points: two of its columns, as a view says, x and y.

    `names` are those of the columns, of which x has positive numbers; `by` is the column
    of the groups, of at most three, and its name. The reader switches groups, chooses
    the view, and a seed or all of them. The finding is of all rows of the groups that
    are on, x and y.
    """
    import altair as alt

    values = sorted(table[by[0]].unique())
    labels = [f"{by[1]} {value}" for value in values]
    on = [f"on{i}" for i in range(len(values))]
    mask = " + ".join(f"({name} ? {2**i} : 0)" for i, name in enumerate(on))
    seeds = sorted(table["seed"].unique())
    titles = [f"{names[y]} over {names[x]}" for x, y in views]
    params = [
        *(switch(name, label) for name, label in zip(on, labels, strict=True)),
        choice("view", titles, "points"),
        choice("seed", ["all", *map(str, seeds)], "seed", menu=True),
        alt.param(name="extent", expr=f"{_extents(table, views)}[view]"),
        alt.param(
            name="finding",
            expr=f"{pick(_findings(table, views, by[0], finding), 'view')}[{mask}]",
        ),
    ]
    rows = table[list(names)].assign(
        group=table[by[0]].map(values.index), seed=table["seed"].map(seeds.index)
    )
    colors, shapes = zip(*LOOKS[: len(values)], strict=True)
    ends = [[alt.ExprRef(f"extent[{axis}][{i}]") for i in (0, 1)] for axis in (0, 1)]
    log = alt.Scale(type="log", domain=ends[0], nice=False)
    ticks = [digit * 10.0**power for power in range(-5, 5) for digit in (1, 3)]
    drawn = {
        name: f"[{', '.join(f'datum.{view[axis]}' for view in views)}][view]"
        for axis, name in enumerate("xy")
    }
    tooltip = [alt.Tooltip("name:N", title="of")]
    tooltip += [alt.Tooltip(f"{c}:Q", title=n, format=".3g") for c, n in names.items()]
    return (
        alt.Chart(data(rows))
        .transform_filter(f"[{', '.join(on)}][datum.group]")
        .transform_filter("seed == 0 || datum.seed == seed - 1")
        .transform_calculate(**drawn, name=pick(labels, "datum.group"))
        .mark_point(filled=True, opacity=0.75, size=70)
        .encode(
            x=alt.X(
                "x:Q", title=None, scale=log, axis=alt.Axis(format="~g", values=ticks)
            ),
            y=alt.Y("y:Q", title=None, scale=alt.Scale(domain=ends[1], nice=False)),
            color=alt.Color("name:N", scale=alt.Scale(domain=labels, range=colors)),
            shape=alt.Shape("name:N", scale=alt.Scale(domain=labels, range=shapes)),
            tooltip=tooltip,
        )
        .properties(
            title=alt.TitleParams(alt.ExprRef(pick(titles, "view"))),
            width="container",
            height=280,
            description="Points for nets, in groups.",
            usermeta=about(
                "Switch groups off, or look at one seed: what does the sign depend on?",
                say="finding",
            ),
        )
        .add_params(*params)
    )


def _extents(
    table: pd.DataFrame, views: Sequence[tuple[str, str]]
) -> list[list[list[float]]]:
    """Of each view the ends of both axes, all points inside; x is on a logarithmic one."""
    found = []
    for x, y in views:
        lows, highs = table[[x, y]].min(), table[[x, y]].max()
        margin = 0.05 * (highs[y] - lows[y])
        ends = [0.9 * lows[x], 1.1 * highs[x]], [lows[y] - margin, highs[y] + margin]
        found.append([[float(f"{end:.4g}") for end in axis] for axis in ends])
    return found


def _findings(
    table: pd.DataFrame,
    views: Sequence[tuple[str, str]],
    by: str,
    finding: Callable[[pd.DataFrame, str, str], str],
) -> list[list[str]]:
    """Of each view a sentence for each set of groups, whose index has a bit per group."""
    members = [group for _, group in table.groupby(by)]
    found: list[list[str]] = [["All groups are off."] for _ in views]
    for mask in range(1, 2 ** len(members)):
        chosen = [group for i, group in enumerate(members) if mask >> i & 1]
        for sentences, (x, y) in zip(found, views, strict=True):
            sentences.append(finding(pd.concat(chosen), x, y))
    return found
