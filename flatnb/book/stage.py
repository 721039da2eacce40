"""Build the pages: a staged copy of the book, with its notebooks as they were executed.

Paths in the stage are those of the repository, so that source, edit and Colab links
made from them point at real files.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flatnb.book.profiles import about
from flatnb.book.run import UserError, line, plain, read, write
from flatnb.results.provenance import provenance

ADDRESS = r"https://github\.com/[A-Za-z0-9-]+/[A-Za-z0-9._-]+"
# What stands before the url and before the branch, in _config.yml and in a notebook.
PRECEDING = {
    ".yml": (r'^(  url: ")[^"]*', r"^(  branch: )\S*"),
    ".ipynb": (r'(REPOSITORY = \\")[^"\\]*', r'(REVISION = \\")[^"\\]*'),
}


def toc_files(root: Path) -> list[Path]:
    """The pages that _toc.yml names, relative to the book's root, in its order."""
    from sphinx_external_toc.parsing import parse_toc_yaml

    pages = []
    try:
        names = [Path(name) for name in parse_toc_yaml(root / "_toc.yml")]
    except Exception as error:  # its parser raises whatever it meets
        reason = line(f"{type(error).__name__}: {error}")
        raise UserError(f"{root / '_toc.yml'} names no pages: {reason}") from None
    for name in names:
        files = [Path(f"{name}{suffix}") for suffix in ("", ".ipynb", ".md")]
        page = next((file for file in files if (root / file).is_file()), None)
        if page is None:
            missing = line(f"{name}, and there is no {name}.ipynb or {name}.md")
            raise UserError(f"_toc.yml names {missing}")
        pages.append(page)
    return pages


def settings(root: Path) -> dict[str, Any]:
    """What _config.yml holds; UserError where its parts are no names and values."""
    import yaml

    path = root / "_config.yml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        parts = {name: dict(config.get(name) or {}) for name in ("repository", "html")}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{path} holds no names and values: {line(str(e))}") from None
    return config | parts


def staged_settings(root: Path) -> dict[str, Any]:
    """The settings to build with: nothing is executed; without an address, no links.

    An empty address crashes Jupyter Book, and for a missing one it puts its own.
    """
    config = settings(root) | {"execute": {"execute_notebooks": "off"}}
    if address(root)[0]:
        return config
    for name in [name for name in config["html"] if str(name).endswith("_button")]:
        del config["html"][name]
    return {
        k: v for k, v in config.items() if k not in {"repository", "launch_buttons"}
    }


def stage(root: Path, executed: Mapping[Path, Path]) -> Path:
    """Lay out _build/stage; `executed` has copies by the notebook's path below root."""
    import yaml

    folder = root / "_build" / "stage"
    shutil.rmtree(folder, ignore_errors=True)
    # Pages show what notebooks made of the records: a new record alone changes none.
    ignore = shutil.ignore_patterns("__pycache__", ".*", "records")
    shutil.copytree(root / "book", folder / "book", ignore=ignore)
    for page in toc_files(root):
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(executed.get(page, root / page), folder / page)
    status = folder / "book" / "status.md"
    if status.exists():
        text = status.read_text(encoding="utf-8")
        write(status, text.replace("<!-- status -->", _status(executed)))
    shutil.copyfile(root / "_toc.yml", folder / "_toc.yml")
    config = yaml.safe_dump(staged_settings(root), allow_unicode=True)
    write(folder / "_config.yml", config)
    return folder


def _status(executed: Mapping[Path, Path]) -> str:
    """What the pages were made on, and a table of how long each took."""
    commit = str(provenance()["commit"])[:7]
    rows = [about(commit), "", "| page | profile | threads | seconds |", "|---" * 4]
    for page, copy in executed.items():
        side = json.loads(copy.with_suffix(".json").read_text(encoding="utf-8"))
        values = [side["values"]["profile"], side["threads"], f"{side['seconds']:.0f}"]
        link = f"{{doc}}`../{page.with_suffix('')}`"
        rows.append(f"| {link} | {' | '.join(map(str, values))} |")
    return "\n".join(rows)


def build(stage: Path, pages: Path) -> bool:
    """Turn the stage into pages; False, and the old pages stay, after any warning.

    Built aside and whole: an incremental build repeats no warning of a page it leaves
    alone, and an interrupted one would leave a mixture.
    """
    aside = stage.parent / "book"
    shutil.rmtree(aside, ignore_errors=True)
    print("building the pages …", flush=True)
    main = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    options = ["--path-output", str(aside), "-W", "-n", "--keep-going"]
    command = [sys.executable, "-P", "-c", main, "build", str(stage), *options]
    sphinx = subprocess.run(command, capture_output=True, text=True)
    built = aside / "_build" / "html"
    if sphinx.returncode:
        warned = "WARNING" in sphinx.stderr
        output = sphinx.stderr if warned else sphinx.stdout + sphinx.stderr
        print(plain(output), file=sys.stderr)
        print(f"flatnb: the book has faults; its pages: {built}", file=sys.stderr)
        return False
    shutil.rmtree(pages, ignore_errors=True)
    built.rename(pages)
    return True


# --- the repository's address -------------------------------------------------------


def address(root: Path) -> tuple[str, str]:
    """The repository's url, "" while there is none, and branch, from _config.yml."""
    repository = settings(root)["repository"]
    url, branch = repository.get("url") or "", repository.get("branch") or "main"
    return checked(url, branch, "_config.yml, repository: ")


def checked(url: str, branch: str, place: str = "") -> tuple[str, str]:
    """An address on GitHub, which is what Colab opens, or "", and a branch.

    Raises:
        UserError: they are not, at the place that is said.
    """
    if url and not re.fullmatch(ADDRESS, str(url)):
        form = "https://github.com/OWNER/NAME"
        raise UserError(f"{place}{url!r} is not of the form {form}")
    if not re.fullmatch(r"\w[\w./-]*", str(branch)):
        raise UserError(f"{place}{branch!r} is no branch or tag")
    return url, branch


def with_address(root: Path, url: str, branch: str) -> dict[Path, str]:
    """The texts of _config.yml and of all notebooks, with the repository's address."""
    checked(url, branch)
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    for path in notebooks:
        read(path)
    texts = {}
    for path in [root / "_config.yml", *notebooks]:
        text = path.read_text(encoding="utf-8")
        for pattern, value in zip(PRECEDING[path.suffix], (url, branch), strict=True):
            text, count = re.subn(pattern, rf"\g<1>{value}", text, flags=re.MULTILINE)
            if count != 1:
                raise UserError(f"{path} has {count} times {pattern}; it needs it once")
        texts[path] = text
    return texts


# --- docstrings ---------------------------------------------------------------------


def with_literal_formulas(docstring: str) -> str:
    """A docstring whose indented paragraphs, the formulas, are literal blocks of RST.

    >>> with_literal_formulas("The mean:\\n\\n    sum / n").splitlines()
    ['The mean:', '', '::', '', '    sum / n']
    """
    line_above = r"^( *)(?!\.\.)(\S.*(?<!::)\n\n)(?=\1 {4,}\S)"
    return re.sub(line_above, r"\1\2\1::\n\n", docstring, flags=re.MULTILINE)


def setup(app: Any) -> None:
    """As an extension of Sphinx: docstrings as above, before napoleon reads them."""
    app.connect("autodoc-process-docstring", _process, priority=400)


def _process(
    app: Any, kind: Any, name: Any, obj: Any, options: Any, lines: Any
) -> None:
    lines[:] = with_literal_formulas("\n".join(lines)).split("\n")
