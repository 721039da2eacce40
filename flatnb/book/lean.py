"""Make built pages light: one style sheet, of the rules that some page can use and with a
font of the icons that they name; files that no page names are removed.

Without this, a page weighs half a megabyte more, most of it icons that it does not show.
"""

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterator
from io import BytesIO
from itertools import count
from pathlib import Path

SHEET = "book.css"
# Classes that scripts put together from parts.
COMPOSED = {"bs-tooltip-auto"}
# Fonts of icons, and the classes that ask for one; the theme itself uses the first.
# Sphinx marks links to GitHub and GitLab, and the theme puts an icon before them.
FONTS = {
    "fa-solid-900": None,
    "fa-regular-400": {"far", "fa-regular"},
    "fa-brands-400": {"fab", "fa-brands", "github", "gitlab"},
}
LINK = re.compile(
    r'\s*<link [^>]*?href="([^"]*?_static/)([^"?]+\.css)(?:\?[^"]*)?"[^>]*>'
)


def lighten(html: Path, own: Path) -> None:
    """Rewrite what was built into `html`. Style sheets that `own`, the book's folder of
    static files, has are kept whole, and so are its other files."""
    static = html / "_static"
    pages = {page: page.read_text(encoding="utf-8") for page in html.rglob("*.html")}
    pages = {page: text for page, text in pages.items() if static not in page.parents}
    named = "\n".join(pages.values())

    def kept(file: Path) -> bool:
        return file.name in named or (own / file.relative_to(static)).exists()

    scripts = [_shipped(script) for script in static.rglob("*.js") if kept(script)]
    used = classes(named, "\n".join(scripts)) | COMPOSED
    linked = [link[2] for text in pages.values() for link in LINK.finditer(text)]
    sheets = []
    for name in dict.fromkeys(linked):
        css = (static / name).read_text(encoding="utf-8")
        sheets.append(css if (own / name).exists() else purged(css, used))
    sheet = with_icons("\n".join(sheets), static, used)
    version = hashlib.sha256(sheet.encode()).hexdigest()[:8]
    for page, text in pages.items():
        page.write_text(one_sheet(text, version), encoding="utf-8")

    named = "\n".join([*pages.values(), *scripts, sheet])
    for file in sorted(static.rglob("*"), reverse=True):  # what is in a folder first
        if file.is_dir():
            if not any(file.iterdir()):
                file.rmdir()
        elif not kept(file) or file.suffix == ".css":
            file.unlink()
    (static / SHEET).write_text(sheet, encoding="utf-8")


def _shipped(script: Path) -> str:
    """A script's text, from which the name of a source map, which is not shipped, goes,
    and what the theme notes in the console of every reader."""
    text = script.read_text(encoding="utf-8")
    shipped = re.sub(r"\n//# sourceMappingURL=.*", "", text)
    shipped = re.sub(r"console\.log\(([`\"])\[PST\].*?\1\)", "void 0", shipped)
    if shipped != text:
        script.write_text(shipped, encoding="utf-8")
    return shipped


def classes(pages: str, scripts: str) -> set[str]:
    """The classes and ids of pages, and what can be one in scripts.

    >>> sorted(classes('<p class="a b" id="c">text', "icon.classList = 'd'"))
    ['a', 'b', 'c', 'classList', 'd', 'icon']
    """
    attributes = re.findall(r'\b(?:class|id)="([^"]*)"', pages)
    return {*" ".join(attributes).split(), *re.findall(r"[\w-]+", scripts)}


def one_sheet(page: str, version: str) -> str:
    """A page with one link to SHEET in the place of its first link to a style sheet."""
    number = count()

    def replacement(link: re.Match[str]) -> str:
        one = f'\n  <link rel="stylesheet" href="{link[1]}{SHEET}?v={version}" />'
        return one if next(number) == 0 else ""

    return LINK.sub(replacement, page)


# --- style sheets -------------------------------------------------------------------


