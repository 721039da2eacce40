"""What finders of pages read, as an extension of Sphinx: the description of each page, for
the head, for cards of links to it, and below its title among the results of a search.
"""

import html
import json
import textwrap
from pathlib import Path
from typing import Any

from flatnb.book import cards


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
    title = app.env.titles[name].astext()
    text = description(page) or f"{title}: {app.config.html_title}"
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
        if app.config.html_baseurl:
            context["metatags"] += _card(app, name, html.unescape(described[name]))
    if name == "search":
        leads = {page: html.unescape(text) for page, text in described.items()}
        context["leads"] = json.dumps(leads, ensure_ascii=False).replace("</", "<\\/")


def _card(app: Any, name: str, finding: str) -> str:
    """The tags that name the card of this page, which it draws."""
    file = Path("_images", "cards", f"{name.replace('/', '-')}.png")
    (app.outdir / file).parent.mkdir(parents=True, exist_ok=True)
    logo = Path(app.srcdir, app.config.html_logo)
    title = app.env.titles[name].astext()
    figure = cards.card(title, finding, app.config.html_title, logo)
    figure.savefig(app.outdir / file, pil_kwargs={"optimize": True})
    tags = {
        "og:image": f"{app.config.html_baseurl}{file.as_posix()}",
        "og:image:width": cards.SIZE[0],
        "og:image:height": cards.SIZE[1],
        "og:image:alt": f"{title}: {finding}",
    }
    lines = [
        f'\n    <meta property="{tag}" content="{html.escape(str(content))}" />'
        for tag, content in tags.items()
    ]
    return (
        "".join(lines)
        + '\n    <meta name="twitter:card" content="summary_large_image" />'
    )
