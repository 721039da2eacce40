"""The package is there without being asked for, and costs nothing until then."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, flatnb
assert not {"scipy", "flatnb.curvature"} & set(sys.modules)
assert flatnb.curvature.trace.__name__ == "trace"
import flatnb.curvature as curvature
assert all(hasattr(curvature, name) for name in curvature.__all__)
"""


def test_curvature_is_an_attribute_of_flatnb_loaded_when_asked_for():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
