"""Where figures are cut into columns: through white, between axes, labels kept."""

from __future__ import annotations

import base64
import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from flatnb import plots
from flatnb.book import figures, panels


def drawn(
    columns: int, rows: int = 1, points: int = 5, **options: Any
) -> dict[str, str]:
    """The output of a cell that draws so many axes; options are of `plt.subplots`, or
    title, bar (a color bar at the right), legend (one of all axes), without_last."""
    names = ("title", "bar", "legend", "without_last")
    title, bar, legend, without_last = (options.pop(name, None) for name in names)
    with plt.rc_context():
        plots.use_style()
        fig, axes = plt.subplots(
            rows, columns, figsize=(8, 3), squeeze=False, **options
        )
        for ax in axes.flat:
            shown = ax.scatter(*np.random.default_rng(0).random((2, points)), label="a")
            ax.set(xlabel="steps", title=title or "words")
        for ax in axes[:, 0]:
            ax.set_ylabel("loss")
        if without_last:
            axes[-1, -1].clear()
            axes[-1, -1].set_axis_off()
        if bar:
            fig.colorbar(shown, ax=axes[:, -1])
        if legend:
            fig.legend(*axes[0, 0].get_legend_handles_labels(), loc=legend)
        files = {kind: io.BytesIO() for kind in ("svg", "png")}
        for kind, file in files.items():
            fig.savefig(file, format=kind, dpi=192, bbox_inches="tight")
        plt.close(fig)
    return {
        "image/svg+xml": files["svg"].getvalue().decode(),
        "image/png": base64.b64encode(files["png"].getvalue()).decode(),
    }


def found(bundle: dict[str, str]) -> tuple[list[list[panels.Part]], np.ndarray]:
    """Its columns, and which columns of its pixels are white."""
    png = base64.b64decode(bundle["image/png"])
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    return panels.found(bundle["image/svg+xml"], png), (pixels >= 250).all(axis=0)


@pytest.mark.parametrize("columns", [2, 3, 4])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(
    "options", [{}, {"sharey": True}, {"bar": True}, {"sharey": True, "bar": True}]
)
def test_every_cut_is_through_white(
    columns: int, rows: int, options: dict[str, bool]
) -> None:
    parts, white = found(drawn(columns, rows, **options))
    assert len(parts) == columns
    own = [column[-1] for column in parts]
    assert own[0].start == 0 and own[-1].end == 1
    for one, other in pairwise(own):
        place = round(one.end * len(white))
        assert one.end == other.start and white[place - 2 : place + 3].all()


def test_beside_a_column_of_fewer_axes_labels_end_with_its_last() -> None:
    parts, _ = found(drawn(3, rows=2, sharey=True, without_last=True))
    assert 0.3 < parts[2][0].floor < 0.6
    assert parts[1][0].floor > 0.8


def test_columns_without_labels_of_their_own_get_those_of_the_first() -> None:
    parts, white = found(drawn(3, sharey=True))
    assert [len(column) for column in parts] == [1, 2, 2]
    labels = parts[1][0]
    assert labels == parts[2][0] and labels.start == 0
    assert 0.5 < labels.floor < 1, "not the tick labels of the other axis"
    assert not white[: round(labels.end * len(white))].all(), "nothing is in it"
    parts, _ = found(drawn(3))
    assert [len(column) for column in parts] == [1, 1, 1]


def test_a_label_stays_with_its_axes() -> None:
    """Also where more room is at its other side: left of the ticks of the second axes,
    right of the color bar of the first."""
    with plt.rc_context():
        plots.use_style()
        fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
        shown = left.scatter([0, 1], [0, 1])
        bar = fig.colorbar(shown, ax=left)
        bar.set_label("of the bar", labelpad=25)
        right.plot([0, 1])
        right.set_ylabel("of the right", labelpad=25)
        files = {kind: io.BytesIO() for kind in ("svg", "png")}
        for kind, file in files.items():
            fig.savefig(file, format=kind, dpi=192, bbox_inches="tight")
        box, scale = fig.get_tightbbox(), fig.bbox.width / 8
        labels = bar.ax.yaxis.label, right.yaxis.label
        ends = [[x / scale for x in t.get_window_extent().intervalx] for t in labels]
        plt.close(fig)
    parts = panels.found(files["svg"].getvalue().decode(), files["png"].getvalue())
    ((_, cut, _),), _ = parts
    place = box.x0 - 0.06 + cut * (box.width + 0.12)  # inches; about, for its padding
    assert ends[0][1] < place < ends[1][0]


@pytest.mark.parametrize(
    ("columns", "options"),
    [(1, {}), (1, {"bar": True}), (2, {"title": "long words " * 12})],
)
def test_what_cannot_be_cut_stays_whole(columns: int, options: dict[str, Any]) -> None:
    assert found(drawn(columns, **options))[0] == []


def test_a_legend_beside_the_axes_is_no_column() -> None:
    assert len(found(drawn(2, legend="outside right"))[0]) == 2


@pytest.mark.parametrize(("points", "suffix"), [(5, ".svg"), (5000, ".png")])
def test_the_file_states_its_columns(points: int, suffix: str, tmp_path: Path) -> None:
    """In the vector figure, and in the pixels that one of many points becomes."""
    bundle = drawn(2, points=points, sharey=True)
    kept = figures.smaller(bundle)
    path = tmp_path / f"figure{suffix}"
    if suffix == ".svg":
        path.write_text(kept["image/svg+xml"])
    else:
        path.write_bytes(base64.b64decode(kept["image/png"]))
    stated, wanted = panels.of(path), found(bundle)[0]
    assert [len(column) for column in stated] == [1, 2]
    for column, other in zip(stated, wanted, strict=True):
        np.testing.assert_allclose(column, other, rtol=1e-3)


def test_a_figure_that_states_none_has_none(tmp_path: Path) -> None:
    bundle = figures.smaller(drawn(1))
    (tmp_path / "one.svg").write_text(bundle["image/svg+xml"])
    assert panels.of(tmp_path / "one.svg") == []
    Image.new("RGB", (5, 5)).save(tmp_path / "two.png")
    assert panels.of(tmp_path / "two.png") == []
