"""Diffusion-DPO (arXiv 2311.12908) for rectified flows, offline: GDRO's own limit at k = 2, tau = 0 and gamma = 0.

    L = -log sigmoid(s_w - s_l)

for the preferred and the other image of a pair, with GDRO's implicit reward s (eq. 5 of arXiv 2601.02036). The code is
GDRO's. Differences from the published method:
1. The pair comes from the pool of the reference model's own images, ranked by the reward, not by people.
2. t and noise are shared in a pair if `share_t`, `share_noise` say so; published code shares both.
3. A pair has two different rewards (`draw`): equal ones carry no preference, and published code takes them out of the
   data, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from gdro_bench.content import Count, NonNegative
from gdro_bench.methods import CostModel, Method, TrainContext, Training, gdro
from gdro_bench.methods.parts.offline import LeastTime, PoolConfig, Times
from gdro_bench.methods.parts.trainer import OptimiserConfig
from gdro_bench.profile import Sampler
from gdro_bench.task import Prompt


@dataclass(frozen=True, slots=True)
class Config:
    """`baselines/<profile>/dpo.toml`."""

    pool: PoolConfig
    optimiser: OptimiserConfig
    groups: Count  # pairs an optimiser step
    beta: NonNegative
    reduction: Literal["sum", "mean"]
    share_t: bool
    share_noise: bool
    t_distribution: Times
    draw: Literal["unequal", "spread"]  # any two images of a group whose rewards differ, or its best and its worst
    t_min: LeastTime | None = None  # of the t that are drawn


def as_gdro(config: Config) -> gdro.Config:
    """GDRO's settings at DPO's limit."""
    own = {f.name: getattr(config, f.name) for f in fields(config)}
    return gdro.Config(**own, k=2, tau=0.0, gamma=0.0, draws=1, ties="joint", drop_flat=True)


def start(config: Config, context: TrainContext) -> Training:
    # its random numbers are GDRO's stream: another one would move the shipped results
    return gdro.start(as_gdro(config), context)


def costs(config: Config, sampler: Sampler) -> CostModel:
    return gdro.costs(as_gdro(config), sampler)


def check(config: Config, prompts: Sequence[Prompt], sampler: Sampler) -> None:
    gdro.check(as_gdro(config), prompts, sampler)


METHOD = Method(Config, start, costs, check)
