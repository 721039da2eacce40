"""Build the pages: a staged copy of the book, with its notebooks as they were executed,
their set-up folded.

Paths in the stage are those of the repository, so that source, edit and Colab links
made from them point at real files.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flatnb._checks import shown
from flatnb.book import (
    charts,
    downloads,
    figures,
    headline,
    landing,
    lean,
    mathjax,
)
from flatnb.book.cells import SETUP, apart, joined, minutes, tags
from flatnb.book.profiles import about
from flatnb.book.run import UserError, declared, plain
from flatnb.results.provenance import provenance, versions

# What stands before the url and before the branch, in _config.yml and in a notebook.
PRECEDING = {
    ".yml": (r'^(  url: ")[^"]*', r"^(  branch: )\S*"),
    ".ipynb": (r'(REPOSITORY = \\")[^"\\]*', r'(REVISION = \\")[^"\\]*'),
}

# Extensions that need the site's address, and pages that its map leaves out.
ADDRESSED = {"sphinxext.opengraph", "sphinx_sitemap", "notfound.extension"}
UNLISTED = ("404", "genindex", "index", "py-modindex", "search")

EXTRA = "extra"  # what this folder of the stage has is put next to the pages


def toc_files(root: Path) -> list[Path]:
    """The pages that _toc.yml names, relative to the book's root, in its order."""
    from sphinx_external_toc.parsing import parse_toc_yaml

    try:
        names = list(parse_toc_yaml(root / "_toc.yml"))
    except Exception as error:  # its parser raises whatever it meets
        raise UserError(f"{root / '_toc.yml'} names no pages: {shown(error)}") from None
    pages = []
    for name in names:
        files = [Path(f"{name}{suffix}") for suffix in ("", ".ipynb", ".md")]
        page = next((file for file in files if (root / file).is_file()), None)
        if page is None:
            raise UserError(f"_toc.yml names {shown(name)}, and there is no such page")
        pages.append(page)
    return pages


def staged_settings(root: Path) -> dict[str, Any]:
    """_config.yml to build with: nothing is executed; without an address, no links.

    An empty address crashes Jupyter Book, and for a missing one it puts its own.
    """
    import yaml

    path = root / "_config.yml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        config["execute"] = {"execute_notebooks": "off"}
        sphinx, html = config["sphinx"]["config"], config["html"]
        if url := config["repository"]["url"]:
            html.setdefault("baseurl", site_of(url))
            sphinx.update(_addressed(html["baseurl"], config["title"]))
        else:
            del config["repository"], config["launch_buttons"]
            for name in [name for name in html if name.endswith("_button")]:
                del html[name]
            kept = [name for name in sphinx["extensions"] if name not in ADDRESSED]
            sphinx["extensions"] = kept
    except Exception as error:  # of YAML, or parts that are missing or of another kind
        raise UserError(f"{path} cannot be used: {shown(error)}") from None
    return config


def site_of(repository: str) -> str:
    """Where GitHub Pages publishes a repository.

    >>> site_of("https://github.com/Acme/flatnb")
    'https://acme.github.io/flatnb/'
    """
    owner, name = repository.split("/")[-2:]
    host = f"{owner.lower()}.github.io"
    return f"https://{host}/" if name.lower() == host else f"https://{host}/{name}/"


def _addressed(site: str, title: str) -> dict[str, Any]:
    """Settings of the extensions that need to know where the pages are."""
    path = urlsplit(site).path
    lost = f"""<h1>This page is not here</h1>
<p>It may have another name by now: <a href="{path}search.html">search the book</a>, or
<a href="{path}book/intro.html">start at its first page</a>.</p>"""
    return {
        "ogp_site_url": site,
        "ogp_site_name": title,
        "ogp_type": "article",
        "ogp_social_cards": {"enable": False},  # flatnb.book.head makes its own
        "sitemap_url_scheme": "{link}",
        "sitemap_excludes": [f"{name}.html" for name in UNLISTED],
        "notfound_urls_prefix": path,
        "notfound_context": {"title": "This page is not here", "body": lost},
    }


