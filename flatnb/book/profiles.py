"""What a notebook imports from the book: its profile's settings and the first cell's line."""

import importlib
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

PROFILES = ("smoke", "laptop", "paper")


def settings(
    profile: str,
    *,
    smoke: dict[str, Any],
    laptop: dict[str, Any],
    paper: dict[str, Any],
) -> SimpleNamespace:
    """The settings of one profile, by name:
    `settings(profile, smoke=dict(epochs=2), …).epochs`.

    Raises ValueError for an unknown profile, or when the three do not set the same
    names.
    """
    choices = {"smoke": smoke, "laptop": laptop, "paper": paper}
    if profile not in choices:
        raise ValueError(f"profile is {profile!r}; it can be {', '.join(PROFILES)}")
    names = set().union(*choices.values())
    for name, values in choices.items():
        if missing := sorted(names - set(values)):
            raise ValueError(f"the settings for {name!r} lack {', '.join(missing)}")
    return SimpleNamespace(**choices[profile])


def about(revision: str) -> str:
    """One line for the top of a page: device, torch, flatnb."""
    import torch

    import flatnb

    cuda = torch.cuda.is_available()
    threads = torch.get_num_threads()
    cpu = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    device = torch.cuda.get_device_name() if cuda else cpu
    return f"{device} · torch {torch.__version__} · flatnb {flatnb.__version__} ({revision})"


class Missing:
    """Stands for a package that is not installed: it is false, and its classes are `object`."""

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> type:
        if name.startswith("_"):
            raise AttributeError(name)
        return object


def optional(package: str) -> Any:
    """A package, or where it is not installed a `Missing`, after a line that says what
    to install.

    With it a page can define a class of a framework, and use that class only where
    there is one:

    >>> json = optional("json")
    >>> bool(json)
    True
    """
    if find_spec(package) is None:
        print(
            f"{package} is not installed, so its recipes do not run: pip install {package}"
        )
        return Missing()
    from flatnb import _torchvision

    _torchvision.load()  # before a framework does, and fails where the operators do not match
    return importlib.import_module(package)
