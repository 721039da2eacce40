"""What draws the charts of `flatnb.charts` on the pages: Vega, Vega-Lite and Vega-Embed as
one script, out of vl-convert-python. Pages without a chart do not load it (play.py)."""

from pathlib import Path

SCRIPT = "vega.js"


def save(folder: Path) -> None:
    """Write the script into a folder, as `SCRIPT`."""
    import vl_convert

    text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # It is a module: as a script its names would be those of all scripts of a page.
    (folder / SCRIPT).write_text(f"(() => {{{text}\n}})();\n", encoding="utf-8")
