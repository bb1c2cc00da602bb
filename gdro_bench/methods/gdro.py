"""GDRO: group-level direct reward optimisation (arXiv 2601.02036).

For each prompt a group of images is sampled from the reference model once and scored (the pool). Training draws k of
them and fits the implicit rewards s to the ranking that the scores define:

    s_i    = -beta * (|v - v_theta(x_t, t, c)|^2 - |v - v_ref(x_t, t, c)|^2)                            eq. 5
    q_i(j) = softmax over the remaining items j of r_j / tau
    L_GDRO = sum_i [ log sum_{m remaining at i} exp(s_m) - sum_j q_i(j) s_j ]                           eq. 7
    L      = L_GDRO + gamma * |v - v_theta|^2 of the image with the highest reward                      section 3.3

Left open by the paper, hence options (the numbers are in baselines/<profile>/gdro.toml):
1. `reduction`: whether both |.|^2 sum or average over latent elements; beta and gamma are on its scale.
2. `share_t`, `share_noise`: whether a group's images share t and eps. `t_distribution`; `draws` of (t, eps) an image.
3. `ties`: `joint` lets images of equal reward share one remaining set (Breslow's rule), so that the loss cannot
   depend on their order; `order` ranks them as drawn. Where rewards differ both are the paper's loss. With tau = 0
   the target is the limit: one-hot, shared by ties.
4. `drop_flat`: leaves out the terms whose remaining images all have one reward: they carry no preference.
5. `draw`: `random`, or `spread`, which always takes a best and a worst image of the 16.
6. The reward that decides which image is stabilised may tie: ties share the term.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gdro_bench.budget import GRADIENT_COST, Cost
from gdro_bench.content import Count, NonNegative
from gdro_bench.errors import BenchError
from gdro_bench.methods import CostModel, Method, TrainContext
from gdro_bench.methods.offline import (
    Drawn,
    OfflineTraining,
    PoolConfig,
    Source,
    draw_groups,
    pool_cost,
    squared_error,
)
from gdro_bench.methods.trainer import OptimiserConfig
from gdro_bench.policy import Policy
from gdro_bench.profile import Sampler
from gdro_bench.sampling import ConditionalVelocity

Ties = Literal["joint", "order"]


@dataclass(frozen=True, slots=True)
class Config:
    """`baselines/<profile>/gdro.toml`."""

    pool: PoolConfig
    optimiser: OptimiserConfig
    k: Count
    groups: Count  # an optimiser step
    beta: NonNegative
    tau: NonNegative
    gamma: NonNegative
    reduction: Literal["sum", "mean"]
    share_t: bool
    share_noise: bool
    t_distribution: Literal["uniform", "logit-normal"]
    draws: Count
    ties: Ties
    drop_flat: bool
    draw: Literal["random", "spread"]


# ---------------------------------------------------------------------------------------------------------------
# The mathematics, as functions of tensors


def remaining_sets(r: Tensor, ties: Ties) -> Tensor:
    """Whether item m remains when item i is ranked: bool [G, k (i), k (m)], for rewards r [G, k]."""
    if ties == "joint":
        return r[:, None, :] <= r[:, :, None]
    rank = torch.argsort(torch.argsort(r, dim=1, descending=True, stable=True), dim=1)
    return rank[:, None, :] >= rank[:, :, None]


def target_distribution(r: Tensor, remaining: Tensor, tau: float) -> Tensor:
    """q_i(j): softmax of r / tau over what remains, [G, k, k]; tau = 0 is its limit, uniform over the best."""
    rewards = r[:, None, :].expand_as(remaining).masked_fill(~remaining, -math.inf)
    if tau > 0:
        return torch.softmax(rewards / tau, dim=2)
    best = (rewards == rewards.amax(dim=2, keepdim=True)).to(r.dtype)
    return best / best.sum(dim=2, keepdim=True)


def gdro_loss(s: Tensor, r: Tensor, tau: float, ties: Ties, drop_flat: bool) -> Tensor:
    """L_GDRO of each group, [G], from implicit rewards s [G, k] and explicit rewards r [G, k] (eq. 7)."""
    remaining = remaining_sets(r, ties)
    q = target_distribution(r, remaining, tau)
    log_z = torch.logsumexp(s[:, None, :].expand_as(remaining).masked_fill(~remaining, -math.inf), dim=2)
    terms = log_z - (q * s[:, None, :]).sum(dim=2)  # [G, k]; the last rank's term is 0 by itself
    if drop_flat:
        lowest = r[:, None, :].expand_as(remaining).masked_fill(~remaining, math.inf).amin(dim=2)
        terms = terms * (lowest < r)
    return terms.sum(dim=1)


def implicit_reward(error: Tensor, reference_error: Tensor, beta: float) -> Tensor:
    """s = -beta * (policy error - reference error), for squared errors already reduced over latent elements (eq. 5)."""
    return -beta * (error - reference_error)


def top1_mask(r: Tensor) -> Tensor:
    """M: one-hot over each group at its highest reward, shared by ties; [G, k]."""
    best = (r == r.amax(dim=1, keepdim=True)).to(r.dtype)
    return best / best.sum(dim=1, keepdim=True)


# ---------------------------------------------------------------------------------------------------------------
# The method


def group_costs(pool: PoolConfig, optimiser: OptimiserConfig, sampler: Sampler, images: int, draws: int) -> CostModel:
    """Each image of an update goes through the policy, with its gradient, and through the reference."""
    update = Cost((GRADIENT_COST + 1) * images * draws, images * draws)
    return CostModel(pool_cost(pool, sampler), Cost(), update, updates=1, batch=optimiser.batch or images)


def start(config: Config, context: TrainContext) -> OfflineTraining:
    """Raises:
    BenchError: k does not fit the pool's groups."""
    if config.k > config.pool.images or config.k < 2:
        raise BenchError(f"k is {config.k}.", f"It must lie between 2 and pool.images ({config.pool.images}).", 2)
    source = Source(config.pool, context)
    return OfflineTraining("gdro", Objective(config, source, context.policy), source, config.optimiser, context)


