"""Diffusion-DPO (arXiv 2311.12908) for rectified flows, offline: GDRO's own limit at k = 2, tau = 0 and gamma = 0.

    L = -log sigmoid(s_w - s_l)

for the preferred and the other image of a pair, with GDRO's implicit reward s (eq. 5 of arXiv 2601.02036). The code is
GDRO's. Differences from the published method:
1. The pair comes from the pool of the reference model's own images, ranked by the reward, not by people.
2. t and noise are shared in a pair if `share_t`, `share_noise` say so; published code shares both.
3. A pair of equal reward carries no preference and costs an evaluation without teaching (`drop_flat` of GDRO).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from gdro_bench.methods import CostModel, TrainContext, gdro
from gdro_bench.methods.offline import PoolConfig
from gdro_bench.methods.trainer import OptimiserConfig
from gdro_bench.profile import Sampler


@dataclass(frozen=True, slots=True)
class Config:
    """`baselines/<profile>/dpo.toml`."""

    pool: PoolConfig
    optimiser: OptimiserConfig
    groups: int  # pairs an optimiser step
    beta: float
    reduction: Literal["sum", "mean"]
    share_t: bool
    share_noise: bool
    t_distribution: Literal["uniform", "logit-normal"]
    draw: Literal["random", "spread"]  # any two images of a group, or its best and its worst


class DPO(gdro.GDRO):
    """See the module."""

    config_type = Config  # type: ignore[assignment]

    def __init__(self, config: Config, context: TrainContext) -> None:
        limit = {"k": 2, "tau": 0.0, "gamma": 0.0, "draws": 1, "ties": "joint", "drop_flat": True}
        own = {f.name: getattr(config, f.name) for f in fields(config)}
        super().__init__(gdro.Config(**own, **limit), context)  # type: ignore[arg-type]

    @staticmethod
    def costs(config: Config, sampler: Sampler) -> CostModel:  # type: ignore[override]
        return gdro.group_costs(config.pool, config.optimiser, sampler, 2 * config.groups, draws=1)
