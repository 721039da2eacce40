"""All benchmarks, one after another: python -m benchmarks. Run them on a machine that does nothing
else; each prints ratios taken in one run."""

import subprocess
import sys

for name in ("methods", "ensemble", "curvature", "images", "sensing"):
    print(f"\n== {name}", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
