"""All that a method may ask of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor
from torch.nn import Parameter

from gdro_bench.distributed import ProcessGroup
from gdro_bench.score import Images
from gdro_bench.task import Prompt


@dataclass(frozen=True, slots=True)
class Cond:
    """Encoded prompts: tensors with the batch first."""

    tensors: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, rows: slice | Tensor) -> Cond:
        return Cond(tuple(tensor[rows] for tensor in self.tensors))

    def repeat_each(self, times: int) -> Cond:
        """Every prompt `times` times in a row: [P, ...] -> [P * times, ...]."""
        return Cond(tuple(tensor.repeat_interleave(times, dim=0) for tensor in self.tensors))


class Policy(Protocol):
    """A rectified-flow model with LoRA. Conventions: x_t = (1 - t) x0 + t eps, v = eps - x0, t = 1 is noise."""

    @property
    def name(self) -> str: ...
    @property
    def latent_shape(self) -> tuple[int, ...]: ...
    def encode(self, prompts: Sequence[Prompt]) -> Cond: ...
    def encode_ahead(self, prompts: Sequence[Prompt], processes: ProcessGroup) -> None:
        """Encodes all that a run will ask for, each text by one process, so that large encoders can go."""
        ...

    def velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """v of the policy, [B, *latent_shape], for x [B, *latent_shape] and t [B]."""
        ...

    def reference_velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """v of the model with its adapters off; no gradient."""
        ...

    def lagged_velocity(self, adapters: Sequence[Tensor], x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """v of the model with these values of `parameters()`, an older copy of them, say; no gradient."""
        ...

    def merged(self) -> AbstractContextManager[None]:
        """Inside, `velocity` may be cheaper and equal up to rounding; no gradient and no `reference_velocity` there."""
        ...

    def timesteps(self, steps: int, shift: float) -> Tensor:
        """The schedule that it is sampled along, from 1 to 0: float32 [steps + 1], on the CPU."""
        ...

    def decode(self, x: Tensor) -> Images: ...
    def parameters(self) -> Iterator[Parameter]:
        """The LoRA parameters, and no others."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the adapters, in the form that diffusers loads."""
        ...

    def load(self, folder: Path) -> None:
        """Loads adapters that `save` wrote."""
        ...


@runtime_checkable
class Scalable(Protocol):
    """A policy whose adapters can be turned down, which only `gdro-bench eval --lora-scale` asks of it."""

    def scaled(self, factor: float) -> AbstractContextManager[None]:
        """Inside, the adapters' updates are multiplied by `factor`: 0 is the base, 1 the policy as it is."""
        ...
