"""Samplers: functions of a velocity. t runs from 1 (noise) to 0 (data)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gdro_bench import content
from gdro_bench.content import Positive
from gdro_bench.distributed import batches
from gdro_bench.policy import Cond, Policy
from gdro_bench.profile import Sampler
from gdro_bench.score import Images
from gdro_bench.task import Prompt

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x [B, ...], t [B]) -> v [B, ...]
ConditionalVelocity = Callable[[Tensor, Tensor, Cond], Tensor]  # a policy's `velocity` or `reference_velocity`


def timesteps(steps: int, shift: float) -> Tensor:
    """The schedule t_0 = 1 > ... > t_steps = 0, float32 [steps + 1], its ends exact whatever the shift."""
    u = torch.linspace(1, 0, steps + 1)
    return with_exact_ends(shift * u / (1 + (shift - 1) * u))


def with_exact_ends(schedule: Tensor) -> Tensor:
    """The same from exactly 1 to exactly 0: a bent schedule may begin a rounding error beside 1, and there Flow-GRPO's
    sigma is NaN or a thousandfold."""
    return torch.cat([schedule.new_ones(1), schedule[1:-1], schedule.new_zeros(1)])


@torch.no_grad()
def euler(velocity: Velocity, x: Tensor, schedule: Tensor) -> Tensor:
    """Euler's method on dx/dt = v(x, t) along the schedule. x: noise [B, ...] -> data [B, ...]."""
    for t, t_next in zip(schedule[:-1].tolist(), schedule[1:].tolist(), strict=True):
        x = x + (t_next - t) * velocity(x, torch.full((len(x),), t, device=x.device))
    return x


@dataclass(frozen=True, slots=True)
class SdeConfig:
    """How steps inject noise, with its level a: `flow` (Flow-GRPO, arXiv 2505.05470: sigma = a sqrt(t / (1 - t))),
    `constant` (DanceGRPO, arXiv 2505.07818: sigma = a) or `cps` (coefficients-preserving, arXiv 2509.05952)."""

    kind: Literal["flow", "constant", "cps"]
    level: Positive


@dataclass(frozen=True, slots=True)
class Transition:
    """A Gaussian step: mean [B, ...], std [B] and, of an SDE, its rate sigma [B] (std = sigma sqrt(-dt))."""

    mean: Tensor
    std: Tensor
    rate: Tensor
    noising: SdeConfig

    def log_p(self, x_next: Tensor) -> Tensor:
        """Log-probability of x_next [B, ...], averaged over elements: [B]. For `cps` its constants are left out and
        the squared distance is not divided by the variance, as Flow-GRPO has it."""
        distance = (x_next - self.mean).square().flatten(1).mean(1)
        if self.noising.kind == "cps":
            return -distance
        return -distance / (2 * self.std.square()) - self.std.log() - 0.5 * math.log(2 * math.pi)


def transition(v: Tensor, x: Tensor, t: Tensor, t_next: Tensor, schedule: Tensor, noising: SdeConfig) -> Transition:
    """The stochastic step from t to t_next [B] for a velocity v and state x [B, ...], in float32.

    An SDE with the ODE's marginals: dx = (v + sigma^2 / (2 t) (x + (1 - t) v)) dt + sigma dw. At t = 1, where
    Flow-GRPO's sigma is infinite, it takes the second time of the schedule for 1 - t.
    """
    v, x = v.float(), x.float()
    t_, next_ = (part.view(-1, *[1] * (x.ndim - 1)) for part in (t, t_next))
    if noising.kind == "cps":
        std = t_next * math.sin(noising.level * math.pi / 2)
        across = std.view_as(next_)
        mean = (1 - next_) * (x - t_ * v) + (next_.square() - across.square()).sqrt() * (x + (1 - t_) * v)
        return Transition(mean, std, std, noising)
    if noising.kind == "constant":
        rate = torch.full_like(t, noising.level)
    else:
        rate = noising.level * (t / (1 - torch.where(t == 1, schedule[1].to(t), t))).sqrt()
    half = rate.square().view_as(t_) / (2 * t_)
    dt = next_ - t_
    mean = x * (1 + half * dt) + v * (1 + half * (1 - t_)) * dt
    return Transition(mean, rate * (t - t_next).sqrt(), rate, noising)


@dataclass(frozen=True, slots=True)
class Chain:
    """All states of a sampling, [B, T + 1, ...] from noise to data, and each step's log-probability, [B, T]: NaN for
    steps that injected no noise."""

    states: Tensor
    log_p: Tensor


