"""The cells of a notebook, as the pages see them."""

from typing import Any

# Tags of the cells that come before the first section of a notebook.
SETUP = {"bootstrap", "parameters", "injected-parameters", "setup"}
FOLDED = {
    "hide-input",
    "hide-cell",
    "remove-input",
}  # tags of cells whose code is not seen


def tags(cell: dict[str, Any]) -> list[str]:
    """The tags of a cell, none if it has none.

    >>> tags({"metadata": {"tags": ["setup"]}})
    ['setup']
    """
    return cell["metadata"].get("tags", [])


def minutes(cells: list[dict[str, Any]]) -> int:
    """Minutes to read the prose at 200 words, and the code that is not folded at 20
    lines, per minute.

    >>> minutes([{"cell_type": "markdown", "source": "one " * 400, "metadata": {}}])
    3
    """
    total = 1.0
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            total += len(source.split()) / 200
        elif not {*SETUP, *FOLDED}.intersection(tags(cell)):
            total += len(source.splitlines()) / 20
    return round(total)


def apart(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """The cell, and before it one with the data that it wrote for play.js: in the same
    cell they would get its caption, too.

    >>> len(apart({"outputs": [], "metadata": {}}))
    1
    """
    outputs = cell.get("outputs", [])
    html = ["".join(output.get("data", {}).get("text/html", "")) for output in outputs]
    data = [o for o, text in zip(outputs, html, strict=True) if "play-data" in text]
    if not data:
        return [cell]
    hidden = {"tags": ["remove-input", "figure-data"]}
    own = {"id": f"{cell['id']}-data", "metadata": hidden, "source": "# not shown"}
    rest = [output for output in outputs if output not in data]
    return [{**cell, **own, "outputs": data}, {**cell, "outputs": rest}]


def joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outputs with what was printed in one go as one of them, however often it flushed;
    what was printed before a table or figure stays before it, and the rest behind.

    >>> said = [{"output_type": "stream", "name": "stdout", "text": word} for word in "ab"]
    >>> [output["text"] for output in joined(said)]
    ['ab']
    """
    found: list[dict[str, Any]] = []
    for output in outputs:
        name, last = output.get("name"), found[-1].get("name") if found else None
        if name and name == last:  # only streams have names
            text = "".join(found[-1]["text"]) + "".join(output["text"])
            found[-1] = {**found[-1], "text": text}
        else:
            found.append(output)
    return found
