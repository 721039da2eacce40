"""What finders of pages read, as an extension of Sphinx: the description of each page, for
the head, for cards of links to it, and below its title among the results of a search.
"""

import html
import json
import textwrap
from typing import Any


def setup(app: Any) -> None:
    """As an extension of Sphinx: what each page says, and then its head."""
    app.connect("doctree-resolved", _describe)
    app.connect("html-page-context", _page, priority=400)


def description(page: Any) -> str:
    """The bold sentences that a page begins with, else its first paragraph."""
    from docutils import nodes

    def words(node: Any) -> str:
        texts = node.findall(nodes.Text)
        return "".join(t.astext() for t in texts if not isinstance(t.parent, nodes.raw))

    section = next(iter(page.findall(nodes.section)), ())
    paragraph = next((n for n in section if isinstance(n, nodes.paragraph)), None)
    if paragraph is None:
        return ""
    first = next((node for node in paragraph if words(node).strip()), paragraph)
    lead = first if isinstance(first, nodes.strong) else paragraph
    return textwrap.shorten(words(lead), 400, placeholder=" …")


def _describe(app: Any, page: Any, name: str) -> None:
    text = description(page) or app.config.html_title
    app.env.metadata[name]["og:description"] = html.escape(text, quote=False)


def _page(
    app: Any, name: str, _template: str, context: dict[str, Any], _doctree: Any
) -> None:
    described = {
        page: metadata["og:description"]
        for page, metadata in app.env.metadata.items()
        if "og:description" in metadata
    }
    if name in described:
        text = described[name].replace('"', "&quot;")
        context["metatags"] += f'\n    <meta name="description" content="{text}" />'
    if name == "search":
        leads = {page: html.unescape(text) for page, text in described.items()}
        context["leads"] = json.dumps(leads, ensure_ascii=False).replace("</", "<\\/")
