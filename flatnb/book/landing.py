"""The landing page: what the build writes into its text.

Each comment `<!-- NAME -->` of intro.md is replaced: `headline` by the numbers of the
figure that it opens with, `chapters` by a card per chapter, `bibtex` by how to cite.
"""

import base64
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flatnb.book import headline
from flatnb.book.cells import minutes
from flatnb.book.dark import dark

WIDTH = 480  # pixels of a card's picture: twice what a card is wide
WORDS = 35  # of a chapter's finding that a card has room for


def filled(text: str, root: Path, executed: Mapping[Path, Path], static: Path) -> str:
    """The text with all comments replaced; the pictures of the cards go to `static`.

    `executed` has the executed copies of the chapters by their path below root.
    """
    parts = {
        "headline": lambda: _script(headline.data()),
        "chapters": lambda: _cards(root, executed, static),
        "bibtex": lambda: bibtex((root / "CITATION.cff").read_text(encoding="utf-8")),
    }
    for name, make in parts.items():
        if f"<!-- {name} -->" in text:
            text = text.replace(f"<!-- {name} -->", make())
    return text


def _script(data: str) -> str:
    return f'<script type="application/json" class="play-data">{data}</script>'


def finding(lead: str) -> str:
    """What a chapter found: the first sentences of its bold lead, without links.

    >>> finding("# Title\\n\\n**One {term}`pass`<!-- note -->. It is enough.** More.")
    'One pass. It is enough.'
    """
    bold = re.search(r"\*\*(.+?)\*\*", lead, re.DOTALL)
    if bold is None:
        raise ValueError(f"no bold finding in {lead[:80]!r}")
    text = re.sub(r"<!--.*?-->", "", bold[1], flags=re.DOTALL)
    text = re.sub(r"\{(?:term|doc)\}`([^<`]*?)(?: *<[^>]*>)?`", r"\1", text)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    found = ""
    for sentence in re.split(r"(?<=[.?!]) (?=[A-Z])", " ".join(text.split())):
        longer = f"{found} {sentence}".strip()
        if found and len(longer.split()) > WORDS:
            break
        found = longer
    return found


def _cards(root: Path, executed: Mapping[Path, Path], static: Path) -> str:
    """Per part of the book a heading and a grid of cards, one per numbered chapter."""
    import yaml

    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    (static / "chapters").mkdir(parents=True, exist_ok=True)
    lines, number = [], 0
    for part in toc["parts"]:
        if not part.get("numbered"):
            continue
        lines += [f"### {part['caption']}", "", "::::{grid} 1 2 3 3", ":gutter: 3", ""]
        for chapter in part["chapters"]:
            number += 1
            page = Path(f"{chapter['file']}.ipynb")
            text = executed.get(page, root / page).read_text(encoding="utf-8")
            cells = json.loads(text)["cells"]
            lead = "".join(cells[0]["source"])
            title = lead.partition("\n")[0].lstrip("# ")
            lines += [
                f":::{{grid-item-card}} {number}  {title}",
                f":link: ../{chapter['file']}",
                ":link-type: doc",
                ":class-card: chapter",
                "",
                *_thumbnails(cells, page.stem, title, static / "chapters"),
                f"{finding(lead)} *{minutes(cells)}\N{NO-BREAK SPACE}min*",
                ":::",
                "",
            ]
        lines += ["::::", ""]
    return "\n".join(lines)


def _thumbnails(
    cells: list[dict[str, Any]], name: str, title: str, folder: Path
) -> list[str]:
    """The first picture of a chapter, small, for the light and for the dark page."""
    outputs = (output for cell in cells for output in cell.get("outputs", ()))
    pictures = (output.get("data", {}).get("image/png") for output in outputs)
    encoded = next((picture for picture in pictures if picture), None)
    if encoded is None:
        return []
    image = Image.open(io.BytesIO(base64.b64decode("".join(encoded)))).convert("RGB")
    image = image.resize((WIDTH, round(WIDTH * image.height / image.width)))
    image = image.crop((0, 0, WIDTH, min(image.height, round(0.7 * WIDTH))))
    other = Image.fromarray((255 * dark(np.asarray(image) / 255)).astype(np.uint8))
    lines = []
    for mode, picture in (("light", image), ("dark", other)):
        file = f"{name}-{mode}.webp"
        picture.save(folder / file, quality=70, method=6)
        lines += [
            f"```{{image}} _static/chapters/{file}",
            f":class: only-{mode}",
            f":alt: The first figure of “{title}”.",
            f":width: {WIDTH // 2}px",
            ":loading: lazy",
            "```",
        ]
    return [*lines, ""]


def bibtex(citation: str) -> str:
    """A block of BibTeX from the text of CITATION.cff.

    >>> text = "title: A b\\nauthors:\\n- name: We\\nversion: 1.0\\n"
    >>> print(bibtex(text + "date-released: 2026-01-02"))
    ```bibtex
    @software{flatnb,
      author  = {{We}},
      title   = {A b},
      year    = {2026},
      version = {1.0}
    }
    ```
    """
    import yaml

    stated = yaml.safe_load(citation)
    names = [
        f"{{{author['name']}}}"
        if "name" in author
        else f"{author['family-names']}, {author['given-names']}"
        for author in stated["authors"]
    ]
    fields = {
        "author": " and ".join(names),
        "title": stated["title"],
        "year": str(stated.get("date-released", ""))[:4],
        "version": str(stated["version"]),
        "doi": stated.get("doi", ""),
        "url": stated.get("repository-code", ""),
    }
    rows = [f"  {key:7} = {{{value}}}" for key, value in fields.items() if value]
    return "\n".join(["```bibtex", "@software{flatnb,", ",\n".join(rows), "}", "```"])
