"""The book's sources: clean notebooks of one layout, every page there, one address."""

import ast
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from flatnb import cli, notebook, records

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = notebook.toc_files(ROOT)

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in notebook.read(path)["cells"] if cell["cell_type"] == "code"]


def draws(source: str) -> bool:
    """Whether a cell opens a figure."""
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func) in {"plt.subplots", "plt.figure", "plt.subplot_mosaic"}
        for node in ast.walk(ast.parse(source))
    )


def test_every_notebook_is_a_page_once() -> None:
    assert NOTEBOOKS
    in_toc = Counter(ROOT / page for page in PAGES if page.suffix == ".ipynb")
    assert in_toc == Counter(NOTEBOOKS)


def test_settings_name_files_that_are_there() -> None:
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    sphinx = config["sphinx"]["config"]
    for name in config["bibtex_bibfiles"] + sphinx["html_static_path"]:
        assert (ROOT / name).exists(), name
    for name in sphinx["html_css_files"]:
        assert any((ROOT / folder / name).is_file() for folder in sphinx["html_static_path"]), name


@each
def test_sources_hold_no_trace_of_a_run(path: Path) -> None:
    clean = cli.stripped(path) == notebook.dump(notebook.read(path))
    assert clean, f"{path.name} holds outputs, counts or traces: run `flatnb clean`"


@each
def test_opening_is_title_first_cell_parameters(path: Path) -> None:
    title, first, parameters = notebook.read(path)["cells"][:3]
    assert title["cell_type"] == "markdown" and notebook.text_of(title).startswith("# ")
    assert first["metadata"]["tags"] == ["bootstrap", "hide-input"]
    assert "parameters" in parameters["metadata"]["tags"]
    declared = list(notebook.parameters(path).values())
    assert (declared[0].name, declared[0].type, declared[0].default) == ("profile", "str", "laptop")
    assert all(one.help for one in declared), "a parameter without help"


@each
def test_first_cell_is_the_one_text_with_the_address_of_the_settings(path: Path) -> None:
    (cell,) = notebook.tagged(notebook.read(path), "bootstrap")
    assert notebook.text_of(cell) == notebook.bootstrap(*notebook.address(ROOT)), (
        f"{path.name}: run `flatnb address`"
    )


@each
def test_kernel_is_any_python(path: Path) -> None:
    kernel = notebook.read(path)["metadata"]["kernelspec"]
    assert (kernel["name"], kernel["language"]) == ("python3", "python")


@each
def test_cells_are_few_and_short_and_have_names_of_their_own(path: Path) -> None:
    cells = notebook.read(path)["cells"]
    assert len(cells) < 30
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in code_cells(path):
        lines = notebook.text_of(cell).splitlines()
        assert len(lines) <= 20, f"{path.name}: {len(lines)} lines from {lines[0]!r}"


@each
def test_no_cell_needs_colab_or_the_network_or_ipython(path: Path) -> None:
    for cell in code_cells(path):
        tree = ast.parse(notebook.text_of(cell))  # no magic, no shell line
        names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not names & {"myst_nb", "google.colab"}


@each
def test_figures_have_words_caption_and_name(path: Path) -> None:
    for cell in code_cells(path):
        source = notebook.text_of(cell)
        if draws(source) or "mystnb" in cell["metadata"]:
            shown = cell["metadata"].get("mystnb", {})
            for part, name in (("image", "alt"), ("figure", "caption"), ("figure", "name")):
                value = shown.get(part, {}).get(name, "")
                assert value.strip(), f"{path.name}: no {name} at {source[:60]!r}"
            assert shown["figure"]["name"].startswith("fig-")


def test_figures_have_different_names() -> None:
    shown = [c["metadata"].get("mystnb", {}) for path in NOTEBOOKS for c in code_cells(path)]
    names = Counter(one["figure"]["name"] for one in shown if "figure" in one)
    assert [name for name, count in names.items() if count > 1] == []


@each
def test_the_last_section_says_what_is_not_shown(path: Path) -> None:
    text = "\n".join(
        notebook.text_of(cell)
        for cell in notebook.read(path)["cells"]
        if cell["cell_type"] == "markdown"
    )
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings[-1] == "## What this does not show"


@each
def test_declared_records_are_there(path: Path) -> None:
    assert set(notebook._records(path, notebook.read(path))) <= set(records.names())


def test_every_record_is_of_the_form() -> None:
    for name in records.names():
        records.load(name)


@each
def test_numbers_in_notebooks_are_those_of_their_records(path: Path) -> None:
    """A number before a marker `<!-- record: name:key.path -->`: see flatnb/records.py."""
    for cell in notebook.read(path)["cells"]:
        if cell["cell_type"] == "markdown":
            assert records.faults(notebook.text_of(cell)) == [], cell["id"]


@pytest.mark.parametrize("path", sorted((ROOT / "book").glob("*.md")), ids=lambda path: path.stem)
def test_numbers_in_prose_are_those_of_their_records(path: Path) -> None:
    assert records.faults(path.read_text(encoding="utf-8")) == []
