"""The stage, its settings, and the pages built from it."""

import gzip
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from small_book import ROOT, book, code

from flatnb.book import charts, mathjax, stage
from flatnb.book.run import UserError

URL = "https://github.com/acme/flatnb"


def test_stage_keeps_paths_and_takes_executed_copies(tmp_path: Path) -> None:
    root = book(tmp_path)
    copy = tmp_path / "copy.ipynb"
    papermill = {"duration": 1.0, "output_path": "/a/folder"}
    papermill["parameters"] = {"profile": "smoke"}
    title = {"cell_type": "markdown", "metadata": {}, "source": ["# A"]}
    content = {"metadata": {"papermill": papermill}, "cells": [title]}
    copy.write_text(json.dumps(content))
    (root / "book" / "records" / "plane").mkdir(parents=True)
    (root / "book" / "records" / "plane" / "a.json").write_text("{}")
    folder = stage.stage(root, {Path("notebooks/01_a.ipynb"): copy})
    assert folder == root / "_build" / "stage"
    assert (folder / "notebooks" / "01_a.ipynb").exists()
    names = ("intro.md", "references.bib", "_static/custom.css")
    for same in ("_toc.yml", *(f"book/{name}" for name in names)):
        assert (folder / same).read_bytes() == (root / same).read_bytes()
    # Pages are made of notebooks, not of records.
    assert not list(folder.rglob("*.json"))
    files = folder / "extra" / "downloads"
    source = (root / "notebooks" / "01_a.ipynb").read_bytes()
    assert (files / "clean" / "01_a.ipynb").read_bytes() == source
    shown = json.loads((files / "executed" / "01_a.ipynb").read_text())
    del papermill["output_path"]
    assert shown == {"metadata": {"papermill": papermill}, "cells": [title]}


def test_cells_of_the_setup_become_one_folded_cell() -> None:
    tags = ["bootstrap", "parameters", "injected-parameters", "setup"]
    said = {"output_type": "stream", "name": "stdout", "text": ["version\n"]}
    cells = [{**code(f"{tag} = 1", tag), "outputs": [said]} for tag in tags]
    cells.insert(0, {"cell_type": "markdown", "metadata": {}, "source": ["# Title"]})
    cells.append(code("picture = 1", "hide-input", "play-wells"))
    cells.append(code("last = 1", "hide-input"))
    folded = json.loads(stage.as_page(json.dumps({"metadata": {}, "cells": cells})))[
        "cells"
    ]
    assert [folded[0], folded[3]] == [cells[0], cells[-1]] and len(folded) == 4
    assert folded[2]["metadata"]["tags"] == ["play-wells", "remove-input"]
    assert folded[1]["metadata"]["tags"] == ["hide-cell"]
    assert (
        folded[1]["source"].split()
        == " ".join(f"{t} = 1" for t in [*tags, "picture"]).split()
    )
    assert folded[1]["outputs"][0] == {**said, "text": 4 * "version\n"}


def test_parameters_become_a_table_with_the_values_of_the_run() -> None:
    source = 'profile: str = "laptop"  # smoke\nrate: float = 0.5  # of a < b'
    cells = [{"cell_type": "markdown", "metadata": {}, "source": ["# Title"]}]
    cells.append(code(source, "parameters"))
    run = {"parameters": {"profile": "smoke"}, "duration": 1.0}
    notebook = {"metadata": {"papermill": run}, "cells": cells}
    page = json.loads(stage.as_page(json.dumps(notebook)))
    ((output,),) = [c["outputs"] for c in page["cells"] if c["cell_type"] == "code"]
    rows = re.findall(r"<tr>(.*?)</tr>", output["data"]["text/html"])
    assert [re.findall(r">([^<>]+)<", row) for row in rows] == [
        ["parameter", "here", "default", "meaning"],
        ["profile", "smoke", "laptop", "smoke"],
        ["rate", "0.5", "0.5", "of a &lt; b"],
    ]


def test_data_of_a_figure_stand_before_it_in_a_cell_of_their_own() -> None:
    data, picture = (
        {"output_type": "display_data", "metadata": {}, "data": {kind: [text]}}
        for kind, text in (
            ("text/html", '<script class="play-data">{}</script>'),
            ("image/png", "iVBORw0KGgo="),
        )
    )
    figure = {"mystnb": {"figure": {"name": "fig-one", "caption": "One."}}}
    cell = {**code("draw()", "play-one", **figure), "id": "one"}
    cell["outputs"] = [data, picture]
    page = json.dumps({"metadata": {}, "cells": [cell]})
    before, after = json.loads(stage.as_page(page))["cells"]
    assert before["outputs"] == [data] and after["outputs"] == [picture]
    assert "mystnb" not in before["metadata"] and before["id"] != "one"
    assert before["source"].strip()  # MyST-NB drops cells without a source
    assert {**after, "outputs": []} == {**cell, "outputs": []}


