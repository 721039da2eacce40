"""torchvision imports, next to a torch that it was compiled for or not."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from flatnb import _torchvision

MISMATCH = RuntimeError("operator torchvision::nms does not exist")


@pytest.fixture
def imports(monkeypatch: pytest.MonkeyPatch):
    """Stand-ins for the import, which gives `outcomes` one by one, and for what
    defines schemas.
    """
    outcomes: list[Exception | ModuleType] = []
    defined: list[str] = []

    def import_module(name: str) -> ModuleType:
        assert name == "torchvision"
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(
        torch.library, "define", lambda name, schema: defined.append(name)
    )
    return outcomes, defined


def test_a_torchvision_that_matches_is_left_alone(imports) -> None:
    outcomes, defined = imports
    outcomes.append(module := ModuleType("torchvision"))
    assert _torchvision.load() is module
    assert defined == []


def test_missing_operators_are_declared_and_the_import_repeated(
    imports, monkeypatch
) -> None:
    outcomes, defined = imports
    module = ModuleType("torchvision")
    outcomes.extend([MISMATCH, module])
    monkeypatch.setitem(sys.modules, "torchvision.extension", ModuleType("half"))
    monkeypatch.setitem(sys.modules, "torchvisionary", ModuleType("another package"))
    assert _torchvision.load() is module
    assert defined == ["torchvision::nms", "torchvision::qnms"]
    assert "torchvision.extension" not in sys.modules
    assert "torchvisionary" in sys.modules


def test_another_failure_is_not_touched(imports) -> None:
    outcomes, defined = imports
    outcomes.append(RuntimeError("compiled with different CUDA major versions"))
    with pytest.raises(RuntimeError, match="CUDA major"):
        _torchvision.load()
    assert defined == []


def test_a_second_failure_is_not_swallowed(imports) -> None:
    outcomes, _ = imports
    outcomes.extend(
        [MISMATCH, RuntimeError("operator torchvision::new_one does not exist")]
    )
    with pytest.raises(RuntimeError, match="new_one"):
        _torchvision.load()


def test_the_installed_torchvision_serves_and_loads_late(root: Path) -> None:
    program = """
import sys, torch
import flatnb, flatnb.data.images
assert not [n for n in sys.modules if n.split(".")[0] == "torchvision"]
from flatnb import _torchvision
tv = _torchvision.load()
assert _torchvision.load() is tv
import torchvision
assert torchvision is tv
assert issubclass(tv.datasets.MNIST, torch.utils.data.Dataset)
flip = tv.transforms.RandomHorizontalFlip(1.0)
assert flip(torch.tensor([[[1.0, 2.0]]])).tolist() == [[[2.0, 1.0]]]
assert tv.models.resnet18(num_classes=3).eval()(torch.randn(1, 3, 32, 32)).shape == (1, 3)
boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
try:
    kept = tv.ops.nms(boxes, torch.tensor([0.5, 0.9]), 0.5).tolist()
except RuntimeError as error:
    assert not tv.extension._has_ops() and "Couldn't load custom C++ ops" in str(error)
else:
    assert kept == [1]
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
