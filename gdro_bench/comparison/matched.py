"""Methods at matched reward and at matched budget, with intervals over prompts and seeds.

The reference's replicates and another's share their prompts' weights, so that differences and ratios are paired; a
difference is over the prompts that were scored at both its ends. A level is a gain over the base: a resample of hard
prompts has a low base, and must rise as much above it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gdro_bench import stats
from gdro_bench.comparison.entries import Comparison, Entry, Floats, same_seeds
from gdro_bench.stats import Estimate

LEVELS = 30  # of reward, at which costs are compared
UPTO = 0.9  # of the way to R*: above that many resamples of one or the other never arrive
ROUNDING = 1e-9  # a curve that ends at a level reaches it


def with_pool_point(entry: Entry, axis: str, with_pool: bool, reward: Floats) -> tuple[Floats, Floats]:
    """Costs [M + 1] and rewards [..., M + 1] with the point put in at which a pool was full and nothing learnt yet."""
    cost, point = entry.cost(axis, with_pool), pool_point(entry, axis, with_pool)
    if point is None:
        return cost, reward
    at, paid = point
    return np.insert(cost, at, paid), np.insert(reward, at, reward[..., 0], axis=-1)


def pool_point(entry: Entry, axis: str, with_pool: bool) -> tuple[int, float] | None:
    """Before which evaluation point a pool was full, and what had been paid by then; None if nothing was learnt."""
    cost, at = entry.cost(axis, with_pool), entry.first_update
    if at == len(cost):
        return None
    paid = float(entry.cost(axis, True)[at] - entry.cost(axis, False)[at]) if with_pool else 0.0
    return at, max(paid, float(cost[at - 1]))  # a mark may lie among rollouts, before any update


def cost_at(entry: Entry, gain: float, axis: str, with_pool: bool, rewards: Floats, stays: bool = False) -> Floats:
    """The cost at which each of the curves, rewards [R, M], is first so much above where it began, or `stays` there
    until its end: [R], inf where it never is, NaN where it is not known where it began or what became of it."""
    cost, curves = with_pool_point(entry, axis, with_pool, rewards)
    gains = curves - curves[:, :1]
    if stays:  # a curve that stays has its lowest value from here on at the level
        known = np.where(np.isnan(gains), np.inf, gains)
        lowest = np.minimum.accumulate(known[:, ::-1], axis=1)[:, ::-1]
        gains = np.where(lowest >= gain - ROUNDING, gains, np.minimum(gains, gain - 2 * ROUNDING))
    reached = stats.crossings(cost, gains, gain - ROUNDING)
    known = ~np.isnan(gain) & ~np.isnan(curves[:, 0]) & ~np.isnan(curves[:, 1:]).all(axis=1)
    return np.where(known, reached, np.nan)


# ---------------------------------------------------------------------------------------------------------------
# Matched reward, matched budget


@dataclass(frozen=True, slots=True)
class AtReward:
    """An entry where it first reaches the level R*: `mark`, the index of the first evaluation point there (None:
    never), the reward at that point (the last one, if never), parts where the curve crosses R*, between points (NaN if
    never; no interval if in more than 2.5 % of resamples never), the cost (NaN: not known) and its ratio to the
    reference's, each with and without the pool, the ratio of what is spent, pools counted, until the reward stays at R*
    or above it, and the mean ratio (`mean_ratio`) with the level that it goes up to."""

    entry: Entry
    mark: int | None
    reward: Estimate
    parts: dict[str, Estimate]
    cost: dict[bool, Estimate]  # with the pool: True
    ratio: dict[bool, Estimate]
    staying: Estimate
    mean: dict[bool, Estimate]
    upto: float


@dataclass(frozen=True, slots=True)
class AtBudget:
    """An entry when the budget is spent; `difference` is its reward less the reference's."""

    entry: Entry
    reward: Estimate
    gain: Estimate
    difference: Estimate
    parts: dict[str, Estimate]


def common_level(comparison: Comparison) -> float | None:
    """R*: the highest reward that every entry which rises above the base reaches, as observed and in all but the lowest
    2.5 % of resamples: at the very top of a curve half of them would never arrive, and have no cost.

    None if fewer than two entries are compared, or none rises.
    """
    tops = [top for entry in comparison.entries if (top := _top(entry, comparison.prompt_weights)) is not None]
    base = float(comparison.reference.mean("reward")[0])
    return base + min(tops) if tops and len(comparison.entries) > 1 and not np.isnan(base) else None


def _top(entry: Entry, prompts: stats.Weights) -> float | None:
    """The highest gain over the base, as observed and in all but the lowest 2.5 % of resamples; None of what does not
    rise beyond noise, or is not known."""
    rewards = with_replicates(entry, prompts)
    gains = rewards - rewards[:, :1]
    if np.isnan(gains[0]).all() or not _rises(gains):
        return None
    return min(float(np.nanmax(gains[0])), estimate(_highest(gains)).low)


