"""The results of evaluations without training."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gdro_bench.stats import Estimate


@dataclass(frozen=True, slots=True)
class Result:
    """A set of pictures scored by an instrument, and perhaps a judge; `corrected` is the corrected score of the
    means, and the mean of the corrected scores, over the pictures that both could score."""

    instrument: str
    pictures: int
    unscored: int
    reward: Estimate
    parts: dict[str, Estimate]
    judge: str = ""
    unjudged: int = 0
    axes: dict[str, Estimate] = field(default_factory=dict)
    corrected: dict[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScaledResult:
    """An evaluation of adapters at a `scale` of their updates; `path_kl` is the divergence from the base, in nats."""

    scale: float
    result: Result
    gold: Estimate
    path_kl: Estimate

    @property
    def corrected(self) -> Estimate:
        """Of the means; unknown without a judge."""
        return self.result.corrected.get("of the means", Estimate(np.nan, np.nan, np.nan))