def test_what_is_printed_keeps_its_place_among_tables_and_figures() -> None:
    def said(text: str) -> dict[str, str]:
        return {"output_type": "stream", "name": "stdout", "text": text}

    table = {"output_type": "display_data", "metadata": {}, "data": {"text/html": [""]}}
    cell = {**code("show()"), "id": "one"}
    cell["outputs"] = [said("a\n"), said("b\n"), table, said("c\n")]
    page = json.loads(stage.as_page(json.dumps({"metadata": {}, "cells": [cell]})))
    expected = [said("a\nb\n"), table, said("c\n")]
    assert page["cells"][0]["outputs"] == expected


def test_the_stage_has_the_script_of_charts(tmp_path: Path) -> None:
    charts.save(tmp_path)
    text = (tmp_path / charts.SCRIPT).read_text(encoding="utf-8")
    assert "window.vegaEmbed=" in text
    assert text.startswith("(() => {") and text.endswith("})();\n")
    assert "import(" not in text and not re.search(r"\bfrom ?\"https?:", text)
    assert len(gzip.compress(text.encode())) < 320_000


def test_the_status_page_says_what_each_copy_was_made_with(tmp_path: Path) -> None:
    root = book(tmp_path)
    (root / "book" / "status.md").write_text("# Status\n\n<!-- status -->\n")
    copy = tmp_path / "copy.ipynb"
    papermill = {"parameters": {"profile": "smoke"}, "duration": 12.4}
    papermill["end_time"] = "2026-11-26T12:20:15.689088+00:00"
    metadata = {"papermill": papermill, "run": {"threads": 7}}
    title = {"cell_type": "markdown", "metadata": {}, "source": ["# A"]}
    first = code("about()", "bootstrap")
    about = {
        "output_type": "stream",
        "text": ["CPU · torch 2.9+cpu · flatnb 0.1 (main)"],
    }
    cells = [title, {**first, "outputs": [about]}]
    copy.write_text(json.dumps({"metadata": metadata, "cells": cells}))
    folder = stage.stage(root, {Path("notebooks/01_a.ipynb"): copy})
    text = (folder / "book" / "status.md").read_text()
    assert re.search(r"python 3\.\d+\.\d+.* · accelerate (\d|absent)", text)
    assert "| {doc}`../notebooks/01_a` | smoke | 7 | 12 |" in text
    assert "flatnb" in text and "<!--" not in text
    page = json.loads((folder / "notebooks" / "01_a.ipynb").read_text())
    times = "*About 1 min to read. Computed on 26 Nov 2026 in 12 s at {term}`profile` "
    times += "`smoke`, torch 2.9.*"
    assert page["cells"][0]["source"] == f"# A\n\n{times}"


def test_with_an_address_the_line_below_the_title_leads_to_colab(
    tmp_path: Path,
) -> None:
    root = book(tmp_path)
    copy = tmp_path / "copy.ipynb"
    run = {"papermill": {"parameters": {"profile": "smoke"}, "duration": 3}}
    title = {"cell_type": "markdown", "metadata": {}, "source": ["# A"]}
    copy.write_text(json.dumps({"metadata": run, "cells": [title]}))
    page = Path("notebooks/01_a.ipynb")

    def line() -> str:
        folder = stage.stage(root, {page: copy})
        return json.loads((folder / page).read_text())["cells"][0]["source"]

    assert "Computed" in line() and "Colab" not in line()
    config = root / "_config.yml"
    config.write_text(config.read_text().replace('url: ""', f'url: "{URL}"'))
    colab = "https://colab.research.google.com/github/acme/flatnb/blob/main"
    assert line().endswith(f" [Run on Colab]({colab}/{page})*")


def test_a_page_to_look_things_up_in_has_no_minutes() -> None:
    run = {"parameters": {"profile": "smoke"}, "duration": 3}
    title = {"cell_type": "markdown", "metadata": {}, "source": ["# A"]}
    metadata = {"papermill": run, "flatnb": {"lookup": True}}
    page = json.loads(
        stage.as_page(json.dumps({"metadata": metadata, "cells": [title]}))
    )
    words = "*A page to look things up in. Computed in 3 s at {term}`profile` `smoke`.*"
    assert page["cells"][0]["source"] == f"# A\n\n{words}"


