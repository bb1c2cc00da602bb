"""Methods at matched reward and at matched budget, with intervals over prompts and seeds.

The reference's replicates and another's share their prompts' weights, so that differences and ratios are paired.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gdro_bench import stats
from gdro_bench.compare.entries import Comparison, Entry, Floats
from gdro_bench.stats import Estimate


def with_knee(entry: Entry, axis: str, with_pool: bool, reward: Floats) -> tuple[Floats, Floats]:
    """Costs [M + 1] and rewards [..., M + 1] with the point put in at which a pool was full and nothing learnt yet."""
    cost, at = entry.cost(axis, with_pool), entry.knee
    if at == len(cost):
        return cost, reward
    pool = entry.cost(axis, True) - entry.cost(axis, False)
    paid = float(pool[at]) if with_pool else 0.0
    return np.insert(cost, at, paid), np.insert(reward, at, reward[..., 0], axis=-1)


def cost_at(entry: Entry, level: float, axis: str, with_pool: bool, rewards: Floats) -> Floats:
    """The cost at which each of the curves, rewards [R, M], first reaches the level: [R], inf where it never does."""
    cost, curves = with_knee(entry, axis, with_pool, rewards)
    return np.array([stats.crossing(cost, curve, level) for curve in curves])


# ---------------------------------------------------------------------------------------------------------------
# Matched reward, matched budget


@dataclass(frozen=True, slots=True)
class AtReward:
    """An entry where it first reaches the level R*: the first mark there (None: never), reward and parts at that mark
    (the last one, if never), the cost and its ratio to the reference's, each with and without the pool."""

    entry: Entry
    mark: int | None
    reward: Estimate
    parts: dict[str, float]
    cost: dict[bool, Estimate]  # with the pool: True
    ratio: dict[bool, Estimate]


@dataclass(frozen=True, slots=True)
class AtBudget:
    """An entry when the budget is spent; `difference` is its reward less the reference's."""

    entry: Entry
    reward: Estimate
    gain: Estimate
    difference: Estimate
    parts: dict[str, float]


def common_level(comparison: Comparison) -> float | None:
    """R*: the highest reward that every entry reaches which rises above the base; None if none rises."""
    tops = []
    for entry in comparison.entries:
        reward = entry.mean("reward")
        best = int(np.argmax(reward))
        resampled = entry.replicates("reward", comparison.prompts)
        if stats.estimate(0, resampled[:, best] - resampled[:, 0]).low > 0:
            tops.append(float(reward[best]))
    return min(tops) if tops else None


def at_reward(comparison: Comparison, level: float, axis: str) -> list[AtReward]:
    """Every entry at matched reward."""
    reference, rows = comparison.reference, []
    for entry in comparison.entries:
        resampled = entry.replicates("reward", comparison.prompts)
        mean = entry.mean("reward")
        reached = np.flatnonzero(mean >= level)
        mark = int(reached[0]) if len(reached) else None
        shown = len(mean) - 1 if mark is None else mark
        cost, ratio = {}, {}
        for pool in (True, False):
            cost[pool] = _cost_estimate(comparison, entry, level, axis, pool)
            ratio[pool] = _ratio(comparison, entry, reference, level, axis, pool)
        at = stats.estimate(float(mean[shown]), resampled[:, shown])
        parts = {name: float(entry.mean(name)[shown]) for name in comparison.parts}
        rows.append(AtReward(entry, mark, at, parts, cost, ratio))
    return rows


def _cost_estimate(comparison: Comparison, entry: Entry, level: float, axis: str, pool: bool) -> Estimate:
    seen = cost_at(entry, level, axis, pool, entry.mean("reward")[None])[0]
    return stats.estimate(seen, cost_at(entry, level, axis, pool, entry.replicates("reward", comparison.prompts)))


def _ratio(comparison: Comparison, entry: Entry, to: Entry, level: float, axis: str, pool: bool) -> Estimate:
    """Cost over the other's cost, drawn together so that prompts are paired; NaN where neither arrives."""
    if entry is to:
        return Estimate(1.0, 1.0, 1.0)

    def costs(rewards: Callable[[Entry], Floats]) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            mine, others = (cost_at(e, level, axis, pool, rewards(e)) for e in (entry, to))
            return mine / others

    seen = costs(lambda e: e.mean("reward")[None])[0]
    return stats.estimate(float(seen), costs(lambda e: e.replicates("reward", comparison.prompts)))


def at_budget(comparison: Comparison) -> list[AtBudget]:
    """Every entry at its last mark."""
    rows, to = [], comparison.reference
    last = to.replicates("reward", comparison.prompts)[:, -1]
    for entry in comparison.entries:
        mean, resampled = entry.mean("reward"), entry.replicates("reward", comparison.prompts)
        apart = 0 * last if entry is to else resampled[:, -1] - last
        rows.append(
            AtBudget(
                entry,
                stats.estimate(float(mean[-1]), resampled[:, -1]),
                stats.estimate(float(mean[-1] - mean[0]), resampled[:, -1] - resampled[:, 0]),
                stats.estimate(float(mean[-1] - to.mean("reward")[-1]), apart),
                {name: float(entry.mean(name)[-1]) for name in comparison.parts},
            )
        )
    return rows
