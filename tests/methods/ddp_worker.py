"""Run by torchrun in each process: every case of `ddp_cases`, its outcome saved to a
file.
"""

import sys
from pathlib import Path

import ddp_cases as cases
import inputs
import torch
import torch.distributed as dist
from inputs import Problem
from properties import Calls
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from flatnb.methods import ERM, GSAM, SAM, Method


def train(
    method: Method,
    problem: Problem,
    accumulate: int = 1,
    clears: bool = False,
    **kw: object,
) -> dict[str, object]:
    """Some steps; returns weights, buffers, what the processes saw, and how often they
    spoke.

    `clears`: the closure begins with `zero_grad()`.
    """
    rank, reduced, perturbed = dist.get_rank(), [0], []
    model = DistributedDataParallel(problem.model, **kw)

    def count(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        reduced[0] += 1
        return allreduce_hook(None, bucket)

    if not kw:  # the others without a hook, as most are
        model.register_comm_hook(None, count)
    optimizer = cases.optimizer(model)
    for batch in problem.batches(cases.STEPS):
        optimizer.zero_grad()
        for part in range(accumulate):
            mine = cases.share(
                batch, rank * accumulate + part, cases.RANKS * accumulate
            )
            mine.model = model

            def note(call: int) -> None:
                if call == 2:
                    perturbed.append(flat(problem))
                if clears:
                    model.zero_grad(set_to_none=call == 1)

            closure, weight = Calls(mine, note), 1 / accumulate
            if part < accumulate - 1:
                with model.no_sync():
                    method.backward(model, closure, weight=weight)
            else:
                method.backward(model, closure, weight=weight)
        optimizer.step()
    return {
        "weights": flat(problem),
        "buffers": problem.statistics,
        "perturbed": perturbed,
        "reduced": reduced[0],
    }


def flat(problem: Problem) -> Tensor:
    return torch.cat([p.detach().flatten() for p in problem.params])


def overflow() -> dict[str, object]:
    """One process's first gradient is infinite: no process may take the step."""
    problem = inputs.plain()
    before = flat(problem)
    model = DistributedDataParallel(problem.model)
    mine = cases.share(problem, dist.get_rank())
    mine.model = model
    calls = Calls(mine)

    def closure() -> Tensor:
        losses = calls()
        if calls.count == 1 and dist.get_rank() == 1:
            losses.register_hook(lambda g: g * torch.inf)
        return losses

    SAM(0.1).backward(model, closure)
    finite = all(
        bool(torch.isfinite(p.grad).all()) for p in problem.params if p.grad is not None
    )
    return {"finite": finite, "restored": torch.equal(flat(problem), before)}


def refused() -> dict[str, str]:
    """What is said to models that are not supported."""
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    problem, said = inputs.plain(), {}
    mesh = dist.init_device_mesh("cpu", (cases.RANKS,))
    parallel = parallelize_module(
        inputs.plain().model, mesh, {"body.0": ColwiseParallel()}
    )
    static = DistributedDataParallel(inputs.plain().model, static_graph=True)
    sharded = inputs.plain().model
    fully_shard(sharded.head, mesh=mesh)
    for name, model in {
        "static_graph": static,
        "fully_shard": sharded,
        "tensor parallel": parallel,
        "FSDP": FullyShardedDataParallel(
            inputs.plain().model, device_id=torch.device("cpu")
        ),
    }.items():
        try:
            SAM().backward(model, problem)
        except ValueError as error:
            said[name] = str(error)
    return said


def main(folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found: dict[str, object] = {}
    for name, make in cases.METHODS.items():
        for view, options in ((False, {}), (True, {"gradient_as_bucket_view": True})):
            found[f"{name}, {view}"] = train(make(), inputs.exact(), **options)
            found[f"{name}, {view}, accumulated"] = train(
                make(), inputs.exact(), accumulate=2, **options
            )
        found[f"{name}, statistics"] = train(make(), cases.batchnorm())
    for name in ("ERM", "SAM", "GNP", "NSO"):
        for view in (False, True):
            found[f"{name}, {view}, clears"] = train(
                cases.METHODS[name](),
                inputs.exact(),
                2,
                True,
                gradient_as_bucket_view=view,
            )
    found["ensemble"] = train(SAM(torch.tensor([0.0, 0.1, 0.2])), cases.ensemble())
    for make in (ERM, SAM, GSAM):
        found[f"depth, {make.__name__}"] = train(
            make(), cases.stochastic_depth(), find_unused_parameters=True
        )
    found["overflow"] = overflow()
    found["refused"] = refused()
    torch.save(found, Path(folder) / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