def _rises(gains: Floats) -> bool:
    """Whether curves [1 + R, M] are above 0 at a point beyond noise. That it is the best of many points, which vary
    together, is allowed for (max-t over resamples, Westfall and Young 1993)."""
    seen = gains[:, ~np.isnan(gains[0])]
    spread = np.nanstd(seen[1:], axis=0)
    sure, varied = seen[0, spread <= ROUNDING], spread > ROUNDING
    if (sure > ROUNDING).any() or not varied.any():
        return bool((sure > ROUNDING).any())
    noise = _highest((seen[1:, varied] - seen[0, varied]) / spread[varied])
    return bool((seen[0, varied] / spread[varied]).max() > np.nanpercentile(noise, 100 * (1 + stats.LEVEL) / 2))


def _highest(curves: Floats) -> Floats:
    """Of each curve [R, M]: [R], NaN where nothing is known of one."""
    highest: Floats = np.where(np.isnan(curves), -np.inf, curves).max(axis=1)
    return np.where(np.isinf(highest), np.nan, highest)


def at_reward(comparison: Comparison, level: float, axis: str) -> list[AtReward]:
    """Every entry at matched reward."""
    gain = level - _base(comparison)
    return [_at_reward(comparison, entry, gain, axis) for entry in comparison.entries]


def _at_reward(comparison: Comparison, entry: Entry, gain: float, axis: str) -> AtReward:
    rewards = with_replicates(entry, comparison.prompt_weights)
    reached = np.flatnonzero(rewards[0] >= _base(comparison) + gain - ROUNDING)
    mark = int(reached[0]) if len(reached) else None
    reward = estimate(rewards[:, -1 if mark is None else mark])
    parts = {name: _where_there(crossed(comparison, entry, name, gain)) for name in comparison.parts}
    cost = {pool: estimate(spent) for pool, spent in _spent(comparison, entry, gain, axis).items()}
    ratio = _ratio_to(comparison, entry, gain, axis)
    staying = _ratio_to(comparison, entry, gain, axis, stays=True)[True]
    mean = mean_ratio(comparison, entry, axis)
    upto = _base(comparison) + UPTO * _shared_gain(comparison, entry)
    return AtReward(entry, mark, reward, parts, cost, ratio, staying, mean, upto)


def _base(comparison: Comparison) -> float:
    return float(comparison.reference.mean("reward")[0])


def ratio_at(comparison: Comparison, entry: Entry, level: float, axis: str) -> dict[bool, Estimate]:
    """How many times the reference's cost an entry takes to one level of reward, with the pool (True) and without."""
    return _ratio_to(comparison, entry, level - _base(comparison), axis)


def mean_ratio(
    comparison: Comparison, entry: Entry, axis: str, upto: float = UPTO, measured: bool = False
) -> dict[bool, Estimate]:
    """How many times the reference's cost an entry takes to equal reward, with the pool (True) and without: the
    geometric mean over `LEVELS` levels, evenly spaced from the base over `upto` of the way to the R* of these two,
    whatever else is compared. One level's ratio hangs on where two noisy curves happen to cross it. NaN if one of them
    does not rise beyond noise: there is no equal reward then; or if of the `measured` levels, above the first
    evaluation point of both, none is left. Below it a curve is a straight line from where the pool was full."""
    gains = _shared_gain(comparison, entry) * upto * (np.arange(LEVELS) + 0.5) / LEVELS
    if measured and not np.isnan(gains).any():
        gains = gains[gains > _first_gain(comparison, entry)]
    if np.isnan(gains).any() or not len(gains):
        return dict.fromkeys((True, False), Estimate(np.nan, np.nan, np.nan))
    ours, theirs = same_seeds(entry, comparison.reference)
    ratios = {}
    for pool in (True, False):
        costs = _costs_at(ours, gains, axis, pool, comparison)
        ratios[pool] = _ratio(costs, costs if ours is theirs else _costs_at(theirs, gains, axis, pool, comparison))
    return ratios


def _first_gain(comparison: Comparison, entry: Entry) -> float:
    """The higher of the gains of an entry and the reference at their first evaluation points after an update."""
    curves = [(of.mean("reward"), of.first_update) for of in same_seeds(entry, comparison.reference)]
    return max((float(rewards[i] - rewards[0]) for rewards, i in curves if i < len(rewards)), default=np.inf)


def _shared_gain(comparison: Comparison, entry: Entry) -> float:
    """The R* of an entry and the reference alone, less the base's reward; NaN if one of them does not rise beyond
    noise."""
    tops = [_top(of, comparison.prompt_weights) for of in same_seeds(entry, comparison.reference)]
    known = [top for top in tops if top is not None]
    return min(known) if len(known) == len(tops) else np.nan


