"""Run the numerical tests under each instruction set that this processor has.

PyTorch and MKL choose their kernels by processor, and each kernel rounds in its own
    way: a test
that passes under one kernel alone passes by luck. `make test-dispatch` runs this.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import torch

NUMERICAL = ["tests/methods", "tests/curvature"] + [
    f"tests/test_{part}.py"
    for part in ("data", "ensemble", "models", "sensing", "train")
]
ATEN = [
    "default",
    "avx2",
    "avx512",
]  # from the oldest, as get_cpu_capability names them
MKL = ["SSE4_2", "AVX2", "AVX512"]  # at the same places


def settings() -> list[dict[str, str]]:
    """The environment's variables, one change at a time; at last all the oldest, two
    threads.
    """
    best = torch.backends.cpu.get_cpu_capability().lower()
    count = ATEN.index(best) + 1 if best in ATEN else 0  # none on another architecture
    aten = [{"ATEN_CPU_CAPABILITY": level} for level in ATEN[:count]]
    mkl = [{"MKL_ENABLE_INSTRUCTIONS": level} for level in MKL[:count]]
    two = {
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",
    }  # no spinning beside others
    return [
        {},
        *aten,
        *mkl,
        two,
        *(a | m | two for a, m in zip(aten[:1], mkl, strict=False)),
    ]


def run(setting: dict[str, str], options: list[str]) -> bool:
    """Run the tests in a process of their own; print the last lines; whether all
    passed.
    """
    print(
        " ".join(f"{k}={v}" for k, v in setting.items()) or "as it is",
        end=": ",
        flush=True,
    )
    start = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--no-header",
            "--tb=short",
            *options,
            *NUMERICAL,
        ],
        env={"OMP_NUM_THREADS": "1", **os.environ, **setting},
        capture_output=True,
        text=True,
    )
    passed = done.returncode == 0
    lines = done.stdout.rstrip().splitlines() or done.stderr.splitlines()
    print(lines[-1], f"({time.monotonic() - start:.0f} s)", flush=True)
    if not passed:
        print(done.stdout, done.stderr, sep="\n", flush=True)
    return passed


if __name__ == "__main__":
    results = [run(setting, sys.argv[1:]) for setting in settings()]
    sys.exit(not all(results))
