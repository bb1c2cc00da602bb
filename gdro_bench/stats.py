"""Intervals: bootstrap over prompts, paired where two evaluations share their prompts and noise.

Pictures of one prompt are drawn together. Several seeds add a second level, crossed with the first: seeds are drawn
anew within each method, prompts once for all methods, which were all evaluated on the same ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
LEVEL = 0.95
DECIMALS = 9  # of what is rounded or shown: the last bits depend on the order of sums, and on how many threads summed


def three_decimals(value: float, sign: str = "") -> str:
    """For people; a mean of differences and the difference of means look alike even where they lie at a half."""
    return f"{round(value, DECIMALS):{sign}.3f}"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its bootstrap interval; all NaN when nothing was scored."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.mean):
            return "not known"
        return f"{three_decimals(self.mean)} [{three_decimals(self.low)}, {three_decimals(self.high)}]"

    @property
    def against_zero(self) -> str:
        """Of a difference, in words; of one that is NaN, nothing is concluded."""
        if np.isnan([self.mean, self.low, self.high]).any():
            return "not known to differ from"
        return "above" if self.low > 0 else "below" if self.high < 0 else "within noise of"


def bootstrap_mean(values: NDArray[np.float64], seed: int = 0, prompts: Sequence[str] | None = None) -> Estimate:
    """Mean and 95 % percentile interval of values [N]; NaN ones are left out. Without `prompts`, the text behind each
    value, each is one of its own."""
    scored = np.flatnonzero(~np.isnan(values)).tolist()
    if not scored:
        return Estimate(np.nan, np.nan, np.nan)
    kept, group = values[scored], numbered(scored if prompts is None else [prompts[i] for i in scored])
    total, count = np.bincount(group, kept), np.bincount(group)
    rows = np.random.default_rng(seed).integers(len(count), size=(RESAMPLES, len(count)))
    tail = (1 - LEVEL) / 2 * 100
    low, high = np.percentile(total[rows].sum(axis=1) / count[rows].sum(axis=1), (tail, 100 - tail))
    return Estimate(float(kept.mean()), float(low), float(high))


def numbered(names: Iterable[Hashable]) -> NDArray[np.int64]:
    """Each name's number, from 0 in order of first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def paired_gain(
    before: NDArray[np.float64], after: NDArray[np.float64], seed: int = 0, prompts: Sequence[str] | None = None
) -> Estimate:
    """Mean of after - before over pictures scored both times, with its 95 % interval.

    Raises:
        ValueError: the two do not have the same prompts.
    """
    if before.shape != after.shape:
        raise ValueError(f"paired values must have one shape, not {before.shape} and {after.shape}")
    return bootstrap_mean(after - before, seed, prompts)


Weights = NDArray[np.float64]  # [RESAMPLES, n]: how often each of n things was drawn, as shares


def draws(n: int, seed: int, times: int | None = None) -> Weights:
    """Bootstrap weights [RESAMPLES, n] of n things drawn with replacement, so many `times` (n if None)."""
    times = n if times is None else times
    return np.random.default_rng(seed).multinomial(times, np.full(n, 1 / n), RESAMPLES) / times


def draws_of_few(n: int, seed: int) -> Weights:
    """The same for few things: drawn once less than there are, since the spread of means of n drawn n times is too
    small by (n - 1) / n (Rao and Wu 1988)."""
    return draws(n, seed, max(1, n - 1))


def draws_of(prompts: Sequence[str], seed: int) -> Weights:
    """Bootstrap weights [RESAMPLES, N] of N pictures, those of one prompt drawn together."""
    group = numbered(prompts)
    return draws(int(group.max()) + 1, seed)[:, group]


def replicates(values: NDArray[np.float64], seeds: Weights, prompts: Weights) -> NDArray[np.float64]:
    """Resampled means [RESAMPLES, M] of values [S, M, N] over S seeds and N prompts; NaN ones are left out.

    The mean with the seeds drawn, and that with the prompts drawn, less the mean. If both were drawn at once, what is
    of one seed and prompt together would count three times (Owen 2007, "The pigeonhole bootstrap"); so it counts twice,
    and intervals are still a little too wide where that is most of the spread. No mean lies beyond its values."""
    scored = ~np.isnan(values)
    sums, counts = np.where(scored, values, 0.0), scored.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        by_seed = (seeds @ sums.sum(axis=2)) / (seeds @ counts.sum(axis=2))
        by_prompt = (prompts @ sums.sum(axis=0).T) / (prompts @ counts.sum(axis=0).T)
        means: NDArray[np.float64] = by_seed + by_prompt - sums.sum(axis=(0, 2)) / counts.sum(axis=(0, 2))
        low, high = (np.where(scored, values, beyond) for beyond in (np.inf, -np.inf))
        means = means.clip(low.min(axis=(0, 2)), high.max(axis=(0, 2)))
    return np.round(means, DECIMALS)


def known_mean(values: NDArray[np.float64], axis: int | tuple[int, ...] | None = None) -> NDArray[np.float64]:
    """Mean over axes, or over all values; NaN ones are left out, and NaN where there are no others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of an empty mean
        return np.asarray(np.nanmean(values, axis=axis), dtype=np.float64)


def estimate(mean: float, resampled: NDArray[np.float64]) -> Estimate:
    """A mean with the 95 % interval of its resampled values [R]; infinite ones stand for `more than was spent`."""
    if np.isnan(resampled).all():
        return Estimate(mean, np.nan, np.nan)
    tail = (1 - LEVEL) / 2 * 100
    low, high = np.nanpercentile(resampled, (tail, 100 - tail), method="nearest")
    return Estimate(mean, float(low), float(high))


def crossings(cost: NDArray[np.float64], rewards: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """Where curves of costs [M] and rewards [R, M], linear between their points, first reach a level: [R], inf if
    nowhere. Points with unknown (NaN) rewards are left out."""
    unknown = np.isnan(rewards)
    if not unknown.any():
        return _first_at(cost, rewards, level)
    reached = np.full(len(rewards), np.inf)
    for missing in np.unique(unknown, axis=0):
        rows = (unknown == missing).all(axis=1)
        if not missing.all():
            reached[rows] = _first_at(cost[~missing], rewards[rows][:, ~missing], level)
    return reached


def _first_at(cost: NDArray[np.float64], rewards: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    there = rewards >= level
    at = there.argmax(axis=1)
    before = np.maximum(at - 1, 0)
    low, high = (np.take_along_axis(rewards, i[:, None], axis=1)[:, 0] for i in (before, at))
    with np.errstate(divide="ignore", invalid="ignore"):  # of curves that begin there or never come
        share = np.where(at > 0, (level - low) / (high - low), 0.0)
        between = cost[before] + share * (cost[at] - cost[before])
    return np.where(there.any(axis=1), between, np.inf)
