"""Benchmarks, one after another: python -m benchmarks, or python -m benchmarks images
sensing.

Run them on a machine that does nothing else; each prints ratios taken in one run.
"""

import argparse
import subprocess
import sys

NAMES = ("methods", "ensemble", "curvature", "images", "sensing")
parser = argparse.ArgumentParser(
    prog="python -m benchmarks", description="All, or those named."
)
parser.add_argument("name", nargs="*", help=", ".join(NAMES))
chosen = parser.parse_args().name or NAMES
if unknown := sorted(set(chosen) - set(NAMES)):
    parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
for name in chosen:
    print(f"\n== {name}", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
