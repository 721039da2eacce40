"""Noise on the parameters: its distributions, and the random streams it is drawn from.

A distribution is a function `fill(values, generator)` that overwrites a tensor with
independent draws of mean 0 and variance 1: one of these, or one of your own.

>>> values = torch.empty(4)
>>> rademacher(values, torch.Generator())
>>> values.abs()
tensor([1., 1., 1., 1.])
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from flatnb._checks import instance
from flatnb.methods.method import count

Distribution = Callable[[Tensor, torch.Generator], Any]

# Nets are often initialized under the same small seed; noise must not repeat weights.
_OFFSET = 0x6E6F6973

# Drawing on a CPU is serial and can be a quarter of a step. Longer tensors are drawn in
# blocks by all threads, each from a generator of its own that the stream's seeds.
_BLOCK = 1 << 17


def normal(values: Tensor, generator: torch.Generator) -> None:
    """Standard normal.

    >>> normal(torch.empty(3), torch.Generator())
    """
    values.normal_(generator=generator)


def laplace(values: Tensor, generator: torch.Generator) -> None:
    """Laplace of scale 1/sqrt(2): heavier tails than normal.

    >>> laplace(torch.empty(3), torch.Generator())
    """
    sign = torch.empty_like(values)
    rademacher(sign, generator)
    values.exponential_(generator=generator).mul_(sign).mul_(math.sqrt(0.5))


def uniform(values: Tensor, generator: torch.Generator) -> None:
    """Uniform on [-sqrt(3), sqrt(3)).

    >>> uniform(torch.empty(3), torch.Generator())
    """
    values.uniform_(-math.sqrt(3.0), math.sqrt(3.0), generator=generator)


def rademacher(values: Tensor, generator: torch.Generator) -> None:
    """-1 or 1 with equal probability.

    >>> rademacher(torch.empty(3), torch.Generator())
    """
    values.uniform_(-1.0, 1.0, generator=generator).ge_(0.0).mul_(2.0).sub_(1.0)


class Stream:
    """Noise for the parameters of a net, from generators of its own.

    There is one for each distinct member seed (0 for a plain net), on the net's device,
    seeded by `seed` plus that seed: a member draws what the same net draws alone.

    >>> Stream(0, rademacher).draw([torch.zeros(2, 3)])[0].shape
    torch.Size([2, 3])
    """

    def __init__(self, seed: int, fill: Distribution) -> None:
        allowed = "normal, laplace, … of flatnb.methods.noise, or a function like them"
        self._fill: Distribution = instance("noise", fill, Callable, allowed)
        self._seed = count("seed", seed, low=0)
        self._generators: dict[int, torch.Generator] = {}
        self._loaded: dict[int, Tensor] = {}

    def draw(
        self, params: Sequence[Tensor], seeds: Sequence[int] = (0,)
    ) -> list[Tensor]:
        """Noise in the shape of each parameter; `seeds` has one per member."""
        noise: list[Tensor] = [torch.empty(0)] * len(params)
        distinct = list(dict.fromkeys(seeds))
        for kind in dict.fromkeys((p.device, p.dtype) for p in params):
            device, dtype = kind
            places = [i for i, p in enumerate(params) if (p.device, p.dtype) == kind]
            sizes = [params[i].numel() // len(seeds) for i in places]
            # One draw for all tensors: many small ones cost more.
            flat = torch.empty(len(distinct), sum(sizes), dtype=dtype, device=device)
            for row, seed in zip(flat, distinct, strict=True):
                self._draw(row, self._generator(seed, device))
            if len(seeds) > len(distinct):
                flat = flat[[distinct.index(seed) for seed in seeds]]
            for i, part in zip(places, flat.split(sizes, dim=1), strict=True):
                noise[i] = part.view(params[i].shape)
        return noise

    def state_dict(self) -> dict[int, Tensor]:
        """The states of all generators."""
        states = {key: g.get_state() for key, g in self._generators.items()}
        return {**self._loaded, **states}

    def load_state_dict(self, state: dict[int, Tensor]) -> None:
        """Load what `state_dict` returned."""
        self._generators, self._loaded = {}, dict(state)

    def _draw(self, row: Tensor, generator: torch.Generator) -> None:
        if row.device.type != "cpu" or len(row) <= _BLOCK:
            self._fill(row, generator)
            return
        blocks = row.split(_BLOCK)
        seeds = torch.randint(1 << 32, (len(blocks),), generator=generator).tolist()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            list(threads.map(self._fill, blocks, generators))

    def _generator(self, seed: int, device: torch.device) -> torch.Generator:
        if seed not in self._generators:
            generator = torch.Generator(device).manual_seed(_OFFSET + self._seed + seed)
            if seed in self._loaded:
                generator.set_state(self._loaded.pop(seed).cpu())
            self._generators[seed] = generator
        return self._generators[seed]
