"""Rejection-sampling fine-tuning (RAFT, arXiv 2304.06767; best-of-n): flow matching on the pool's best images.

    L = |eps - x0 - v_theta(x_t, t, c)|^2   over the `best` images of highest reward of each group

The plainest offline method: no reference model, no negative examples. Ties are broken at random at every draw.
Differences from the published method: one round only (the pool is not sampled anew from the trained model).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gdro_bench.budget import GRADIENT_COST, Cost
from gdro_bench.errors import BenchError
from gdro_bench.methods import CostModel, TrainContext
from gdro_bench.methods.offline import Drawn, OfflineMethod, PoolConfig, draw_t, pool_cost, squared_error
from gdro_bench.methods.trainer import OptimiserConfig
from gdro_bench.profile import Sampler


@dataclass(frozen=True, slots=True)
class Config:
    """`baselines/<profile>/rft.toml`."""

    pool: PoolConfig
    optimiser: OptimiserConfig
    best: int  # images of a group that are trained on
    groups: int  # an optimiser step
    drop_flat: bool
    t_distribution: Literal["uniform", "logit-normal"]


def draw_best(r: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Indices [n] of the n highest of one group's rewards r [G], ties at random; NaN ones are never drawn."""
    order = torch.randperm(len(r), generator=generator)
    return order[r[order].nan_to_num(-1.0).argsort(descending=True, stable=True)[:n]]


class RFT(OfflineMethod):
    """See the module."""

    config_type = Config
    name = "rft"

    def __init__(self, config: Config, context: TrainContext) -> None:
        n = config.pool.images
        if not 1 <= config.best <= n:
            raise BenchError(f"best is {config.best}.", f"It must lie between 1 and pool.images ({n}).", 2)
        super().__init__(config.pool, config.optimiser, context)
        self.config = config

    @staticmethod
    def costs(config: Config, sampler: Sampler) -> CostModel:
        images = config.groups * config.best
        update, batch = Cost(GRADIENT_COST * images, images), config.optimiser.batch or images
        return CostModel(pool_cost(config.pool, sampler), Cost(), update, updates=1, batch=batch)

    def draw(self, generator: torch.Generator) -> Drawn:
        c, pool = self.config, self.source.groups
        usable = self.source.usable(c.best, c.drop_flat)
        chosen = usable[torch.randint(len(usable), (c.groups,), generator=generator)]
        members = [draw_best(pool.rewards[g], c.best, generator) for g in chosen]
        x0, r, prompts = self.source.taken(chosen, members)
        t = draw_t((c.groups, 1, c.best), c.t_distribution, generator)
        eps = torch.randn((c.groups, 1, *x0.shape[1:]), generator=generator)
        return Drawn(x0, r, prompts, t, eps)

    def loss(self, drawn: Drawn) -> tuple[Tensor, dict[str, float]]:
        cond = self.context.policy.encode(drawn.prompts).repeat_each(self.config.best)
        x0, t, eps = (part.to(self.trainer.device) for part in (drawn.x0.flatten(0, 1), drawn.t, drawn.eps))
        return squared_error(self.context.policy.velocity, x0, t.flatten(), eps.flatten(0, 2), cond).mean(), {}
