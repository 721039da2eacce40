"""An extension of Sphinx: pictures for both modes, which stay readable on a phone.

Next to each picture of a page it puts the one that `flatnb.book.figures` colors. The
theme's classes only-light and only-dark show one of the two, and browsers fetch only
that: a hidden picture whose loading is lazy is never wanted. Around both is a box that
knows the picture's size in inches, by which a style sheet reserves its place and keeps
its text readable. A figure that is too wide for a phone is in its box once more as its
columns, for a style sheet to put one below the other.
"""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

from flatnb.book import panels
from flatnb.book.figures import dark_png, dark_svg, inches

PHONE = 6.2  # inches: what is wider is cut into its columns on a phone


class Box(nodes.General, nodes.Element):
    """A part of a page that has a class and its sizes as variables of a style."""


def _open(self: Any, node: Box) -> None:
    style = "; ".join(f"--{name}: {size:.3f}" for name, size in node["sizes"].items())
    hidden = ' aria-hidden="true"' * node.get("hidden", False)
    self.body.append(f'<div class="{node["kind"]}"{hidden} style="{style}">\n')


def _close(self: Any, node: Box) -> None:
    self.body.append("</div>\n")


def _columns(columns: list[list[panels.Part]], images: list[nodes.image]) -> Box:
    """The columns of a figure, each a row of windows through which a part of it is seen."""
    whole = Box("", kind="columns", sizes={})
    for number, parts in enumerate(columns):
        share = sum(part.end - part.start for part in parts)
        # The words of the picture stand for all of it: they are read once.
        column = Box("", kind="column", sizes={"share": share}, hidden=number > 0)
        for part in parts:
            sizes = {"from": part.start, "part": part.end - part.start}
            window = Box("", kind="window", sizes={**sizes, "floor": part.floor})
            for image in images:
                seen = image.deepcopy()
                seen["ids"] = []
                window += seen
            column += window
        whole += column
    return whole


class Pictures(SphinxPostTransform):
    """Puts each picture of a page, and its dark counterpart, into a box."""

    default_priority = 10  # after myst-nb has chosen one format of each output
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Replace the images of one page."""
        for image in list(self.document.findall(nodes.image)):
            path = Path(self.app.srcdir, image["uri"])
            if path.suffix not in (".svg", ".png") or not path.is_file():
                continue
            other = path.with_name(f"{path.stem}-dark{path.suffix}")
            if path.suffix == ".svg":
                other.write_text(dark_svg(path.read_text("utf-8")), encoding="utf-8")
            else:
                other.write_bytes(dark_png(path.read_bytes()))
            twin = image.deepcopy()
            twin["uri"] = posixpath.join(posixpath.dirname(image["uri"]), other.name)
            twin["ids"] = []
            self.env.images.add_file(self.env.docname, twin["uri"])
            for node, mode in ((image, "only-light"), (twin, "only-dark")):
                node["classes"] = [*node["classes"], mode]
                node["loading"] = "lazy"
            width, height = inches(path)
            box = Box("", kind="picture", sizes={"width": width, "height": height})
            columns = panels.of(path) if width > PHONE else []
            image.replace_self(box)
            box += [image, twin]
            if columns:
                box["kind"] += " of-columns"
                box += _columns(columns, [image, twin])


def _logo(app: Any, config: Any) -> None:
    """The theme's logo in both modes, next to the title of the book. Jupyter Book would
    drop its own options of the theme if the settings named this one."""
    if "logo" in config.html_theme_options or not config.html_logo:
        return
    light = config.html_logo
    config.html_theme_options["logo"] = {
        "image_light": light,
        "image_dark": light.replace("light", "dark"),
        "text": config.html_title,
        "alt_text": "",
    }


def setup(app: Any) -> dict[str, bool]:
    """As an extension of Sphinx."""
    app.add_node(Box, html=(_open, _close))
    app.add_post_transform(Pictures)
    app.connect("config-inited", _logo)
    return {"parallel_read_safe": True}
