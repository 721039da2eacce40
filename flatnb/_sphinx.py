"""Sphinx extension of the book, named in _config.yml.

Jupyter Book 1 always loads sphinx-thebe (live cells, which this book has none of), and that writes
its settings into each page twice, as constants: an error in the browser's console on every page.
"""

from typing import Any


def setup(app: Any) -> dict[str, bool]:
    """Keep sphinx-thebe's scripts out of the pages."""
    listeners = app.events.listeners["env-before-read-docs"]
    listeners[:] = [one for one in listeners if one.handler.__name__ != "init_thebe_core"]
    return {"parallel_read_safe": True, "parallel_write_safe": True}
