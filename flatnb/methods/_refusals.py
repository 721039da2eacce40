"""What a step refuses, by name: models, and what a closure returns."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

NO_GRADIENT = "no parameter got a gradient: the losses do not depend on this model"
OLD_GRAPH = (
    "the closure called backward() itself, or it uses something that was computed "
    "before it, with gradients. Compute that inside the closure, or detach() it"
)
CALLED_BACKWARD = (
    "the closure left a gradient in p.grad: it called backward(). It must only return "
    "the losses"
)
SPARSE = (
    "a gradient is sparse, as of nn.Embedding(sparse=True), and this method takes norms "
    "of gradients; allowed: dense ones, sparse=False"
)
NO_GRAPH = (
    "the closure returned losses without a graph; compute them outside "
    "torch.no_grad(), without detach()"
)
CLOSURE = (
    "a function that computes the losses, "
    'lambda: F.cross_entropy(model(x), y, reduction="none")'
)
_SPREAD = {"FullyShardedDataParallel", "DTensor", "DeepSpeedEngine"}


def check_model(modules: Sequence[nn.Module], params: Sequence[Tensor]) -> None:
    """Raise where some method's step would be wrong; `params` are those that train."""
    if not params:
        raise ValueError("the model has no parameter with requires_grad=True")
    wrappers = [m for m in modules if isinstance(m, DistributedDataParallel)]
    if any(wrapper.static_graph for wrapper in wrappers):
        raise ValueError("static_graph=True; allowed: False, as a step may be 2 passes")
    # By name: importing the classes takes seconds.
    if {type(part).__name__ for part in (*modules, *params)} & _SPREAD:
        raise ValueError(
            "the model is spread over processes (FSDP, fully_shard, tensor parallel, "
            "DeepSpeed), and a step needs its parameters whole; allowed: "
            "DistributedDataParallel"
        )
    if any(p._post_accumulate_grad_hooks for p in params):
        raise ValueError(
            "a parameter has a post-accumulate-grad hook, as of an optimizer that "
            "steps in the backward; call optimizer.step() after method.backward"
        )


def check_inside(loss: Tensor, params: Sequence[Tensor]) -> None:
    """Raise if `loss` would be differentiated to tensors other than `params`."""
    inside = {id(p) for p in params}
    visited, waiting = {loss.grad_fn}, [loss.grad_fn]
    while waiting:
        for node, _ in waiting.pop().next_functions:  # type: ignore[union-attr]
            if node is None or node in visited:
                continue
            visited.add(node)
            waiting.append(node)
            leaf: Any = node if type(node).__name__ == "AccumulateGrad" else None
            if leaf is not None and id(leaf.variable) not in inside:
                raise ValueError(
                    f"the losses depend on a trainable tensor of shape "
                    f"{tuple(leaf.variable.shape)} that is not in this model, and "
                    "would get the sum over this method's passes; put them into one "
                    "nn.ModuleList with the net, or detach() it"
                )


def check_losses(returned: Any, members: int | None) -> Tensor:
    """What the closure returned, as losses (n,) or (members, n)."""
    shapes = "(n,) or ()" if members is None else f"({members}, n) or ({members},)"
    if not isinstance(returned, Tensor):
        raise TypeError(
            f"the closure returned {type(returned).__name__}; allowed: a tensor of "
            f'losses {shapes}, as from cross_entropy(..., reduction="none"), or one '
            "number, as a model's output.loss"
        )
    shape = tuple(returned.shape)
    lead = () if members is None else (members,)
    losses = returned.unsqueeze(-1) if shape == lead else returned
    if losses.shape[:-1] != lead:
        raise ValueError(
            f"the closure returned losses of shape {shape}; allowed: {shapes}, one per "
            "example, or one number. Of (n, 1) return losses.squeeze(1); average "
            "tokens or pixels, losses.flatten(1).mean(1), or count each as an example, "
            "losses.flatten()"
        )
    if losses.numel() == 0:
        raise ValueError(f"losses of shape {shape}: the batch is empty; skip it")
    return losses
