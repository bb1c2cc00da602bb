"""An exponential moving average over trained parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter


class Ema:
    """Averages parameters with the decay eta(i) = min(slope * i, ceiling) of step i (arXiv 2601.02036, section 4.1)."""

    def __init__(self, parameters: Iterable[Parameter], slope: float, ceiling: float) -> None:
        self.parameters = list(parameters)
        self.slope, self.ceiling = slope, ceiling
        self.averages: list[Tensor] = [p.detach().clone() for p in self.parameters]

    def decay(self, step: int) -> float:
        return min(self.slope * step, self.ceiling)

    @torch.no_grad()
    def update(self, step: int) -> None:
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.lerp_(parameter, 1 - self.decay(step))

    def applied(self) -> AbstractContextManager[None]:
        """Inside, the parameters are their averages."""
        return replaced(self.parameters, self.averages)


@contextmanager
def replaced(parameters: Sequence[Parameter], values: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the parameters have these values."""
    kept = [p.detach().clone() for p in parameters]
    assign(parameters, values)
    try:
        yield
    finally:
        assign(parameters, kept)


@torch.no_grad()
def assign(parameters: Sequence[Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
