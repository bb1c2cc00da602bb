"""Several rewards as one: sums, and what is pessimistic where they disagree.

Rewards are [M, G, k], M rewards of G groups; what comes out is [G, k], NaN where one of them is. z is a reward
normalised within its group, (r - mean) / std, and 0 where the group's rewards are all one:

    weighted-sum   sum_m w_m r_m                                on the rewards' own scales
    decoupled      sum_m w_m z_m                                GDPO, arXiv 2601.05242
    mean-std       mean_m z_m - c std_m z_m                     the lower end of what an ensemble thinks; of two
                                                                rewards at c = 1 the minimum
    min            min_m z_m
    soft-min       -(1 / c) log mean_m exp(-c z_m)              arXiv 2606.09073; c = 0 is the mean, c = inf the minimum
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gdro_bench.content import NonNegative
from gdro_bench.errors import BenchError
from gdro_bench.methods.parts.groups import flat_groups

WEIGHTED = ("weighted-sum", "decoupled")
PESSIMISTIC = ("mean-std", "soft-min")


@dataclass(frozen=True, slots=True)
class AggregationConfig:
    """`[regulariser.aggregation]` of a method's TOML. `weights` are those of the auxiliary rewards, in their order, for
    the sums; the task's own has weight 1. `pessimism` is c."""

    rule: Literal["weighted-sum", "decoupled", "mean-std", "min", "soft-min"]
    weights: tuple[float, ...] | None = None
    pessimism: NonNegative | None = None


def check(config: AggregationConfig, auxiliaries: int) -> None:
    """Raises:
    BenchError: the rule's settings are missing, too many or of no use."""
    rule, where = config.rule, "method.regulariser.aggregation"
    if rule in WEIGHTED and (config.weights is None or len(config.weights) != auxiliaries):
        raise BenchError(f"The rule {rule} needs a weight for each of {auxiliaries} auxiliary rewards.",
                         f"Set {where}.weights, such as [{', '.join(['0.2'] * auxiliaries)}].", 2)  # fmt: skip
    if rule not in WEIGHTED and config.weights is not None:
        raise BenchError(f"The rule {rule} has no weights.", f"Leave {where}.weights out.", 2)
    if config.weights is not None and not all(map(math.isfinite, config.weights)):
        raise BenchError(f"The weights are {list(config.weights)}.", "They must be finite numbers.", 2)
    if (rule in PESSIMISTIC) != (config.pessimism is not None):
        verb = "needs" if rule in PESSIMISTIC else "has no"
        raise BenchError(f"The rule {rule} {verb} pessimism.", f"Set {where}.pessimism for {', '.join(PESSIMISTIC)}, "
                         "and for no other rule.", 2)  # fmt: skip


def aggregated(rewards: Tensor, config: AggregationConfig) -> Tensor:
    """The rule's one reward [G, k] of rewards [M, G, k], the task's own first."""
    c = config.pessimism or 0.0
    if config.rule == "weighted-sum":
        return weighted(rewards, (1.0, *(config.weights or ())))
    z = normalised(rewards)
    if config.rule == "decoupled":
        return weighted(z, (1.0, *(config.weights or ())))
    if config.rule == "mean-std":
        return z.mean(0) - c * z.std(0, correction=0)
    unknown = z.isnan().any(0)
    lowest = z.amin(0) if config.rule == "min" else soft_min(z, c)
    return lowest.masked_fill(unknown, math.nan)


def normalised(rewards: Tensor) -> Tensor:
    """z [..., k]: rewards less their group's mean, over its std; 0 throughout a group without differences. NaN stays
    and counts nowhere."""
    centred = rewards - rewards.nanmean(-1, keepdim=True)
    spread = centred.square().nanmean(-1, keepdim=True).sqrt()
    return torch.where(flat_groups(rewards)[..., None] & ~rewards.isnan(), torch.zeros_like(centred), centred / spread)


def weighted(rewards: Tensor, weights: Sequence[float]) -> Tensor:
    """sum_m w_m rewards_m, [G, k]."""
    each = torch.tensor(weights, dtype=rewards.dtype).view(-1, *[1] * (rewards.ndim - 1))
    return (each * rewards).sum(0)


def soft_min(z: Tensor, c: float) -> Tensor:
    """-(1 / c) log mean_m exp(-c z_m) over the first dimension; the mean for c = 0."""
    return z.mean(0) if c == 0 else -(torch.logsumexp(-c * z, 0) - math.log(len(z))) / c


def pessimistic(r: Tensor, u: Tensor, c: float) -> Tensor:
    """r - c [U]_+, which lowers what the auxiliary rewards do not bear out; an unknown U lowers nothing."""
    return r - (c * u.clamp(min=0).nan_to_num(0.0)).to(r.dtype)
