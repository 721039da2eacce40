"""The book's sources: clean notebooks of one layout, all pages, one address; other
parameters.
"""

import ast
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import markers
import matplotlib.pyplot as plt
import numpy as np
import papermill
import pytest
import torch
import yaml
from PIL import Image
from small_book import tagged, text_of

from flatnb.book import cli, profiles, stage
from flatnb.book import run as runner
from flatnb.results import records

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = stage.toc_files(ROOT)

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in runner.read(path)["cells"] if cell["cell_type"] == "code"]


def draws(source: str) -> bool:
    """Whether a cell opens a figure."""
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func)
        in {"plt.subplots", "plt.figure", "plt.subplot_mosaic"}
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
        assert any(
            (ROOT / folder / name).is_file() for folder in sphinx["html_static_path"]
        ), name


def test_sources_hold_no_trace_of_a_run(tmp_path: Path) -> None:
    copies = [Path(shutil.copy(path, tmp_path)) for path in NOTEBOOKS]
    assert cli.main(["clean", *map(str, copies)]) == 0
    for path, copy in zip(NOTEBOOKS, copies, strict=True):
        assert path.read_bytes() == copy.read_bytes(), "run `flatnb clean`"


@each
def test_opening_is_title_first_cell_parameters_setup(path: Path) -> None:
    title, first, parameters, setup = runner.read(path)["cells"][:4]
    assert title["cell_type"] == "markdown" and text_of(title).startswith("# ")
    assert first["metadata"]["tags"] == ["bootstrap", "hide-input"]
    assert "parameters" in parameters["metadata"]["tags"]
    assert setup["metadata"]["tags"] == ["setup", "hide-input"]
    declared = list(runner.parameters(path).values())
    assert declared[0][:3] == ("profile", "str", '"laptop"')
    assert len(declared) == len(text_of(parameters).splitlines())
    for parameter in declared:
        assert parameter.inferred_type_name in runner.TYPES, parameter
        assert parameter.help, "a parameter without help"


def test_the_first_cells_are_one_text() -> None:
    """The address in it is that of _config.yml: otherwise, run `flatnb address URL`."""
    cells = [cell for path in NOTEBOOKS for cell in tagged(path, "bootstrap")]
    assert len(cells) == len(NOTEBOOKS)
    (text,) = {text_of(cell) for cell in cells}
    address = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]
    texts = stage.with_address(ROOT, address["url"], address["branch"])
    for path in texts:
        assert texts[path] == path.read_text(encoding="utf-8"), path
    assert "%" not in text and not re.search(r"^!", text, re.MULTILINE)


@each
def test_kernel_is_any_python(path: Path) -> None:
    kernel = runner.read(path)["metadata"]["kernelspec"]
    assert (kernel["name"], kernel["language"]) == ("python3", "python")