def test_staged_settings_without_an_address_have_no_links(tmp_path: Path) -> None:
    root = book(tmp_path)
    config = stage.staged_settings(root)
    assert "repository" not in config and "launch_buttons" not in config
    assert not any("button" in name for name in config["html"])
    assert config["execute"]["execute_notebooks"] == "off"
    source = yaml.safe_load((root / "_config.yml").read_text())
    for same in ("title", "parse", "bibtex_bibfiles", "exclude_patterns"):
        assert config[same] == source[same]
    extensions = source["sphinx"]["config"]["extensions"]
    assert set(extensions) >= stage.ADDRESSED
    source["sphinx"]["config"]["extensions"] = [
        name for name in extensions if name not in stage.ADDRESSED
    ]
    assert config["sphinx"] == source["sphinx"]


def test_staged_settings_with_an_address_link_to_it(tmp_path: Path) -> None:
    root = book(tmp_path)
    path = root / "_config.yml"
    text = path.read_text()
    path.write_text(text.replace('url: ""', f'url: "{URL}"'))
    config = stage.staged_settings(root)
    assert config["repository"]["url"] == URL
    assert config["launch_buttons"]["colab_url"].startswith("https://colab.")
    html = config["html"]
    assert html["use_edit_page_button"] and html["use_issues_button"]


def test_a_page_that_is_missing_is_named(tmp_path: Path) -> None:
    root = book(tmp_path)
    with (root / "_toc.yml").open("a") as file:
        file.write("  - file: notebooks/02_b\n")
    with pytest.raises(UserError, match="names 'notebooks/02_b'"):
        stage.toc_files(root)


# --- MathJax ------------------------------------------------------------------------


def test_mathjax_is_copied_with_the_fonts_that_it_asks_for(tmp_path: Path) -> None:
    mathjax.copy(tmp_path)
    script = (tmp_path / mathjax.SCRIPT).read_text()
    asked = set(re.findall(r"%%URL%%/(MathJax_[\w-]+\.woff)", script))
    assert len(asked) > 10
    assert asked <= {file.name for file in (tmp_path / mathjax.FONTS).iterdir()}
    assert re.search(rf'fontURL:[\w.]+resolvePath\("{mathjax.FONTS}"', script)
    assert "Apache License" in (tmp_path / "LICENSE").read_text()


def test_another_mathjax_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mathjax, "SHA256", 64 * "0")
    with pytest.raises(UserError, match=r"has parts of SHA-256 .* allowed: 000"):
        mathjax.copy(tmp_path)
    monkeypatch.setattr(mathjax, "PACKAGE", "flatnb-has-no-such-package")
    with pytest.raises(UserError, match=r"pip install 'flatnb\[site\]'"):
        mathjax.copy(tmp_path)
    assert not list(tmp_path.iterdir())


# --- pages --------------------------------------------------------------------------


def page(root: Path) -> str:
    return (root / "_build" / "html" / "notebooks" / "01_a.html").read_text()


def test_pages_without_an_address_link_nowhere(built: dict[str, Path]) -> None:
    text = page(built["without"])
    assert 'lang="en"' in text
    text = re.sub(r"<code.*?</code>|<pre.*?</pre>", "", text, flags=re.DOTALL)
    assert not any(word in text for word in ("colab", "github.com", "executablebooks"))
    assert "thebe" not in text  # its scripts would report errors in every console
    assert (built["without"] / "_build" / "html" / "index.html").exists()


def test_pages_load_nothing_from_another_host(built: dict[str, Path]) -> None:
    html = built["without"] / "_build" / "html"
    for path in html.rglob("*.html"):
        text = path.read_text()
        assert not re.search(r'(src|<link[^>]* href)="(\w+:)?//', text), path
    assert "mathjax/mathjax.js" in (html / "book" / "intro.html").read_text()
    assert (html / "_static" / "mathjax" / "mathjax.js").exists()


def test_pages_with_an_address_link_to_the_real_files(built: dict[str, Path]) -> None:
    text = page(built["with"])
    colab = "https://colab.research.google.com/github/acme/flatnb/blob/v1"
    notebook = f"{colab}/notebooks/01_a.ipynb"
    for link in (notebook, f"{URL}/edit/v1/notebooks/01_a.ipynb", f"{URL}/issues/new"):
        assert f'"{link}' in text
    assert "executablebooks" not in text


def test_a_warning_fails_the_build_and_keeps_the_old_pages(
    built: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(built["with"], tmp_path / "book")
    before = page(root)
    with (root / "book" / "intro.md").open("a") as file:
        file.write("\n{ref}`nowhere`\n")
    assert not stage.build(stage.stage(root, {}), root / "_build" / "html")
    assert "undefined label: 'nowhere'" in capfd.readouterr().err
    assert page(root) == before


def test_images_of_prose_have_words() -> None:
    for page in stage.toc_files(ROOT):
        assert "![](" not in (ROOT / page).read_text(encoding="utf-8"), page