def purged(css: str, used: set[str]) -> str:
    """A style sheet without the rules that ask for a class or an id that is not used.
    What stands in `:not(...)` and the like, and what begins with @, does not count.

    >>> purged(".a, .b:hover { color: red } #c > .a { top: 0 } @media print { .b {} }", {"a"})
    '.a{ color: red }'
    """
    notices = re.findall(r"/\*!.*?\*/", css, re.DOTALL)
    kept = []
    for head, body in rules(re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)):
        if head.startswith(("@media", "@supports")):
            inner = purged(body, used)
            kept += [f"{head}{{{inner}}}"] if inner else []
        elif head.startswith("@"):
            kept.append(f"{head}{{{body}}}" if body else f"{head};")
        elif selectors := [s for s in _split(head) if used.issuperset(names(s))]:
            kept.append(f"{','.join(selectors)}{{{body}}}")
    return "\n".join([*notices, *kept])


def rules(css: str) -> Iterator[tuple[str, str]]:
    """The rules of a style sheet without comments: what stands before the braces, and
    what in them; a statement such as @import has none.

    >>> list(rules('@import "a"; p { content: "}" } @media print { p { top: 0 } }'))
    [('@import "a"', ''), ('p', ' content: "}" '), ('@media print', ' p { top: 0 } ')]
    """
    depth, start, head = 0, 0, ""
    for token in re.finditer(r"\"(?:\\.|[^\"])*\"|'(?:\\.|[^'])*'|[{};]", css):
        if token[0] == "{":
            if depth == 0:
                head, start = css[start : token.start()].strip(), token.end()
            depth += 1
        elif token[0] == "}":
            depth -= 1
            if depth == 0:
                yield head, css[start : token.start()]
                start = token.end()
        elif token[0] == ";" and depth == 0:
            yield css[start : token.start()].strip(), ""
            start = token.end()


def _split(selectors: str) -> list[str]:
    """A list of selectors at the commas that stand in no parentheses."""
    depth, parts = 0, [""]
    for letter in selectors:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def names(selector: str) -> set[str]:
    """The classes and ids that an element, or its parents, must have.

    >>> sorted(names("#a.b:not(.c) > p.d[href='x.y']::after"))
    ['a', 'b', 'd']
    """
    outside = re.sub(r"\[[^]]*\]", "", selector)
    while outside != (outside := re.sub(r"\([^()]*\)", "", outside)):
        pass
    found = re.findall(r"[.#]((?:[\w-]|\\.)+)", outside)
    return {name for name in found if "\\" not in name}  # those are never looked for


# --- icons --------------------------------------------------------------------------


def with_icons(css: str, static: Path, used: set[str]) -> str:
    """A style sheet with fonts of the icons that it names in it, for Font Awesome's."""
    escaped = {int(code, 16) for code in re.findall(r"\\(f[0-9a-f]{3})", css)}
    icons = escaped | {ord(letter) for letter in css if "\ue000" <= letter <= "\uf8ff"}

    def face(match: re.Match[str]) -> str:
        name = match[2]
        if name not in FONTS:
            return match[0]
        asked = FONTS[name]
        if asked is not None and not asked & used:
            return ""
        (file,) = static.rglob(f"{name}.ttf")
        return f"{match[1]}src:url(data:font/woff;base64,{_subset(file, icons)})}}"

    pattern = r"(@font-face\{[^}]*?)src:url\([^)]*?([\w-]+)\.woff2\)[^}]*\}"
    return re.sub(pattern, face, css)


def _subset(font: Path, icons: set[int]) -> str:
    """A font with these characters only, as base64 of WOFF."""
    from fontTools import subset

    options = subset.Options(flavor="woff", layout_features=[], name_IDs=[13, 14])
    file = subset.load_font(str(font), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=icons)
    subsetter.subset(file)
    stream = BytesIO()
    subset.save_font(file, stream, options)
    return b64encode(stream.getvalue()).decode()