def stage(root: Path, executed: Mapping[Path, Path]) -> Path:
    """Lay out _build/stage; `executed` has copies by the notebook's path below root."""
    import yaml

    folder = root / "_build" / "stage"
    shutil.rmtree(folder, ignore_errors=True)
    # Pages show what notebooks made of the records: a new record alone changes none.
    ignore = shutil.ignore_patterns("__pycache__", ".*", "records")
    shutil.copytree(root / "book", folder / "book", ignore=ignore)
    mathjax.copy(folder / "book" / "_static" / "mathjax")
    charts.save(folder / "book" / "_static")
    settings = staged_settings(root)
    extra = folder / EXTRA / downloads.FOLDER
    extra.mkdir(parents=True)
    for page in toc_files(root):
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        text = executed.get(page, root / page).read_text(encoding="utf-8")
        if page.suffix == ".ipynb":
            text = as_page(text, colab_of(settings, page))
            text = _with_runs(text, extra / "records", root / "_build")
            downloads.save_notebook(extra, root / page, executed.get(page))
        (folder / page).write_text(text, encoding="utf-8")
    intro, static = folder / "book" / "intro.md", folder / "book" / "_static"
    text = intro.read_text(encoding="utf-8")
    if headline.FILE in text:
        headline.save(static)
    text = landing.filled(text, root, executed, static)
    intro.write_text(text, encoding="utf-8")
    status = folder / "book" / "status.md"
    if status.exists():
        text = status.read_text(encoding="utf-8")
        text = text.replace("<!-- status -->", _status(executed))
        status.write_text(text, encoding="utf-8")
    shutil.copyfile(root / "_toc.yml", folder / "_toc.yml")
    config = yaml.safe_dump(settings, allow_unicode=True)
    (folder / "_config.yml").write_text(config, encoding="utf-8")
    return folder


def colab_of(settings: Mapping[str, Any], page: Path) -> str:
    """Where a notebook runs on Colab, by `staged_settings`; without an address, nothing.

    >>> settings = {"repository": {"url": "https://github.com/acme/book", "branch": "v1"},
    ...             "launch_buttons": {"colab_url": "https://colab.example"}}
    >>> colab_of(settings, Path("notebooks/01_a.ipynb"))
    'https://colab.example/github/acme/book/blob/v1/notebooks/01_a.ipynb'
    >>> colab_of({}, Path("notebooks/01_a.ipynb"))
    ''
    """
    host = settings.get("launch_buttons", {}).get("colab_url")
    if not host or "repository" not in settings:
        return ""
    repository = settings["repository"]
    place = urlsplit(repository["url"]).path.rstrip("/")
    branch = repository.get("branch", "main")
    return f"{host}/github{place}/blob/{branch}/{page.as_posix()}"


