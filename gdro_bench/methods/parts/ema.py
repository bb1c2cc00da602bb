"""Exponential moving averages of trained parameters: what is evaluated, and what some losses hold on to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from gdro_bench.content import Natural, NonNegative, Share


@dataclass(frozen=True, slots=True)
class Decay:
    """eta(n) = 0 while n < delay, then min(start + slope * (n - delay), ceiling), after n updates.

    GDRO's average (arXiv 2601.02036, section 4.1) has slope 0.001 and ceiling 0.5; a ceiling of 0 is no memory at all.
    """

    delay: Natural
    start: Share
    slope: NonNegative
    ceiling: Share

    def at(self, n: int) -> float:
        return 0.0 if n < self.delay else min(self.start + self.slope * (n - self.delay), self.ceiling)


class Ema:
    """Averages parameters: average <- eta(n) * average + (1 - eta(n)) * parameter."""

    def __init__(self, parameters: Iterable[Parameter], decay: Decay) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.averages: list[Tensor] = [p.detach().clone() for p in self.parameters]

    def is_current(self) -> bool:
        """Whether the averages are the parameters, to the last bit."""
        return all(torch.equal(a, p) for a, p in zip(self.averages, self.parameters, strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.lerp_(parameter, 1 - self.decay.at(step))

    def applied(self) -> AbstractContextManager[None]:
        """Inside, the parameters are their averages."""
        return replaced(self.parameters, self.averages)

    @torch.no_grad()
    def load(self, averages: Iterable[Tensor]) -> None:
        """Takes over saved averages."""
        for average, saved in zip(self.averages, averages, strict=True):
            average.copy_(saved)


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
