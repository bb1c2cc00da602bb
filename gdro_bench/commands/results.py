"""The result of an evaluation without training."""

from __future__ import annotations

from dataclasses import dataclass, field

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
