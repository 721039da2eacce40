"""An extension of Sphinx: pictures for both modes, which stay readable on a phone.

Next to each picture of a page it puts the one that `flatnb.book.figures` colors. The
theme's classes only-light and only-dark show one of the two, and browsers fetch only
that: a hidden picture whose loading is lazy is never wanted. Around both is a box that
knows the picture's size in inches, by which a style sheet reserves its place and keeps
its text readable.
"""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

from flatnb.book.figures import dark_png, dark_svg, inches


class Box(nodes.General, nodes.Element):
    """A picture, light and dark, in a box that knows its size."""


def _open(self: Any, node: Box) -> None:
    style = f"--width: {node['inches'][0]:.3f}; --height: {node['inches'][1]:.3f}"
    self.body.append(f'<div class="picture" style="{style}">\n')


def _close(self: Any, node: Box) -> None:
    self.body.append("</div>\n")


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
            box = Box("", inches=inches(path))
            image.replace_self(box)
            box += [image, twin]


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
