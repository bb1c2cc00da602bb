"""CRD, centred reward distillation (arXiv 2603.14128; code of X-GenGroup/Flow-Factory): the regression twin of GDRO.

The implicit reward of the policy against a lagged copy is fitted to the explicit one, both less their group's mean,
so that what depends on the prompt alone cancels:

    R_i = -(e_i / a_i - e_old,i / a_old,i)           e = mean (v - v*)^2,  a = max(mean |v - v*|, 1e-5) without gradient
    y_i = clip(A_i / 2c + 1/2, 0, 1)                 for advantages clipped to +-c
    L   = c / beta mean of (beta (R_i - mean R) - (y_i - mean y))^2
          + mean of (kl_floor + y_i (kl_weight - kl_floor)) (v - v_teacher)^2

mean R has no gradient. The KL holds on most to images of high reward; its teacher is the guided reference model, and
rollouts are by a second lagged copy, `sampler`. Copies move when an epoch is over; a group's images share their t.

Where this differs from the published code:
1. Rollouts are made by Euler's method, and guided as the profile samples unless `online.guidance` says otherwise;
   published rollouts are unguided.
2. Means are over a prompt's images at one draw, which cancels its log Z; published code takes them over whatever a
   micro-batch of all GPUs holds. That choice is not offered: numbers would depend on batch and processes.
3. The centre is uniform, as its default; softmax centres and the cross-entropy loss are not here.
4. Each step of the grid but the last is trained once for each image, the default there; its configuration for Stable
   Diffusion 3.5 trains steps 0 and 4 three times and the other seven twice. Its grid ends at higher t (0.43 the last
   one trained) than SD3's own, which all methods have here.
5. The moving average that is evaluated follows `min(slope * update, ceiling)`, every update.
6. An image that could not be scored counts as one with the group's mean advantage (y = 1/2), as in NFT; the other
   methods leave it out. The published code knows no such image.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gdro_bench.content import NonNegative, Positive
from gdro_bench.methods.nft import LEAST, optimality
from gdro_bench.methods.parts import forward_process
from gdro_bench.methods.parts.ema import Decay
from gdro_bench.methods.parts.forward_data import OfflineConfig, OnlineConfig, Std
from gdro_bench.methods.parts.forward_process import (
    Mode,
    Rule,
    Seen,
    absolute_error,
    error,
    kl,
    kl_roles,
)
from gdro_bench.methods.parts.offline import PoolConfig
from gdro_bench.methods.parts.trainer import OptimiserConfig


@dataclass(frozen=True, slots=True)
class Config:
    """`baselines/<profile>/crd.toml`."""

    mode: Mode
    beta: Positive
    adaptive: bool  # whether errors are divided by a
    kl_weight: NonNegative  # 0 is no KL at all
    kl_floor: NonNegative  # the KL's weight where the reward is lowest
    teacher_guidance: Positive  # of the reference in the KL; 1 is none
    std: Std
    advantage_clip: Positive
    old: Decay
    sampler: Decay
    online: OnlineConfig
    offline: OfflineConfig
    pool: PoolConfig
    optimiser: OptimiserConfig


def implicit_reward(v_theta: Tensor, v_old: Tensor, target: Tensor, adaptive: bool) -> Tensor:
    """R, [U, k], float64, from velocities [U, k, *latent_shape]."""
    new, old = (
        error(v, target) / (absolute_error(v, target).clamp(min=LEAST) if adaptive else 1.0) for v in (v_theta, v_old)
    )
    return old - new


def crd_loss(implicit: Tensor, y: Tensor, beta: float, clip: float) -> Tensor:
    """L without its KL, [U, k], from implicit rewards and targets [U, k]."""
    centred = implicit - implicit.detach().mean(1, keepdim=True)
    return clip / beta * (beta * centred - (y - y.mean(1, keepdim=True))).square()


def rule(config: Config) -> Rule:
    c = config

    def loss(seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        assert seen.old is not None
        y = optimality(seen.advantage.double(), c.advantage_clip)
        implicit = implicit_reward(seen.theta, seen.old, seen.target, c.adaptive)
        fitted = crd_loss(implicit, y, c.beta, c.advantage_clip).mean().to(seen.theta.dtype)
        weight = (c.kl_floor + y * (c.kl_weight - c.kl_floor)).to(seen.theta.dtype)
        total, measured = kl(fitted, seen, weight if c.kl_weight else 0.0)
        return total, measured | {"r_spread": implicit.detach().std(dim=1).mean()}

    reads = frozenset({"old", *kl_roles(c)})
    return Rule("crd", loss, reads, {"old": c.old, "sampler": c.sampler}, lambda updates: "sampler")


METHOD = forward_process.method(Config, rule)
