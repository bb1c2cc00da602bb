"""Intervals: bootstrap over prompts, paired where two evaluations share their prompts and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its bootstrap interval; all NaN when nothing was scored."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_mean(values: NDArray[np.float64], seed: int = 0) -> Estimate:
    """Mean and 95 % percentile interval of values [N]; NaN ones are left out."""
    kept = values[~np.isnan(values)]
    if not len(kept):
        return Estimate(np.nan, np.nan, np.nan)
    rows = np.random.default_rng(seed).integers(len(kept), size=(RESAMPLES, len(kept)))
    tail = (1 - LEVEL) / 2 * 100
    low, high = np.percentile(kept[rows].mean(axis=1), (tail, 100 - tail))
    return Estimate(float(kept.mean()), float(low), float(high))


def paired_gain(before: NDArray[np.float64], after: NDArray[np.float64], seed: int = 0) -> Estimate:
    """Mean of after - before over prompts scored both times, with its 95 % interval.

    Raises:
        ValueError: the two do not have the same prompts.
    """
    if before.shape != after.shape:
        raise ValueError(f"paired values must have one shape, not {before.shape} and {after.shape}")
    return bootstrap_mean(after - before, seed)