def costs(config: Config, sampler: Sampler) -> CostModel:
    return group_costs(config.pool, config.optimiser, sampler, config.groups * config.k, config.draws)


METHOD = Method(Config, start, costs)


@dataclass(frozen=True, slots=True)
class Objective:
    """What GDRO draws of the pool, and L."""

    config: Config
    source: Source
    policy: Policy

    def draw(self, generator: torch.Generator) -> Drawn:
        return draw_groups(self.source, self.config, self.policy.latent_shape, generator)

    def _errors(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Squared errors of policy and reference, each summed over elements and averaged over draws: [G, k]."""
        policy, device = self.policy, next(self.policy.parameters()).device
        x0, cond = drawn.x0.flatten(0, 1).to(device), policy.encode(drawn.prompts).repeat_each(self.config.k)

        def error(velocity: ConditionalVelocity) -> Tensor:
            each = [
                squared_error(velocity, x0, t.flatten().to(device), eps.flatten(0, 1).to(device), cond)
                for t, eps in zip(drawn.t.unbind(1), drawn.eps.unbind(1), strict=True)
            ]
            return torch.stack(each).mean(0).flatten(1).sum(1).view(len(drawn), self.config.k)

        return error(policy.velocity), error(policy.reference_velocity)

    def loss(self, drawn: Drawn) -> tuple[Tensor, dict[str, float]]:
        c, r = self.config, drawn.r.to(next(self.policy.parameters()).device)
        elements = drawn.x0[0, 0].numel() if c.reduction == "mean" else 1
        error, reference_error = (part / elements for part in self._errors(drawn))
        s = implicit_reward(error, reference_error, c.beta)
        ranking = gdro_loss(s, r, c.tau, c.ties, c.drop_flat).mean()
        stabilising = (top1_mask(r) * error).sum(1).mean()
        return ranking + c.gamma * stabilising, self._measure(s.detach(), r, ranking.item(), stabilising.item())

    def _measure(self, s: Tensor, r: Tensor, ranking: float, stabilising: float) -> dict[str, float]:
        """What shows saturation and collapse coming: the spread of s, and how the ends of the ranking move."""
        return {
            "ranking_loss": ranking,
            "stabilising_loss": stabilising,
            "s_spread": s.std(dim=1).mean().item(),
            "s_top1": s.gather(1, r.argmax(1, keepdim=True)).mean().item(),
            "s_worst": s.gather(1, r.argmin(1, keepdim=True)).mean().item(),
        }