def as_page(notebook: str, colab: str = "") -> str:
    """The text of an executed notebook as the pages show it: below the title the times
    to read and to run, and a link to Colab if that has an address; the cells of set-up
    (fetching the library, parameters, those injected, imports) as one folded cell with a
    table of the parameters; it also has the code of the picture that stands first, if
    that is to be hidden. Data of a figure to play with stand before it, in a cell of
    their own."""
    content = json.loads(notebook)
    cells = content["cells"]
    for output in (o for cell in cells for o in cell.get("outputs", ())):
        if "data" in output:
            output["data"] = figures.smaller(output["data"])
    run = content["metadata"].get("papermill")
    if run:
        lookup = content["metadata"].get("flatnb", {}).get("lookup")
        read = (
            "A page to look things up in."
            if lookup
            else f"About {minutes(cells)} min to read."
        )
        times = f"{read} {_computed(run, cells)}."
        if colab:
            times += f" [Run on Colab]({colab})"
        cells[0]["source"] = f"{''.join(cells[0]['source'])}\n\n*{times}*"
    parts = [cell for cell in cells if SETUP.intersection(tags(cell))]
    if parts:
        merged = {
            **parts[0],
            "metadata": {
                "tags": ["hide-cell"],
                "mystnb": {"code_prompt_show": "Set-up"},
            },
            "source": "\n\n".join("".join(cell["source"]) for cell in parts),
            "outputs": [output for cell in parts for output in cell["outputs"]],
        }
        if table := _parameters(cells, run["parameters"] if run else {}):
            merged["outputs"].append(table)
        place = cells.index(parts[0])
        others = [cell for cell in cells if cell not in parts]
        following = others[place : place + 2]  # a heading may stand before the picture
        for picture in [c for c in following if c["cell_type"] == "code"][:1]:
            if "hide-input" in tags(picture):
                merged["source"] += "\n\n" + "".join(picture["source"])
                kept = [tag for tag in tags(picture) if tag != "hide-input"]
                picture["metadata"]["tags"] = [*kept, "remove-input"]
        content["cells"] = [*others[:place], merged, *others[place:]]
    content["cells"] = [part for cell in content["cells"] for part in apart(cell)]
    for cell in content["cells"]:
        if "outputs" in cell:
            cell["outputs"] = joined(cell["outputs"])
    return json.dumps(content, indent=1, ensure_ascii=False)


def _with_runs(notebook: str, folder: Path, build: Path) -> str:
    """A notebook with links, at its end, to the runs of the records that it reads."""
    content = json.loads(notebook)
    counts: dict[str, int] = {}
    patterns = content["metadata"].get("flatnb", {}).get("records", [])
    for family in downloads.families(patterns):
        counts |= downloads.save_records(folder, build / "records", family)
    if counts:
        content["cells"].append(downloads.runs_cell(counts))
    return json.dumps(content, indent=1, ensure_ascii=False)


def _computed(run: dict[str, Any], cells: list[dict[str, Any]]) -> str:
    """When a notebook was last run, for how long, and, as its first cell of code printed
    it, with which torch: in a line of a page."""
    words = "Computed"
    if "end_time" in run:
        day = datetime.fromisoformat(run["end_time"])
        words += f" on {day.day} {day:%b %Y}"
    words += f" in {_time(run['duration'])}"
    words += f" at {{term}}`profile` `{run['parameters']['profile']}`"
    printed = [
        "".join(output.get("text", ""))
        for cell in cells
        if "bootstrap" in tags(cell)
        for output in cell["outputs"]
    ]
    torch = re.search(r"torch ([^\s+]+)", "".join(printed))
    return words + (f", torch {torch[1]}" if torch else "")


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _parameters(
    cells: list[dict[str, Any]], values: Mapping[str, Any]
) -> dict[str, Any] | None:
    """A table of a notebook's parameters, with the values of this run, as an output."""
    rows = ""
    for name, _, source, words in declared(cells).values():
        default = source.strip("\"'")
        texts = (str(values.get(name, default)), default, words)
        rows += (
            f"<tr><th>{name}</th>{''.join(f'<td>{escape(t)}</td>' for t in texts)}</tr>"
        )
    if not rows:
        return None
    names = ("parameter", "here", "default", "meaning")
    head = "".join(f"<th>{name}</th>" for name in names)
    head, body = f"<thead><tr>{head}</tr></thead>", f"<tbody>{rows}</tbody>"
    data = {"text/html": f'<table class="dataframe">{head}{body}</table>'}
    return {"output_type": "display_data", "metadata": {}, "data": data}


def _status(executed: Mapping[Path, Path]) -> str:
    """What the pages were made on, and a table of how long each took."""
    commit = str(provenance()["commit"])[:7]
    found = versions(["accelerate", "lightning", "transformers"])  # of the recipes
    listed = " · ".join(
        f"{name} {version}" for name, version in found.items() if name != "flatnb"
    )
    rows = [
        f"{about(commit)}\\",
        listed,
        "",
        "| page | profile | threads | seconds |",
        "|---" * 4,
    ]
    for page, copy in executed.items():
        metadata = json.loads(copy.read_text(encoding="utf-8"))["metadata"]
        profile = metadata["papermill"]["parameters"]["profile"]
        threads = metadata["run"]["threads"]
        seconds = metadata["papermill"]["duration"]
        link = f"{{doc}}`../{page.with_suffix('')}`"
        rows.append(f"| {link} | {profile} | {threads} | {seconds:.0f} |")
    return "\n".join(rows)


