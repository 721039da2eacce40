"""DistributedDataParallel on two processes, started by torchrun, against one process.

The reference keeps one replica a process and averages their gradients by hand.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import ddp_cases as cases
import inputs
import pytest
import torch
from inputs import Problem
from properties import assert_close
from torch import Tensor

from flatnb.methods import ERM, GSAM, SAM, Method

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this build of PyTorch has no gloo",
)


@pytest.fixture(scope="module")
def found(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of the processes found."""
    folder = tmp_path_factory.mktemp("ddp")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [
        f"--nproc-per-node={cases.RANKS}",
        str(Path(__file__).with_name("ddp_worker.py")),
    ]
    run = subprocess.run(
        [*command, str(folder)],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(cases.RANKS)]


def replicas(
    make: Callable[[], Method], build: inputs.Make, accumulate: int = 1
) -> tuple[Tensor, list[Tensor]]:
    """Weights, and the first replica's buffers, after the same training in one
    process.
    """
    problems = [build() for _ in range(cases.RANKS)]
    methods = [make() for _ in problems]
    optimizers = [cases.optimizer(p.model) for p in problems]
    for batches in zip(*[p.batches(cases.STEPS) for p in problems], strict=True):
        for rank, (batch, method) in enumerate(zip(batches, methods, strict=True)):
            batch.model.zero_grad()
            for part in range(accumulate):
                mine = cases.share(
                    batch, rank * accumulate + part, cases.RANKS * accumulate
                )
                method.backward(batch.model, mine, weight=1 / accumulate)
        for same in zip(*[p.params for p in problems], strict=True):
            grads = [p.grad for p in same if p.grad is not None]
            for p in same:
                p.grad = torch.stack(grads).mean(0) if grads else None
        for optimizer in optimizers:
            optimizer.step()
    return flat(problems[0]), problems[0].statistics


def flat(problem: Problem) -> Tensor:
    return torch.cat([p.detach().flatten() for p in problem.params])


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("name", cases.METHODS)
def test_processes_are_replicas_whose_gradients_are_averaged(found, name, view) -> None:
    make = cases.METHODS[name]
    for accumulate, case in (
        (1, f"{name}, {view}"),
        (2, f"{name}, {view}, accumulated"),
    ):
        weights = [f[case]["weights"] for f in found]
        assert torch.equal(*weights)
        assert_close(weights[:1], [replicas(make, inputs.exact, accumulate)[0]], 1e-9)


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("name", ["ERM", "SAM", "GNP", "NSO"])
def test_zero_grad_in_the_closure_changes_nothing(found, name, view) -> None:
    for f in found:
        plain, cleared = f[f"{name}, {view}, accumulated"], f[f"{name}, {view}, clears"]
        assert torch.equal(plain["weights"], cleared["weights"])


@pytest.mark.parametrize("name", cases.MEANS)
def test_means_are_one_process_with_the_whole_batch(found, name) -> None:
    problem, method = inputs.exact(), cases.MEANS[name]()
    optimizer = cases.optimizer(problem.model)
    for batch in problem.batches(cases.STEPS):
        optimizer.zero_grad()
        method.backward(problem.model, batch)
        optimizer.step()
    assert_close([found[0][f"{name}, True"]["weights"]], [flat(problem)], 1e-9)


def test_sam_is_sharpness_of_each_process_computed_by_hand(found) -> None:
    problem = inputs.exact()
    optimizer = cases.optimizer(problem.model)
    perturbed: list[list[Tensor]] = [[] for _ in found]
    for batch in problem.batches(cases.STEPS):
        total = [torch.zeros_like(p) for p in problem.params]
        for rank in range(cases.RANKS):
            mine = cases.share(batch, rank)
            g = torch.autograd.grad(mine().mean(), problem.params)
            norm = torch.stack([t.square().sum() for t in g]).sum().sqrt()
            moved = copy.deepcopy(mine)
            with torch.no_grad():
                for p, t in zip(moved.params, g, strict=True):
                    p += 0.1 * t / norm
            perturbed[rank].append(flat(moved))
            for t, own in zip(
                total, torch.autograd.grad(moved().mean(), moved.params), strict=True
            ):
                t += own / cases.RANKS
        for p, t in zip(problem.params, total, strict=True):
            p.grad = t
        optimizer.step()
    assert_close([found[0]["SAM, False"]["weights"]], [flat(problem)], 1e-9)
    # The first pass is not synchronised: each process stands at a point of its own.
    for f, points in zip(found, perturbed, strict=True):
        assert_close(f["SAM, False"]["perturbed"], points, 1e-9)
    gap = perturbed[0][0] - perturbed[1][0]
    assert gap.norm() > 0.01


@pytest.mark.parametrize("name", [*cases.MEANS, *cases.OWN])
def test_processes_speak_once_a_step(found, name) -> None:
    for case in (f"{name}, False", f"{name}, False, accumulated"):
        assert [f[case]["reduced"] for f in found] == [cases.STEPS] * cases.RANKS


@pytest.mark.parametrize("name", cases.METHODS)
def test_running_statistics_are_the_first_process_own_at_w(found, name) -> None:
    """Updated once a step; as always under DistributedDataParallel, those of rank 0
    count.
    """
    weights, buffers = replicas(cases.METHODS[name], cases.batchnorm)
    case = f"{name}, statistics"
    assert torch.equal(found[0][case]["weights"], found[1][case]["weights"])
    assert_close([found[0][case]["weights"]], [weights], 1e-9)
    assert_close(found[0][case]["buffers"], buffers, 1e-9)
    assert all(int(f[case]["buffers"][-1]) == cases.STEPS for f in found)


def test_ensemble(found) -> None:
    make = partial(SAM, torch.tensor([0.0, 0.1, 0.2]))
    assert torch.equal(*[f["ensemble"]["weights"] for f in found])
    assert_close(
        [found[0]["ensemble"]["weights"]], [replicas(make, cases.ensemble)[0]], 1e-9
    )


@pytest.mark.parametrize("make", [ERM, SAM, GSAM])
def test_parameters_that_take_no_part(found, make) -> None:
    case = f"depth, {make.__name__}"
    assert torch.equal(*[f[case]["weights"] for f in found])
    assert_close(
        [found[0][case]["weights"]], [replicas(make, cases.stochastic_depth)[0]], 1e-9
    )


def test_overflow_in_one_process_is_seen_by_all(found) -> None:
    assert [f["overflow"] for f in found] == [{"finite": False, "restored": True}] * 2


def test_unsupported_models_are_refused_by_name(found) -> None:
    for f in found:
        assert "static_graph=True" in f["refused"].pop("static_graph")
        assert len(f["refused"]) == 3
        assert all("spread over processes" in m for m in f["refused"].values())