@each
def test_cells_have_names_of_their_own(path: Path) -> None:
    cells = runner.read(path)["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)


@each
def test_no_cell_needs_colab_or_the_network_or_ipython(path: Path) -> None:
    for cell in code_cells(path):
        tree = ast.parse(text_of(cell))  # no magic, no shell line
        names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not names & {"myst_nb", "google.colab"}


@each
def test_figures_have_words_caption_and_name(path: Path) -> None:
    for cell in code_cells(path):
        source, shown = text_of(cell), cell["metadata"].get("mystnb", {})
        if draws(source) or {"image", "figure"} & shown.keys():
            for part, name in (
                ("image", "alt"),
                ("figure", "caption"),
                ("figure", "name"),
            ):
                value = shown.get(part, {}).get(name, "")
                assert value.strip(), f"{path.name}: no {name} at {source[:60]!r}"
            assert shown["figure"]["name"].startswith("fig-")


def test_figures_have_different_names() -> None:
    shown = [
        c["metadata"].get("mystnb", {}) for path in NOTEBOOKS for c in code_cells(path)
    ]
    names = Counter(one["figure"]["name"] for one in shown if "figure" in one)
    assert [name for name, count in names.items() if count > 1] == []


@each
def test_the_last_section_says_what_is_not_shown(path: Path) -> None:
    text = "\n".join(
        text_of(cell)
        for cell in runner.read(path)["cells"]
        if cell["cell_type"] == "markdown"
    )
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings[-1] == "## What this does not show"


@each
def test_declared_records_are_there(path: Path) -> None:
    runner.key(path, {}, 1)


def test_every_record_is_of_the_form() -> None:
    for name in records.names():
        records.load(name)


def test_the_page_of_records_says_how_many_repetitions_agree() -> None:
    """Nine in ten of the whole runs, and 19 in 20 samples, as its first sentence has it."""
    table = records.dashboard()
    share = table.groupby("repeated")["inside"].mean()
    assert 0.85 <= share["whole"] < 0.95
    assert 0.94 <= share["sample"] < 0.96
    outside = table[(table["repeated"] == "sample") & ~table["inside"].astype(bool)]
    tuned = outside["name"].str.startswith("finetune")
    climbing = {"SAM", "ASAM", "USAM", "RSAM", "GSAM", "FriendlySAM", "BSAM", "GNP"}
    assert set(outside.loc[~tuned, "method"]) == climbing | {"SAM-EMA"}


@each
def test_numbers_in_notebooks_are_those_of_their_records(path: Path) -> None:
    """A number before a marker `<!-- record: name:key.path -->`: see
    markers.py.
    """
    for cell in runner.read(path)["cells"]:
        if cell["cell_type"] == "markdown":
            assert markers.faults(text_of(cell)) == [], cell["id"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "book").glob("*.md")), ids=lambda path: path.stem
)
def test_numbers_in_prose_are_those_of_their_records(path: Path) -> None:
    assert markers.faults(path.read_text(encoding="utf-8")) == []


# --- other values -------------------------------------------------------------------

