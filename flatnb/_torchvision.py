"""torchvision, also where its compiled operators do not match the installed torch.

A wheel built for another torch (often: torch for the CPU, torchvision for CUDA) fails
at import, where it describes two operators that data sets, transforms and models do not
need. Only then are these declared to torch by their signatures alone, and the import is
repeated. It takes seconds: call `load` where it is needed, not at the top of a module.
"""

import importlib
import sys
from types import ModuleType

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def load() -> ModuleType:
    """The torchvision module, or ImportError or RuntimeError where it does not load."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    # The failed import left submodules, some of which would register twice.
    for name in list(sys.modules):
        if name.split(".")[0] == "torchvision":
            del sys.modules[name]
    for operator in ("torchvision::nms", "torchvision::qnms"):
        torch.library.define(operator, _SIGNATURE)
    return importlib.import_module("torchvision")
