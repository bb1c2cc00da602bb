"""Samplers: functions of a velocity. t runs from 1 (noise) to 0 (data)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gdro_bench import content
from gdro_bench.policy import Cond

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x [B, ...], t [B]) -> v [B, ...]
ConditionalVelocity = Callable[[Tensor, Tensor, Cond], Tensor]  # a policy's `velocity` or `reference_velocity`


@dataclass(frozen=True, slots=True)
class Sampler:
    """Numbers of a sampler. `shift` bends the schedule towards noise, as SD3 does (arXiv 2403.03206, eq. 23)."""

    steps: int
    shift: float
    batch: int


def times(steps: int, shift: float) -> Tensor:
    """The schedule t_0 = 1 > ... > t_steps = 0, float32 [steps + 1]."""
    u = torch.linspace(1, 0, steps + 1)
    return shift * u / (1 + (shift - 1) * u)


@torch.no_grad()
def euler(velocity: Velocity, x: Tensor, schedule: Tensor) -> Tensor:
    """Euler's method on dx/dt = v(x, t) along the schedule. x: noise [B, ...] -> data [B, ...]."""
    for t, t_next in zip(schedule[:-1].tolist(), schedule[1:].tolist(), strict=True):
        x = x + (t_next - t) * velocity(x, torch.full((len(x),), t, device=x.device))
    return x


def sample(velocity: ConditionalVelocity, noise: Tensor, cond: Cond, sampler: Sampler) -> Tensor:
    """Latents [B, *latent_shape] from noise, in chunks of at most `sampler.batch` images."""
    schedule = times(sampler.steps, sampler.shift)
    noise = noise.to(cond.tensors[0].device)
    chunks = []
    for start in range(0, len(noise), sampler.batch):
        rows = slice(start, start + sampler.batch)
        part = cond[rows]
        chunks.append(euler(lambda x, t, part=part: velocity(x, t, part), noise[rows], schedule))  # type: ignore[misc]
    return torch.cat(chunks)


def noise_for(keys: Sequence[tuple[str | int, ...]], shape: tuple[int, ...]) -> Tensor:
    """Unit noise [len(keys), *shape], each row a function of its key alone, on any device and in any batch."""
    rows = []
    for key in keys:
        rows.append(torch.randn(shape, generator=torch.Generator().manual_seed(content.seed(*key))))
    return torch.stack(rows)