# Of each notebook: parameters that are not its defaults, and settings below those of
# the smoke profile, so that all notebooks together take seconds.
OTHER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "01_two_valleys": (
        {"seed": 1, "batch": 20, "noise": 0.1, "label_noise": 0.1},
        {"seeds": 2, "max_steps": 20},
    ),
    "02_same_function_any_sharpness": (
        {"points": "spiral", "rescale": 4.0, "seed": 1},
        {"steps": 5, "width": 4},
    ),
    "03_one_valley_every_method": (
        {"seed": 1, "w1": 2.5, "w2": 0.8, "steps": 20, "lr": 0.1},
        {"draws": 2},
    ),
    "04_flooding": (
        {"seed": 1, "level": 0.1, "label_noise": 0.2},
        {"seeds": 2, "width": 4, "steps": 12, "draws": 2},
    ),
    "05_soft_ascent_descent": (
        {"points": "spiral", "theta": 0.5, "seed": 1, "label_noise": 0.0},
        {"seeds": 2, "width": 4, "epochs": 2, "n_test": 50},
    ),
    "11_two_classes_in_the_plane": (
        {"seeds": 2, "label_noise": 0.0},
        {"width": 4, "epochs": 2, "n_test": 50},
    ),
    "06_sharpness_aware_minimization": (
        {"rho": 0.2, "seed": 1},
        {"width": 4, "points": 5, "nets": 2, "rounds": 1},
    ),
    "07_gradient_norm_penalty": (
        {"label_noise": 0.0},
        {"width": 4, "epochs": 4, "seeds": 2, "steps": 5},
    ),
    "08_noise_stability": (
        {"seed": 1, "sigma": 0.02},
        {"draws": 20, "epochs": 1},
    ),
    "09_relative_flatness": (
        {"examples": 100, "label_noise": 0.0},
        {"width": 4, "draws": 5},
    ),
    "10_averaging_the_weights": (
        {"seed": 1, "decay": 0.8, "points": "gaussian", "label_noise": 0.1, "lr": 0.02},
        {"seeds": 2, "epochs": 3, "n_test": 50},
    ),
    "12_images": (
        {
            "dataset": "pictures",
            "folder": "of the test",
            "size": 8,
            "seeds": 2,
            "epochs": 1,
        },
        {"width": 2},
    ),
    "13_fine_tuning": (
        {"methods": "ERM, SAM", "shots": 5},
        {
            "width": 2,
            "pretrain": 1,
            "epochs": 1,
            "settings": 2,
            "seeds": 2,
            "n_train": 100,
        },
    ),
    "15_measuring_curvature": (
        {"seeds": 2},
        {"width": 4, "depths": 3, "epochs": 1, "cnn": 2, "examples": 16, "draws": 2},
    ),
    "16_edge_of_stability": (
        {"points": "spiral", "label_noise": 0.1, "rescale": 2.0, "seeds": 2},
        {"width": 4, "steps": 12, "looks": 4, "epochs": 10, "cnn": 2},
    ),
    "14_scoreboard": (
        {
            "plane": "plane/gaussian*/narrow-tuned",
            "images": "none/*",
            "one_rate": "none/*",
            "baseline": "SAM",
            "level": 0.1,
        },
        {"again": ("SAM",), "seeds": 1},
    ),
    "21_audit_losses": ({"seed": 1, "sigma": 0.3}, {"steps": 90}),
    "22_audit_sharpness": (
        {"seed": 1, "rho": 0.05, "alpha": 0.6},
        {"steps": 5, "draws": 3},
    ),
    "23_audit_noise": (
        {"seed": 1, "rho": 0.05, "sigma": 0.02},
        {"steps": 2, "draws": 10},
    ),
    "17_relative_flatness_and_the_gap": (
        {"examples": 100, "seeds": 2, "label_noise": 0.0},
        {"width": 4, "epochs": 1, "batches": (100,)},
    ),
    "18_which_measure_predicts": (
        {
            "board": "plane/gaussian*/narrow-tuned",
            "fitted": 0.05,
            "drawn": "none",
        },
        {"seeds": 1},
    ),
    "19_matrix_sensing": (
        {"seed": 1, "sigma": 0.05},
        {"d": 8, "steps": 20, "starts": 3},
    ),
    "20_pac_bayes": (
        {"seed": 1, "noise": 0.05, "delta": 0.1},
        {"seeds": 2, "epochs": 1, "draws": 2},
    ),
    "A4_records": ({"pattern": "sensing/*"}, {"rows": 5}),
    "A1_in_your_own_loop": ({"rho": 0.1, "seed": 1}, {"epochs": 1}),
    "A2_adding_a_method": ({"seed": 1}, {"seeds": 2, "epochs": 1}),
    "A3_recipes": ({"rho": 0.1, "micro_batches": 2, "seed": 1}, {"steps": 6}),
}


@pytest.fixture
def in_the_notebooks_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In their folder, and as before afterwards: cells run in this process, without a
    kernel.
    """
    monkeypatch.chdir(ROOT / "notebooks")
    monkeypatch.setattr(sys, "path", list(sys.path))
    dtype = torch.get_default_dtype()
    with plt.rc_context():
        yield
    torch.set_default_dtype(dtype)
    plt.close("all")


def sources(path: Path, profile: str, **values: Any) -> list[str]:
    """The notebook's code, the values put in by papermill."""
    content = papermill.execute_notebook(
        path,
        None,
        {"profile": profile, **values},
        prepare_only=True,
        progress_bar=False,
    )
    return [cell.source for cell in content.cells if cell.cell_type == "code"]


