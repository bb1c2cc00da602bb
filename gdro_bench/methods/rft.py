"""Rejection-sampling fine-tuning (RAFT, arXiv 2304.06767; best-of-n): flow matching on the pool's best images.

    L = |eps - x0 - v_theta(x_t, t, c)|^2   over the `best` images of highest reward of each group

The plainest offline method: no reference model, no negative examples. Ties are broken at random at every draw.
Differences from the published method: one round only (the pool is not sampled anew from the trained model).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gdro_bench.budget import GRADIENT_COST, Cost
from gdro_bench.content import Count
from gdro_bench.errors import BenchError
from gdro_bench.methods import CostModel, Method, TrainContext
from gdro_bench.methods.parts.offline import (
    Drawn,
    LeastTime,
    OfflineTraining,
    PoolConfig,
    Source,
    Times,
    draw_t,
    pool_cost,
    squared_error,
)
from gdro_bench.methods.parts.trainer import OptimiserConfig
from gdro_bench.policy import Policy
from gdro_bench.profile import Sampler
from gdro_bench.task import Prompt


@dataclass(frozen=True, slots=True)
class Config:
    """`baselines/<profile>/rft.toml`."""

    pool: PoolConfig
    optimiser: OptimiserConfig
    best: Count  # images of a group that are trained on
    groups: Count  # an optimiser step
    drop_flat: bool
    t_distribution: Times
    t_min: LeastTime | None = None  # of the t that are drawn


def draw_best(r: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Indices [n] of the n highest of one group's rewards r [G], ties at random; NaN ones are never drawn."""
    order = torch.randperm(len(r), generator=generator)
    return order[r[order].nan_to_num(-math.inf).argsort(descending=True, stable=True)[:n]]


def start(config: Config, context: TrainContext) -> OfflineTraining:
    """Raises:
    BenchError: settings that do not go together."""
    check(config, context.prompts, context.sampler)
    source = Source(config.pool, context)
    return OfflineTraining("rft", Objective(config, source, context.policy), source, config.optimiser, context)


def check(config: Config, prompts: Sequence[Prompt], sampler: Sampler) -> None:
    """Raises:
    BenchError: `best` does not fit the pool's groups."""
    n = config.pool.images
    if not 1 <= config.best <= n:
        raise BenchError(f"best is {config.best}.", f"It must lie between 1 and pool.images ({n}).", 2)


def costs(config: Config, sampler: Sampler) -> CostModel:
    images = config.groups * config.best
    update, batch = Cost(GRADIENT_COST * images, images), config.optimiser.batch or images
    return CostModel(pool_cost(config.pool, sampler), Cost(), update, updates=1, batch=batch)


METHOD = Method(Config, start, costs, check)


@dataclass(frozen=True, slots=True)
class Objective:
    """Flow matching on the best images of drawn groups."""

    config: Config
    source: Source
    policy: Policy

    def draw(self, generator: torch.Generator) -> Drawn:
        c, pool = self.config, self.source.groups
        usable = self.source.usable(c.best, c.drop_flat)
        groups = usable[torch.randint(len(usable), (c.groups,), generator=generator)]
        members = [draw_best(pool.rewards[g], c.best, generator) for g in groups]
        x0, r, prompts = self.source.taken(groups, members)
        t = draw_t((c.groups, 1, c.best), c.t_distribution, self.source.times, generator, c.t_min)
        eps = torch.randn((c.groups, 1, *x0.shape[1:]), generator=generator)
        return Drawn(x0, r, prompts, t, eps)

    def loss(self, drawn: Drawn) -> tuple[Tensor, dict[str, float]]:
        cond = self.policy.encode(drawn.prompts).repeat_each(self.config.best)
        x0, t, eps = (
            part.to(next(self.policy.parameters()).device) for part in (drawn.x0.flatten(0, 1), drawn.t, drawn.eps)
        )
        return squared_error(self.policy.velocity, x0, t.flatten(), eps.flatten(0, 2), cond).mean(), {}
