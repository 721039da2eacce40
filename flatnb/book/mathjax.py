"""MathJax 3.2.2, which shows the formulas of the pages, from an installed package: pages
ask nothing of another host, and `_build/html` can be read without a network.
"""

import hashlib
import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from flatnb.book.run import UserError

PACKAGE = "django-static-mathjax"  # of which nothing but these files is used
SCRIPT = "tex-chtml.js"  # TeX to HTML; it looks for its fonts next to itself
FONTS = "output/chtml/fonts/woff-v2"
SHA256 = "9b5ae004241a76ab35468a2b8cc567774cfd919f3788c29de17dc1fba95bbe06"


def copy(folder: Path) -> None:
    """Copy script, fonts and license into `folder`.

    Raises:
        UserError: the package is missing, or its script is not that of MathJax 3.2.2.
    """
    try:
        files = distribution(PACKAGE).locate_file("mathjax/static/mathjax")
    except PackageNotFoundError:
        missing = f"the pages need MathJax, which is in the package {PACKAGE}"
        raise UserError(f"{missing}: pip install 'flatnb[site]'") from None
    source = Path(str(files))
    script = source / "es5" / SCRIPT
    found = hashlib.sha256(script.read_bytes()).hexdigest() if script.exists() else None
    if found != SHA256:
        expected = f"SHA-256 {found}; allowed: {SHA256}, of MathJax 3.2.2"
        raise UserError(f"{script} has {expected}: pip install '{PACKAGE}==3.2.2.1'")
    shutil.copytree(source / "es5" / FONTS, folder / FONTS, dirs_exist_ok=True)
    for file in (script, source / "LICENSE"):
        shutil.copy(file, folder)
