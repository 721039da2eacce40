"""Files of figures: small ones, and their counterparts in the colors of dark mode.

The book's run draws each figure as SVG and as PNG. `smaller` keeps the SVG, or the PNG
of a figure whose many points make its SVG larger than `LIMIT` bytes. Either says where
the figure can be cut into its columns (`flatnb.book.panels`).
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from flatnb.book import panels
from flatnb.book.dark import dark, dark_hex

LIMIT = 150_000
_PAINT = re.compile(r"((?:fill|stroke|stop-color)(?::\s*|=\"))(#[0-9a-fA-F]{6})")
_RASTER = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)")


def smaller(bundle: dict[str, Any]) -> dict[str, Any]:
    """The output of a cell with one of its two pictures: the SVG, if it is small enough.

    >>> sorted(smaller({"image/svg+xml": "<svg/>", "image/png": "iVBO"}))
    ['image/svg+xml']
    """
    if "image/svg+xml" not in bundle:
        return bundle
    svg = "".join(bundle["image/svg+xml"])
    png = base64.b64decode(bundle["image/png"]) if "image/png" in bundle else None
    columns = panels.words(panels.found(svg, png)) if png else ""
    svg = compact(svg)
    others = {k: v for k, v in bundle.items() if not k.startswith("image/")}
    if len(svg) <= LIMIT or png is None:
        if columns:
            svg = svg.replace("<svg ", f'<svg data-panels="{columns}" ', 1)
        return {**others, "image/svg+xml": svg}
    png = few_colors(png, columns)
    return {**others, "image/png": base64.b64encode(png).decode()}


def compact(svg: str) -> str:
    """An SVG of matplotlib in fewer characters: paths to a hundredth of a point, no
    metadata, which would say when it was drawn.

    >>> compact('<svg><path d="M 1.23456 2 \\nL 3 4.5 "/></svg>')
    '<svg><path d="M1.23 2L3 4.5"/></svg>'
    """

    def rounded(number: re.Match[str]) -> str:
        return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")

    def shorter(found: re.Match[str]) -> str:
        path = re.sub(r"\d+\.\d{3,}", rounded, " ".join(found[1].split()))
        path = re.sub(r"\s*([A-Za-z])\s*", r"\1", path)
        return f' d="{path}"'

    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*|^\s+", "", svg, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r' d="([^"]*)"', shorter, svg)


def dark_svg(svg: str) -> str:
    """An SVG in the colors of dark mode, the pixels of images in it too.

    >>> dark_svg('<svg width="9pt"><path style="fill: #ffffff"/></svg>')
    '<svg fill="#d3d4d5" width="9pt"><path style="fill: #14181e"/></svg>'
    """
    svg = _PAINT.sub(lambda found: found[1] + dark_hex(found[2]), svg)
    svg = _RASTER.sub(_dark_raster, svg)
    # Matplotlib leaves out what is black.
    return svg.replace("<svg ", f'<svg fill="{dark_hex("black")}" ', 1)


def _dark_raster(found: re.Match[str]) -> str:
    pixels = dark_png(base64.b64decode(found[1]))
    return f"data:image/png;base64,{base64.b64encode(pixels).decode()}"


def few_colors(png: bytes, columns: str = "") -> bytes:
    """A PNG with at most 256 colors, which is a third as large; on white. It can state
    columns, in the words of `flatnb.book.panels`."""
    picture = _opened(png)
    white = Image.new("RGBA", picture.size, "white")
    whole = Image.alpha_composite(white, picture).convert("RGB")
    return _written(whole.quantize(256, dither=Image.Dither.NONE), picture, columns)


def dark_png(png: bytes) -> bytes:
    """The pixels of a PNG in the colors of dark mode; what is transparent stays so.

    >>> white = io.BytesIO()
    >>> Image.new("RGB", (1, 1), "white").save(white, "PNG")
    >>> Image.open(io.BytesIO(dark_png(white.getvalue()))).convert("RGB").getpixel((0, 0))
    (20, 24, 30)
    """
    picture = _opened(png)
    pixels = np.asarray(picture)
    colors, places = np.unique(pixels.reshape(-1, 4), axis=0, return_inverse=True)
    colors[:, :3] = np.rint(255 * dark(colors[:, :3] / 255))
    turned = Image.fromarray(colors[places.ravel()].reshape(pixels.shape))
    if len(colors) <= 256 and (colors[:, 3] == 255).all():
        turned = turned.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    return _written(turned, picture)


def _opened(png: bytes) -> Image.Image:
    with Image.open(io.BytesIO(png)) as picture:
        return picture.convert("RGBA")


def _written(picture: Image.Image, like: Image.Image, columns: str = "") -> bytes:
    file, texts = io.BytesIO(), PngInfo()
    if columns:
        texts.add_text("panels", columns)
    dpi = like.info.get("dpi")
    picture.save(file, "PNG", optimize=True, dpi=dpi, pnginfo=texts)
    return file.getvalue()


def inches(path: Path) -> tuple[float, float]:
    """Width and height of a picture file, as it was drawn: an SVG in points, or a PNG
    that says its resolution."""
    if path.suffix == ".svg":
        head = path.read_text(encoding="utf-8")[:2000]
        sizes = re.findall(r'\b(?:width|height)="([\d.]+)pt"', head)
        width, height = (float(size) / 72 for size in sizes)
        return width, height
    with Image.open(path) as picture:
        dots = picture.info.get("dpi", (96, 96))
        return picture.width / float(dots[0]), picture.height / float(dots[1])