def step_noise(shape: Sequence[int], noisy: Collection[int], generator: torch.Generator) -> dict[int, Tensor]:
    """Unit noise of this shape for each of the steps that inject some, drawn in their order."""
    return {step: torch.randn(tuple(shape), generator=generator) for step in sorted(noisy)}


@torch.no_grad()
def sde_sample(
    velocity: Velocity, x: Tensor, schedule: Tensor, noising: SdeConfig, noise: Mapping[int, Tensor]
) -> Chain:
    """Samples along the schedule from x [B, ...]; steps that have a `noise` [B, ...] inject it, the others are
    Euler's."""
    states, log_p = [x.float()], []
    for step in range(len(schedule) - 1):
        x = states[-1]
        t, t_next = (torch.full((len(x),), float(schedule[step + i]), device=x.device) for i in (0, 1))
        v = velocity(x, t)
        if step in noise:
            gaussian = transition(v, x, t, t_next, schedule, noising)
            eps = noise[step].to(x.device)
            states.append(gaussian.mean + gaussian.std.view(-1, *[1] * (x.ndim - 1)) * eps)
            log_p.append(gaussian.log_p(states[-1]))
        else:
            states.append(x + float(schedule[step + 1] - schedule[step]) * v.float())
            log_p.append(torch.full_like(t, math.nan))
    return Chain(torch.stack(states, dim=1), torch.stack(log_p, dim=1))


def guided(velocity: ConditionalVelocity, null: Cond, guidance: float) -> ConditionalVelocity:
    """Classifier-free guidance (arXiv 2207.12598): v(null) + guidance * (v(cond) - v(null)), at twice the cost."""

    def blended(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        unconditional = velocity(x, t, null.repeat_each(len(x)))
        return unconditional + guidance * (velocity(x, t, cond) - unconditional)

    return blended


def conditioned(
    policy: Policy, cond: Cond, guidance: float, reference: bool = False, adapters: Sequence[Tensor] | None = None
) -> Velocity:
    """The velocity, guided if asked for, of the policy or of the reference, for the prompts behind `cond`. That
    one is the model without adapters, or with these older ones."""
    velocity: ConditionalVelocity = policy.reference_velocity if reference else policy.velocity
    if adapters is not None:
        velocity = partial(policy.lagged_velocity, adapters)
    if guidance != 1:
        velocity = guided(velocity, policy.encode([Prompt("", "")]), guidance)
    return lambda x, t: velocity(x, t, cond)


def sample(policy: Policy, noise: Tensor, prompts: Sequence[Prompt], sampler: Sampler, reference: bool) -> Tensor:
    """Latents [B, *latent_shape] from noise [B, *latent_shape], of the policy or of the reference model."""
    schedule = policy.timesteps(sampler.steps, sampler.shift)
    chunks = []
    with nullcontext() if reference else policy.merged():
        for rows in batches(len(noise), sampler.batch):
            cond = policy.encode(prompts[rows])
            velocity = conditioned(policy, cond, sampler.guidance, reference)
            chunks.append(euler(velocity, noise[rows].to(cond.tensors[0].device), schedule))
    return torch.cat(chunks)


def noise_for(keys: Sequence[tuple[str | int, ...]], shape: tuple[int, ...]) -> Tensor:
    """Unit noise [len(keys), *shape], each row a function of its key alone, on any device and in any batch."""
    rows = []
    for key in keys:
        rows.append(torch.randn(shape, generator=torch.Generator().manual_seed(content.seed(*key))))
    return torch.stack(rows)


def held_out_images(policy: Policy, prompts: Sequence[Prompt], task_name: str, sampler: Sampler) -> Images:
    """One image a prompt, uint8 [B, H, W, 3], from noise that is a function of task, prompt and its draw alone."""
    return fixed_images(policy, prompts, task_name, sampler, "held out")


def fixed_images(policy: Policy, prompts: Sequence[Prompt], task_name: str, sampler: Sampler, purpose: str) -> Images:
    """As `held_out_images`, from noise that is another for each purpose."""
    keys = [(task_name, purpose, *p.key) for p in prompts]
    noise = noise_for(keys, policy.latent_shape)
    return decoded(policy, sample(policy, noise, prompts, sampler, reference=False), sampler.batch)


def decoded(policy: Policy, x: Tensor, batch: int) -> Images:
    """Pictures [B, H, W, 3] of latents [B, *latent_shape], a batch at a time: an autoencoder's work is large."""
    return np.concatenate([policy.decode(x[rows]) for rows in batches(len(x), batch)])
