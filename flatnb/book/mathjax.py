"""MathJax 3.2.2, which shows the formulas of the pages, from an installed package: pages
ask nothing of another host, and `_build/html` can be read without a network.
"""

import hashlib
import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from flatnb.book.run import UserError

PACKAGE = "django-static-mathjax"  # of which nothing but these files is used
# From TeX to HTML that readers of the screen understand. These are the parts of MathJax's own
# tex-chtml.js but for its menu, which is two fifths of it, and what loads further files.
PARTS = (
    "startup",
    "core",
    "input/tex-base",
    "input/tex/extensions/ams",
    "input/tex/extensions/newcommand",
    "input/tex/extensions/noundefined",
    "input/tex/extensions/configmacros",
    "output/chtml",
    "output/chtml/fonts/tex",
    "a11y/assistive-mml",
)
SCRIPT = "mathjax.js"  # all parts; it looks for its fonts next to itself
FONTS = "output/chtml/fonts/woff-v2"
SHA256 = "6be4f87dbf89f14ffac3d88380bc5ec6608b128f7ac6c2fbd457497f10e38385"


def copy(folder: Path) -> None:
    """Put script, fonts and license into `folder`.

    Raises:
        UserError: the package is missing, or its parts are not those of MathJax 3.2.2.
    """
    try:
        files = distribution(PACKAGE).locate_file("mathjax/static/mathjax")
    except PackageNotFoundError:
        missing = f"the pages need MathJax, which is in the package {PACKAGE}"
        raise UserError(f"{missing}: pip install 'flatnb[site]'") from None
    source = Path(str(files))
    parts = [source / "es5" / f"{part}.js" for part in PARTS]
    lacking = [part.stem for part in parts if not part.exists()]
    texts = [part.read_text(encoding="utf-8") for part in parts if part.exists()]
    script = "\n".join(texts)
    found = hashlib.sha256(script.encode()).hexdigest()
    if lacking or found != SHA256:
        lacks = f", without {', '.join(lacking)}," if lacking else ""
        raise UserError(
            f"{source}{lacks} has parts of SHA-256 {found}; allowed: {SHA256}, of "
            f"MathJax 3.2.2: pip install '{PACKAGE}==3.2.2.1'"
        )
    shutil.copytree(source / "es5" / FONTS, folder / FONTS, dirs_exist_ok=True)
    (folder / SCRIPT).write_text(script, encoding="utf-8")
    shutil.copy(source / "LICENSE", folder)
