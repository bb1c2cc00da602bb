"""AWM, advantage weighted matching (arXiv 2509.25050): policy gradients with flow matching as the likelihood.

    log p ~ lp = -t ((e + 1e-10)^p - 1e-10^p) / p,  p = `exponent`                   ("ghuber")
    rho   = exp(lp(v) - lp(v_sampler)),   v_sampler the policy that made the epoch's rollouts
    L     = mean of max(-A' rho, -A' clip(rho, 1 - clip_range, 1 + clip_range))
            + kl_weight mean (v - v_ref)^2 + old_weight mean (v - v_old)^2

with e = mean (v - v*)^2 and A' = advantage_max A / advantage_clip. In an epoch's first update rho is 1: the step is
flow matching weighted by A' t (e + 1e-10)^(p - 1), which asks less of images that are far away, so that a push has a
bound.

Where this differs from the published code:
1. Rollouts are made by Euler's method; published are 14 steps of SA-Solver on a grid of its own, with noise (tau = 0.4)
   where t is 0.3 to 0.9.
2. They are guided as the profile samples, unless `online.guidance` says otherwise; published rollouts are unguided.
3. A group's images share their times; published code shares them among all images of a micro-batch.
4. Every update takes whole groups. v_sampler is kept as a copy and asked when it is needed, not in advance.
5. The KL is the plain one (`Uniform`), rho is taken of each draw (`exp_first`), times are the sampler's.
6. The moving average that is evaluated follows `min(slope * update, ceiling)`, as for every method here.
7. Every epoch samples; the first two published ones do not, because their sampler's groups have another size there.
8. Offline, v_sampler is the reference model, and only a clip range below 1 ends the push away from an image there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gdro_bench.content import NonNegative, Positive
from gdro_bench.errors import BenchError
from gdro_bench.methods.parts import forward_process
from gdro_bench.methods.parts.ema import Decay
from gdro_bench.methods.parts.forward_data import OfflineConfig, OnlineConfig, Std
from gdro_bench.methods.parts.forward_process import Mode, Role, Rule, Seen, distance, error, kl, kl_roles
from gdro_bench.methods.parts.grpo import clipped_loss
from gdro_bench.methods.parts.offline import PoolConfig
from gdro_bench.methods.parts.trainer import OptimiserConfig
from gdro_bench.profile import Sampler
from gdro_bench.task import Prompt

TINY = 1e-10  # keeps the slope of a root finite at 0
Likelihood = Literal["ghuber", "huber", "uniform", "t", "t2"]
NO_MEMORY = Decay(0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Config:
    """`baselines/<profile>/awm.toml`."""

    mode: Mode
    likelihood: Likelihood
    exponent: Positive  # p of "ghuber"
    advantage_max: Positive
    clip_range: Positive
    kl_weight: NonNegative
    old_weight: NonNegative
    teacher_guidance: Positive  # of the reference in the KL; 1 is none
    std: Std
    advantage_clip: Positive
    old: Decay
    online: OnlineConfig
    offline: OfflineConfig
    pool: PoolConfig
    optimiser: OptimiserConfig


def log_likelihood(e: Tensor, t: Tensor, likelihood: Likelihood, exponent: float) -> Tensor:
    """lp of errors e at times t; elementwise."""
    if likelihood in ("ghuber", "huber"):
        p, scale = (exponent, exponent) if likelihood == "ghuber" else (0.5, 1.0)
        robust: Tensor = t * ((e + TINY).pow(p) - TINY**p) / scale
        return -robust
    plain: Tensor = e * t.pow({"uniform": 0, "t": 1, "t2": 2}[likelihood])
    return -plain


def awm_ratio(
    v_theta: Tensor, v_sampler: Tensor, target: Tensor, t: Tensor, likelihood: Likelihood, exponent: float
) -> Tensor:
    """rho, [U, k], float64, from velocities [U, k, *latent_shape] and times [U, k]."""
    new, old = (log_likelihood(error(v, target), t.double(), likelihood, exponent) for v in (v_theta, v_sampler))
    return (new - old).exp()


def rule(config: Config) -> Rule:
    c = config
    asks = c.mode == "offline" or c.online.updates_per_epoch > 1  # else the policy is the one that sampled

    def loss(seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        before = seen.theta.detach() if seen.sampler is None else seen.sampler
        ratio = awm_ratio(seen.theta, before, seen.target, seen.t, c.likelihood, c.exponent)
        weight = seen.advantage.double() * (c.advantage_max / c.advantage_clip)
        fitted = clipped_loss(ratio, weight, c.clip_range).mean().to(seen.theta.dtype)
        clipped = ((ratio - 1).abs() > c.clip_range).double().mean()
        total, measured = kl(fitted, seen, c.kl_weight)
        measured |= {"clipped": clipped}
        if seen.old is None:
            return total, measured
        to_old = distance(seen.theta, seen.old).mean()
        return total + c.old_weight * to_old, measured | {"kl_old": to_old}

    copies: dict[Role, Decay] = {"old": c.old} if c.old_weight else {}
    copies |= {"sampler": NO_MEMORY} if asks else {}
    return Rule("awm", loss, frozenset({*copies, *kl_roles(c)}), copies, lambda updates: None)


def check(config: Config, prompts: Sequence[Prompt], sampler: Sampler) -> None:
    """Raises:
    BenchError: settings that do not go together, or the policy that sampled would be forgotten within an epoch."""
    forward_process.check(config, prompts, sampler)
    if config.mode == "online" and config.online.updates_per_epoch > 1 and config.online.move_copies == "update":
        raise BenchError(
            "AWM compares all updates of an epoch with its start.", 'Set method.online.move_copies="epoch".', 2
        )


METHOD = forward_process.method(Config, rule, check)