def build(stage: Path, pages: Path) -> bool:
    """Turn the stage into pages; False, and the old pages stay, after any warning.

    Built aside and whole: an incremental build repeats no warning of a page it leaves
    alone, and an interrupted one would leave a mixture.
    """
    aside = stage.parent / "book"
    shutil.rmtree(aside, ignore_errors=True)
    print("building the pages …", flush=True)
    main = "from jupyter_book.cli.main import main; main()"
    options = ["--path-output", str(aside), "-W", "-n", "--keep-going"]
    command = [sys.executable, "-Pc", main, "build", str(stage), *options]
    sphinx = subprocess.run(command, capture_output=True, text=True)
    built = aside / "_build" / "html"
    if sphinx.returncode:
        print(plain(sphinx.stdout + sphinx.stderr), file=sys.stderr)
        print(f"flatnb: the book has faults; its pages: {built}", file=sys.stderr)
        return False
    lean.lighten(built, stage / "book" / "_static")
    shutil.rmtree(pages, ignore_errors=True)
    built.rename(pages)
    return True


def with_address(root: Path, url: str, branch: str) -> dict[Path, str]:
    """The texts of _config.yml and all notebooks, with an address on GitHub, or none."""
    address = r"(https://github\.com/[A-Za-z0-9-]+/[A-Za-z0-9._-]+)?"
    if not (re.fullmatch(address, url) and re.fullmatch(r"\w[\w./-]*", branch)):
        allowed = "https://github.com/OWNER/NAME, and a branch or tag"
        raise UserError(f"url={url!r}, branch={branch!r}; allowed: {allowed}")
    texts = {}
    for path in [root / "_config.yml", *sorted((root / "notebooks").glob("*.ipynb"))]:
        text = path.read_text(encoding="utf-8")
        for pattern, value in zip(PRECEDING[path.suffix], (url, branch), strict=True):
            text, count = re.subn(pattern, rf"\g<1>{value}", text, flags=re.MULTILINE)
            if count != 1:
                raise UserError(f"{path} has {count} times {pattern}; it needs it once")
        texts[path] = text
    return texts


def with_literal_formulas(docstring: str) -> str:
    """A docstring whose indented paragraphs, the formulas, are literal blocks of RST.

    >>> with_literal_formulas("The mean:\\n\\n    sum / n").splitlines()
    ['The mean:', '', '::', '', '    sum / n']
    """
    line_above = r"^( *)(?!\.\.)(\S.*(?<!::)\n\n)(?=\1 {4,}\S)"
    return re.sub(line_above, r"\1\2\1::\n\n", docstring, flags=re.MULTILINE)


def with_names(signature: str) -> str:
    """A signature whose defaults are names, where Python shows functions and classes.

    >>> with_names("(sigma, noise=<function normal>, history=<factory>)")
    '(sigma, noise=normal, history=…)'
    """
    object_shown = r"<(?:function|class) '?(?:[\w.]+\.)?(\w+)'?(?: at 0x\w+)?>"
    signature = re.sub(object_shown, r"\1", signature)
    return re.sub(r"<function [\w.]*<lambda>(?: at 0x\w+)?>|<factory>", "…", signature)


def setup(app: Any) -> None:
    """As an extension of Sphinx: docstrings as above, before napoleon reads them."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-process-signature", _process_signature)


def _process(*arguments: Any) -> None:
    lines = arguments[-1]
    lines[:] = with_literal_formulas("\n".join(lines)).split("\n")


def _process_signature(*arguments: Any) -> tuple[str | None, str | None]:
    signature, returned = arguments[-2:]
    return signature and with_names(signature), returned
