"""What notebooks import from the book: the settings of a profile, the first line."""

import importlib
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from flatnb._checks import choice

PROFILES = ("smoke", "laptop", "paper")


def settings(profile: str, **profiles: dict[str, Any]) -> SimpleNamespace:
    """The settings of one profile.

    >>> settings("smoke", smoke={"n": 1}, laptop={"n": 9}, paper={"n": 99}).n
    1
    """
    return SimpleNamespace(**profiles[choice("profile", profile, profiles)])


def about(revision: str) -> str:
    """One line for the top of a page: device, versions of torch and flatnb."""
    import torch

    import flatnb

    threads = torch.get_num_threads()
    device = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    versions = f"torch {torch.__version__} · flatnb {flatnb.__version__}"
    return f"{device} · {versions} ({revision})"


class Missing:
    """Stands for a package that is not installed: false, its classes are `object`."""

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> type:
        return object


def optional(package: str) -> Any:
    """A package, or a `Missing` after a line that says what to install. A page can so
    define a class of a framework, and use it only where there is one.

    >>> bool(optional("json"))
    True
    """
    if find_spec(package) is None:
        print(f"{package} is not installed; its recipes need: pip install {package}")
        return Missing()
    from flatnb import _torchvision

    _torchvision.load()  # a framework that does it itself fails on unmatched operators
    return importlib.import_module(package)
