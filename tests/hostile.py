"""Where the contents of a JSON file can be changed: for the tests of hostile files."""

from __future__ import annotations

from typing import Any

MARK = "@@here@@"  # in place of a value; replaced by raw text


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a node."""
    keys = list(node) if isinstance(node, dict) else range(len(node))
    below = [
        p
        for key in keys
        if isinstance(node[key], dict | list)
        for p in places(node[key])
    ]
    return [(node, key) for key in keys] + below
