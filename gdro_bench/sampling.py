"""Samplers: functions of a velocity. t runs from 1 (noise) to 0 (data)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gdro_bench import content
from gdro_bench.policy import Cond, Policy
from gdro_bench.score import Images
from gdro_bench.task import Prompt

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x [B, ...], t [B]) -> v [B, ...]
ConditionalVelocity = Callable[[Tensor, Tensor, Cond], Tensor]  # a policy's `velocity` or `reference_velocity`


@dataclass(frozen=True, slots=True)
class Sampler:
    """Numbers of a sampler. `shift` bends the schedule towards noise, as SD3 does (arXiv 2403.03206, eq. 23)."""

    steps: int
    shift: float
    guidance: float  # 1 is none
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


def guided(velocity: ConditionalVelocity, null: Cond, guidance: float) -> ConditionalVelocity:
    """Classifier-free guidance (arXiv 2207.12598): v(null) + guidance * (v(cond) - v(null)), at twice the cost."""

    def blended(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        unconditional = velocity(x, t, null.repeat_each(len(x)))
        return unconditional + guidance * (velocity(x, t, cond) - unconditional)

    return blended


def sample(policy: Policy, noise: Tensor, prompts: Sequence[Prompt], sampler: Sampler, reference: bool) -> Tensor:
    """Latents [B, *latent_shape] from noise [B, *latent_shape], of the policy or of the reference model."""
    velocity: ConditionalVelocity = policy.reference_velocity if reference else policy.velocity
    if sampler.guidance != 1:
        velocity = guided(velocity, policy.encode([Prompt("", "")]), sampler.guidance)
    schedule = times(sampler.steps, sampler.shift)
    chunks = []
    for start in range(0, len(noise), sampler.batch):
        rows = slice(start, start + sampler.batch)
        cond = policy.encode(prompts[rows])
        x = noise[rows].to(cond.tensors[0].device)
        chunks.append(euler(lambda x, t, cond=cond: velocity(x, t, cond), x, schedule))  # type: ignore[misc]
    return torch.cat(chunks)


def noise_for(keys: Sequence[tuple[str | int, ...]], shape: tuple[int, ...]) -> Tensor:
    """Unit noise [len(keys), *shape], each row a function of its key alone, on any device and in any batch."""
    rows = []
    for key in keys:
        rows.append(torch.randn(shape, generator=torch.Generator().manual_seed(content.seed(*key))))
    return torch.stack(rows)


def held_out_images(policy: Policy, prompts: Sequence[Prompt], task_name: str, sampler: Sampler) -> Images:
    """One image a prompt, uint8 [B, H, W, 3], from noise that is a function of task and prompt alone."""
    noise = noise_for([(task_name, "held out", p.text) for p in prompts], policy.latent_shape)
    return policy.decode(sample(policy, noise, prompts, sampler, reference=False))
