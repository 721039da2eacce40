"""Are the outputs of a net piecewise linear in every single entry of its parameters?

Then the diagonal of the Hessian of every output vanishes wherever it exists, and the
Hessian of the loss and the Gauss-Newton matrix have the same diagonal. It is so when
the autograd graph consists
of piecewise linear operations and of products none of whose two factors share a
    parameter: each
output is then, piece by piece, a polynomial of degree one in each entry. Tied or
recurrent weights (a parameter on both sides), attention and LayerNorm (softmax, a norm)
and BatchNorm in train mode break it; the graph shows all of these, however the forward
pass was written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

# Linear, or linear on each of finitely many pieces, in all their differentiable inputs
# together.
_NAMES = """
    Abs AdaptiveAvgPool2D AdaptiveAvgPool3D AdaptiveMaxPool2D AdaptiveMaxPool3D Add Alias Amax
    Amin AsStrided AvgPool2D AvgPool3D Cat Clamp ClampMax ClampMin Clone ConstantPadNd Copy
    Diagonal Embedding Expand Flip FractionalMaxPool2D Gather Hardshrink Hardsigmoid
    Hardtanh Identity Index IndexSelect LeakyRelu Max MaxPool2DWithIndices MaxPool3DWithIndices
    Maximum Mean Min Minimum MkldnnMaxPool2D Neg Permute PixelShuffle PixelUnshuffle ReflectionPad1D
    ReflectionPad2D ReflectionPad3D Relu Repeat ReplicationPad1D ReplicationPad2D ReplicationPad3D
    ReshapeAlias Roll Rsub Select Slice Softshrink Split SplitWithSizes Squeeze Stack Sub Sum T
    Threshold ToCopy Transpose Unbind Unfold UnsafeSplit UnsafeView Unsqueeze UpsampleBicubic2D
    UpsampleBilinear2D UpsampleLinear1D UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D
    UpsampleTrilinear3D View Where Im2Col Col2Im
"""
_LINEAR = frozenset(_NAMES.split())
# Product of the inputs at these two places (plus the others); each piecewise linear by
# itself.
_PRODUCTS = {
    "Addmm": (1, 2),
    "Baddbmm": (1, 2),
    "Bmm": (0, 1),
    "Convolution": (0, 1),
    "CudnnConvolution": (0, 1),
    "MkldnnConvolution": (0, 1),
    "Dot": (0, 1),
    "Linear": (0, 1),
    "Mm": (0, 1),
    "Mul": (0, 1),
    "Mv": (0, 1),
    "PreluKernel": (0, 1),
    "NativeBatchNorm": (0, 1),
    "CudnnBatchNorm": (0, 1),
    "MiopenBatchNorm": (0, 1),
}


def check_piecewise_linear(outputs: Tensor, params: Sequence[Tensor]) -> None:
    """Raise ValueError, naming the operation, unless the graph of `outputs` is of the
    kind above.

    It is sufficient, not necessary: a net refused may still have equal traces.
    """
    bits = {id(p): 1 << i for i, p in enumerate(params)}
    seen: dict[Any, int] = {}  # which parameters a node depends on, as a bit set
    stack = [outputs.grad_fn] if outputs.grad_fn is not None else []
    while stack:
        node = stack[-1]
        inputs = [source for source, _ in node.next_functions]
        waiting = [
            source for source in inputs if source is not None and source not in seen
        ]
        if waiting:
            stack.extend(waiting)
            continue
        stack.pop()
        if node not in seen:
            variable = getattr(node, "variable", None)
            sets = [0 if source is None else seen[source] for source in inputs]
            seen[node] = (
                bits.get(id(variable), 0) if variable is not None else _join(node, sets)
            )


def _join(node: Any, sets: list[int]) -> int:
    # With a number, which a function written in Python has not.
    name = re.sub(r"Backward\d+$", "", node.name().rsplit("::", 1)[-1])
    union = 0
    for one in sets:
        union |= one
    if not union or name in _LINEAR:
        return union
    if name == "Div" and not sets[1]:  # by a constant
        return union
    if name in _PRODUCTS and not getattr(node, "_saved_training", False):
        left, right = _PRODUCTS[name]
        if (
            len(sets) <= right or not sets[left] & sets[right]
        ):  # one input: times a constant
            return union
        raise ValueError(
            _REFUSED.format(
                f"both factors of {name} depend on the same parameter (tied weights?)"
            )
        )
    if name == "CopySlices":
        name = "an operation in place on a part or a view of a tensor, which hides what it is,"
    raise ValueError(_REFUSED.format(f"{name} is not piecewise linear"))


_REFUSED = (
    "the outputs are not piecewise linear in each parameter entry: {}. The Hessian trace then "
    "differs from the Gauss-Newton trace: use trace(operator), or pass a GaussNewtonOperator if "
    "its trace is what you want."
)