def _costs_at(entry: Entry, gains: Floats, axis: str, with_pool: bool, comparison: Comparison) -> Floats:
    """Of gains [L] over the base: [L, 1 + R]."""
    rewards = with_replicates(entry, comparison.prompt_weights)
    return np.stack([cost_at(entry, gain, axis, with_pool, rewards) for gain in gains])


def crossed(comparison: Comparison, entry: Entry, part: str, gain: float) -> Floats:
    """A part where the reward is first so much above the base, [1 + R], on the line between the evaluation points
    around it: a method whose points lie far apart would be read far above the level. NaN where it never is there."""
    rewards, values = (with_replicates(entry, comparison.prompt_weights, name) for name in ("reward", part))
    gains, places = rewards - rewards[:, :1], np.arange(rewards.shape[1], dtype=np.float64)
    place = stats.crossings(places, gains, gain - ROUNDING)
    there = np.flatnonzero(np.isfinite(place))
    before, after = (ends(place[there]).astype(np.int64) for ends in (np.floor, np.ceil))
    found, share = np.full(len(place), np.nan), place[there] - before
    found[there] = (1 - share) * values[there, before] + share * values[there, after]
    return found


@dataclass(frozen=True, slots=True)
class AtLevel:
    """How many times the reference's cost an entry takes to a level of reward, with the pool (True) and without; NaN
    where neither is known to get there, inf where only the entry does not. No interval where neither gets there in
    more than 2.5 % of resamples: the others are no fair draw."""

    entry: Entry
    level: float
    ratio: dict[bool, Estimate]


def at_levels(comparison: Comparison, axis: str, count: int = LEVELS) -> list[AtLevel]:
    """Every entry but the reference at so many levels, evenly spaced from the base to the reference's highest reward;
    none if that is not above the base."""
    return [
        AtLevel(entry, _base(comparison) + gain, _ratio_to(comparison, entry, gain, axis))
        for gain in _gains(comparison, count)
        for entry in comparison.entries
        if entry is not comparison.reference
    ]


def spent_at_levels(comparison: Comparison, axis: str, count: int) -> list[tuple[float, dict[str, Estimate]]]:
    """The same levels, and what every entry has spent there with the pool, by label."""
    return [
        (
            _base(comparison) + gain,
            {e.label: estimate(_spent(comparison, e, gain, axis)[True]) for e in comparison.entries},
        )
        for gain in _gains(comparison, count)
    ]


def _gains(comparison: Comparison, count: int) -> list[float]:
    """So many gains over the base, up to the reference's highest; none if that is not above the base."""
    rewards = comparison.reference.mean("reward")
    top = float(np.nanmax(rewards - rewards[0], initial=0.0))
    return np.linspace(0, top, count + 1)[1:].tolist() if top > 0 else []


def _spent(comparison: Comparison, entry: Entry, gain: float, axis: str, stays: bool = False) -> dict[bool, Floats]:
    """What an entry has spent where it is first so much above the base, or stays there, [1 + R], with the pool (True)
    and without."""
    rewards = with_replicates(entry, comparison.prompt_weights)
    return {pool: cost_at(entry, gain, axis, pool, rewards, stays) for pool in (True, False)}


def _ratio_to(
    comparison: Comparison, entry: Entry, gain: float, axis: str, stays: bool = False
) -> dict[bool, Estimate]:
    """What an entry has spent there over what the reference has, with the pool (True) and without."""
    one, other = same_seeds(entry, comparison.reference)
    ours = _spent(comparison, one, gain, axis, stays)
    theirs = ours if one is other else _spent(comparison, other, gain, axis, stays)
    return {pool: _ratio(ours[pool], theirs[pool]) for pool in ours}


def _where_there(values: Floats) -> Estimate:
    """Of values [1 + R], NaN where a curve never gets there."""
    found = estimate(values)
    return found if fair(values) else Estimate(found.mean, np.nan, np.nan)


def fair(values: Floats) -> bool:
    """Whether enough of resampled values [1 + R] are known for an interval: if more than 2.5 % are NaN, the others are
    no fair draw."""
    return bool(np.isnan(values[1:]).mean() <= (1 - stats.LEVEL) / 2)