def execute(source: str, names: dict[str, Any]) -> None:
    exec(compile(source, source.splitlines()[0], "exec"), names)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Small images in folders, of two classes."""
    pixels = np.random.default_rng(0)
    for part, n in (("train", 20), ("test", 5)):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(n):
                image = pixels.integers(0, 256, (9, 9, 3), dtype=np.uint8)
                Image.fromarray(image).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


# What makes the nets and problems of the paper profile large: these, too, take some
# steps.
SIZES = {"width", "hidden", "d", "rank"}
SMALL_RUNS = [(path, "smoke") for path in NOTEBOOKS]
SMALL_RUNS += [
    (path, "paper") for path in NOTEBOOKS if SIZES & OTHER[path.stem][1].keys()
]


@pytest.mark.usefixtures("in_the_notebooks_folder")
@pytest.mark.parametrize(
    ("path", "profile"),
    [
        pytest.param(
            path,
            profile,
            # The recipes take a minute, and a kernel runs them with other values below.
            marks=[pytest.mark.slow]
            * (profile == "paper" or path.stem == "A3_recipes"),
            id=f"{path.stem}-{profile}",
        )
        for path, profile in SMALL_RUNS
    ],
)
def test_runs_to_the_end_with_other_values(
    path: Path, profile: str, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, _ = OTHER[path.stem]
    declared = runner.parameters(path)
    assert all(repr(value) != declared[name].default for name, value in values.items())
    monkeypatch.setenv("XDG_CACHE_HOME", str(pictures / "cache"))
    if "folder" in values:
        values = values | {"folder": str(pictures)}
    run_here(path, profile, values, monkeypatch)


def run_here(
    path: Path, profile: str, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All cells in this process, with the settings of OTHER."""
    _, small = OTHER[path.stem]
    of_profile = profiles.settings

    def fewer(profile: str, **choices: dict[str, Any]) -> SimpleNamespace:
        chosen = vars(of_profile("smoke", **choices))
        assert small.keys() <= chosen.keys()
        sizes = {name: choices[profile][name] for name in SIZES & chosen.keys()}
        return SimpleNamespace(**chosen | small | (sizes if profile == "paper" else {}))

    monkeypatch.setattr(profiles, "settings", fewer)
    names = {"__name__": "__main__", "display": print}
    for source in sources(path, profile, **values):
        execute(source, names)
        plt.close("all")


@pytest.mark.slow
@pytest.mark.usefixtures("in_the_notebooks_folder")
def test_recipes_run_without_the_frameworks(monkeypatch: pytest.MonkeyPatch) -> None:
    find = profiles.find_spec
    frameworks = {"accelerate", "lightning", "transformers"}
    monkeypatch.setattr(
        profiles, "find_spec", lambda p: None if p in frameworks else find(p)
    )
    run_here(ROOT / "notebooks" / "A3_recipes.ipynb", "smoke", {}, monkeypatch)


