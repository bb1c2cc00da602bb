"""DiffusionNFT (arXiv 2509.16117): the flow of the good images is fitted, and that of the bad ones implicitly left.

With the policy v, a lagged copy v_old, r = clip(A / 2c + 1/2, 0, 1) for advantages clipped to +-c, and both
mixtures' predictions of the clean latent,

    v+ = beta v + (1 - beta) v_old        v- = (1 + beta) v_old - beta v        x+- = x_t - t v+-
    L  = c mean of [ r |x+ - x0|^2 / w+ + (1 - r) |x- - x0|^2 / w- ] / beta + kl_weight mean (v - v_ref)^2

where w+- = max(mean |x+- - x0|, 1e-5) without gradient. To first order a step is A / w times that of flow matching,
whatever beta, which only weighs a pull to v_old.

Where this differs from the published code:
1. Rollouts are made by Euler's method; published is a second-order multistep solver of 10 steps.
2. They are guided as the profile samples, unless `online.guidance` says otherwise; published rollouts are unguided.
3. An update takes whole groups; published code mixes all images of an epoch.
4. The moving average that is evaluated follows `min(slope * update, ceiling)`, as for every method here.
5. Only the published default of its modes of advantage, `all`, is here.
6. A resumed run goes on with every copy and counter; published code starts them anew.
7. An image that could not be scored has advantage 0 (r = 1/2): no step to first order, and the pull to v_old. The
   published code knows no such image.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gdro_bench.content import NonNegative, Positive
from gdro_bench.methods.parts import forward_process
from gdro_bench.methods.parts.ema import Decay
from gdro_bench.methods.parts.forward_data import OfflineConfig, OnlineConfig, Std
from gdro_bench.methods.parts.forward_process import Mode, Rule, Seen, error, kl, kl_roles
from gdro_bench.methods.parts.offline import PoolConfig
from gdro_bench.methods.parts.trainer import OptimiserConfig

LEAST = 1e-5  # of the weights w


@dataclass(frozen=True, slots=True)
class Config:
    """`baselines/<profile>/nft.toml`."""

    mode: Mode
    beta: Positive
    kl_weight: NonNegative
    teacher_guidance: Positive  # of the reference in the KL; 1 is none
    std: Std
    advantage_clip: Positive
    old: Decay
    online: OnlineConfig
    offline: OfflineConfig
    pool: PoolConfig
    optimiser: OptimiserConfig


def optimality(advantage: Tensor, clip: float) -> Tensor:
    """r, the probability that an image is a good one, of its advantage; elementwise."""
    return (advantage / (2 * clip) + 0.5).clamp(0, 1)


def mixtures(v_theta: Tensor, v_old: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """v+ and v-, of the shape of the velocities."""
    return beta * v_theta + (1 - beta) * v_old, (1 + beta) * v_old - beta * v_theta


def nft_loss(
    v_theta: Tensor, v_old: Tensor, target: Tensor, t: Tensor, advantage: Tensor, beta: float, clip: float
) -> Tensor:
    """L without its KL, [U, k], from velocities [U, k, *latent_shape], times and advantages [U, k] (eq. 5)."""
    r = optimality(advantage, clip)

    def fit(v: Tensor) -> Tensor:
        weight = (t.double() * (v.detach().double() - target.double()).abs().flatten(2).mean(2)).clamp(min=LEAST)
        return (t.double().square() * error(v, target) / weight).to(v.dtype)

    towards, away = map(fit, mixtures(v_theta, v_old, beta))
    return clip * (r * towards + (1 - r) * away) / beta


def rule(config: Config) -> Rule:
    def loss(seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        assert seen.old is not None
        each = nft_loss(seen.theta, seen.old, seen.target, seen.t, seen.advantage, config.beta, config.advantage_clip)
        return kl(each.mean(), seen, config.kl_weight)

    reads = frozenset({"old", *kl_roles(config)})
    return Rule("nft", loss, reads, {"old": config.old}, lambda updates: "old")


METHOD = forward_process.method(Config, rule)