def _ratio(costs: Floats, to: Floats) -> Estimate:
    """Of costs [..., 1 + R], the geometric mean over levels if there are several: inf where only the entry does not
    arrive, 0 where only the reference does not. A level at which neither does says nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.atleast_2d(np.log(costs / to))
    lost = np.atleast_2d(np.isinf(costs) & np.isinf(to))[:, 1:].all(axis=0)
    ratio = estimate(np.exp(stats.known_mean(logs, 0)))
    if costs is to or lost.mean() <= (1 - stats.LEVEL) / 2:
        return ratio
    return Estimate(ratio.mean, np.nan, np.nan)  # the others are no fair draw


def with_replicates(entry: Entry, prompts: stats.Weights, part: str = "reward") -> Floats:
    """Means [1 + R, M]: as observed, then resampled with the same prompts as every other entry's."""
    return np.vstack((entry.mean(part), entry.replicates(part, prompts)))


def parts_at(comparison: Comparison, entry: Entry, mark: int) -> dict[str, Estimate]:
    """All that there is besides the reward at an entry's evaluation point of this index, by name."""
    return {n: part_at(comparison, entry, n, mark) for n in comparison.parts}


def part_at(comparison: Comparison, entry: Entry, part: str, mark: int) -> Estimate:
    return estimate(with_replicates(entry, comparison.prompt_weights, part)[:, mark])


def removed(comparison: Comparison, entry: Entry, part: str) -> Estimate:
    """What share of an error, a part, the base makes and the entry's last evaluation point does not; below 0 where it
    makes more, NaN where the base makes none."""
    last, first = paired(comparison, part, (entry, -1), (entry, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = 1 - last / first
    return estimate(np.where(np.isfinite(shares), shares, np.nan))


def seen_at_both(entry: Entry, part: str) -> int:
    """How many prompts have a value of a part at the base and at the end, with every seed."""
    return int((~(entry.lacking(part, 0) | entry.lacking(part, -1)).any(axis=0)).sum())


def since_base(comparison: Comparison, entry: Entry, part: str) -> Estimate:
    """What became of a part: its last value less the base's."""
    return _change(comparison, part, (entry, -1), (entry, 0))


def against(comparison: Comparison, entry: Entry, part: str) -> Estimate:
    """A part's last value less the reference's."""
    ours, theirs = same_seeds(entry, comparison.reference)
    return _change(comparison, part, (ours, -1), (theirs, -1))


def since_best(comparison: Comparison, entry: Entry, part: str) -> Estimate:
    """A part's last value less its highest one before that: above 0 if it rose to the end."""
    return estimate(
        stats.known_mean(np.stack([last - best for last, best in since_highest(comparison, entry, part)]), 0)
    )


def since_highest(comparison: Comparison, entry: Entry, part: str, of: str | None = None) -> list[list[Floats]]:
    """`of`, the part itself if None, at the end and where the part was highest before that: for each half of the
    prompts two [1 + R]. The point is chosen by the other half: the highest of many noisy points is too high by its own
    prompts, and the last one never above it. The luck of a checkpoint is both halves': of one seed a plateau still
    seems to fall in about a fifth of cases, of five in 4 % (simulated with the noise of pocket's runs)."""
    odd = np.arange(entry.values("reward").shape[2]) % 2 == 1
    halves = [entry.without(other) for other in (odd, ~odd)]
    points = [_highest_at(half.mean(part)[:-1]) for half in halves]
    return [
        paired(comparison, of or part, (half, -1), (half, point))
        for half, point in zip(halves, reversed(points), strict=True)
    ]


End = tuple[Entry, int]  # of a difference: an entry and the index of its evaluation point


def _change(comparison: Comparison, part: str, to: End, since: End) -> Estimate:
    last, first = paired(comparison, part, to, since)
    return estimate(last - first)


def paired(comparison: Comparison, part: str, *ends: End) -> list[Floats]:
    """Means [1 + R] of a part at each of two evaluation points, over the prompts that all runs scored at both: the
    pictures that were not scored may be the hard ones."""
    lacking = np.concatenate([entry.lacking(part, mark) for entry, mark in ends])
    alike = bool((lacking == lacking[0]).all())
    anywhere = np.asarray(lacking.any(axis=0))
    shown = [(entry if alike else entry.without(anywhere), mark) for entry, mark in ends]
    return [with_replicates(entry, comparison.prompt_weights, part)[:, mark] for entry, mark in shown]


def _highest_at(means: Floats) -> int:
    """The index of the highest of means [M], the first if nothing is known."""
    return 0 if np.isnan(means).all() else int(np.nanargmax(means))


def estimate(values: Floats) -> Estimate:
    """Of values [1 + R], the first as observed, the others resampled."""
    return stats.estimate(float(values[0]), values[1:])


def at_budget(comparison: Comparison) -> list[AtBudget]:
    """Every entry at its last evaluation point."""
    return [
        AtBudget(
            entry,
            reward=part_at(comparison, entry, "reward", -1),
            gain=since_base(comparison, entry, "reward"),
            difference=against(comparison, entry, "reward"),
            parts=parts_at(comparison, entry, -1),
        )
        for entry in comparison.entries
    ]
