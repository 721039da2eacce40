"""torchvision, also where its compiled operators do not match the installed torch.

A torchvision wheel built for another torch (a common pairing: torch for the CPU from
one index, torchvision for CUDA from another) cannot load its operators, and then fails
at import, in the
Python code that describes two of them: ``operator torchvision::nms does not exist``.
    The data sets,
transforms and models need neither. So after that failure, and only then, the two are
declared to torch by their signatures alone, and the import is repeated. Calling them,
or anything else that is compiled, still fails with torchvision's own message.

torchvision takes seconds to import: call `load` where it is needed, not at the top of a
    module.
"""

from __future__ import annotations

import importlib
import re
import sys
from types import ModuleType

import torch

# Non-maximum suppression of boxes, plain and quantized: what torchvision describes at
# import.
_SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_MISSING = re.compile(r"operator torchvision::\w+ does not exist")


def load() -> ModuleType:
    """The torchvision module.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: torchvision's import fails for another reason than operators that
            are missing.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if not _MISSING.search(str(error)):
            raise
    # The failed import left submodules behind; some would register twice, others not at
    # all.
    for name in [
        n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")
    ]:
        del sys.modules[name]
    for operator, schema in _SCHEMAS.items():
        torch.library.define(operator, schema)
    return importlib.import_module("torchvision")