# More values, run with OTHER's at the smoke profile itself. $FLATNB_DATA holds these
# sets.
MORE: list[tuple[str, dict[str, Any]]] = [
    ("01_two_valleys", {"seed": 2, "noise": 0.2, "batch": 50}),
    ("02_same_function_any_sharpness", {"points": "gaussian", "rescale": 100.0}),
    ("03_one_valley_every_method", {"w1": 0.8, "w2": 2.0, "lr": 0.3}),
    ("04_flooding", {"seed": 2, "level": 0.4, "label_noise": 0.0}),
    ("05_soft_ascent_descent", {"points": "sinusoid", "theta": 1.0, "seed": 3}),
    ("11_two_classes_in_the_plane", {"seeds": 3, "label_noise": 0.2}),
    ("06_sharpness_aware_minimization", {"dataset": "MNIST"}),
    ("07_gradient_norm_penalty", {"dataset": "MNIST"}),
    ("08_noise_stability", {"seed": 2, "sigma": 0.1}),
    ("09_relative_flatness", {"dataset": "MNIST"}),
    ("10_averaging_the_weights", {"seed": 2, "decay": 0.95}),
    ("17_relative_flatness_and_the_gap", {"dataset": "MNIST"}),
    ("13_fine_tuning", {"data_set": "MNIST", "methods": "ERM, Flooding, NSO"}),
    ("15_measuring_curvature", {"dataset": "MNIST"}),
    ("16_edge_of_stability", {"points": "gaussian", "rescale": 0.2}),
    (
        "14_scoreboard",
        {"plane": "plane/s*/narrow-tuned", "baseline": "EMA"},
    ),
    ("21_audit_losses", {"seed": 2, "sigma": 0.8}),
    ("22_audit_sharpness", {"seed": 2, "rho": 0.2, "alpha": 0.3}),
    ("23_audit_noise", {"seed": 2, "rho": 0.2, "sigma": 0.1}),
    (
        "18_which_measure_predicts",
        {
            "board": "plane/s*/narrow-tuned",
            "fitted": 0.02,
            "drawn": "spiral-0.05",
        },
    ),
    ("19_matrix_sensing", {"seed": 2, "sigma": 0.2}),
    ("A1_in_your_own_loop", {"seed": 2, "rho": 0.2}),
    ("A2_adding_a_method", {"seed": 2}),
    ("A3_recipes", {"seed": 2, "micro_batches": 8, "rho": 0.2}),
]
CASES = [(name, values) for name, (values, _) in OTHER.items()] + MORE


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "values"),
    [
        pytest.param(
            name, values, marks=[pytest.mark.data] * ("MNIST" in values.values())
        )
        for name, values in CASES
    ],
)
def test_runs_in_a_kernel_with_other_values(
    name: str,
    values: dict[str, Any],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "folder" in values:
        values = values | {"folder": str(pictures)}
    given = {key: str(value) for key, value in values.items()}
    path = ROOT / "notebooks" / f"{name}.ipynb"
    (result,) = runner.run([path], profile="smoke", given=given)
    assert result.error is None, result.error


@pytest.mark.slow
def test_a_board_that_names_no_record_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, given = ROOT / "notebooks" / "14_scoreboard.ipynb", {"plane": "none/*"}
    (result,) = runner.run([path], profile="smoke", given=given)
    assert "RecordError: no record of fresh runs is named none/*" in str(result.error)


@each
def test_every_parameter_is_tried_with_another_value(path: Path) -> None:
    tried = set().union(*(values for name, values in CASES if name == path.stem))
    assert tried >= runner.parameters(path).keys() - {"profile"}


# --- the settings of each profile ---------------------------------------------------


def kind(value: Any) -> Any:
    """What a setting is: its type, and that of its entries."""
    if isinstance(value, list | tuple):
        return type(value), *{type(entry) for entry in value}
    return type(value)


def larger(small: Any, large: Any) -> bool:
    """Whether a setting does not shrink, as far as it has a size."""
    if isinstance(small, tuple) and len(small) == len(large):
        return all(map(larger, small, large))
    return not isinstance(small, int | float) or large is None or small <= large


@pytest.mark.usefixtures("in_the_notebooks_folder")
@each
def test_settings_of_the_profiles_are_alike_grow_and_are_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Found(Exception):
        pass

    found: dict[str, dict[str, Any]] = {}

    def find(profile: str, **choices: dict[str, Any]) -> None:
        found.update(choices)
        raise Found

    monkeypatch.setattr(profiles, "settings", find)
    names = {"__name__": "__main__", "display": print}
    cells = sources(path, "paper")
    with pytest.raises(Found):
        for source in cells:
            execute(source, names)
    smoke, laptop, paper = (found[profile] for profile in profiles.PROFILES)
    assert smoke.keys() == laptop.keys() == paper.keys()
    for name in smoke:
        kinds = {kind(each[name]) for each in (smoke, laptop, paper)} - {
            type(None),
            (tuple,),
        }
        assert len(kinds) == 1, f"{name} is of kinds {kinds}"
        assert larger(smoke[name], laptop[name]) and larger(
            laptop[name], paper[name]
        ), name
    tree = ast.parse("\n".join(cells))
    (holder,) = {
        node.targets[0].id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and ast.unparse(node.value).startswith("settings(")
    }
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == holder
    }
    assert used == smoke.keys()
