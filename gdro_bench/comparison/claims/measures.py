"""What a rule can be about: numbers of one entry, or of two that are compared. One more is one line in `MEASURES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gdro_bench import stats
from gdro_bench.comparison import matched, prediction
from gdro_bench.comparison.entries import Comparison, Entry, Floats
from gdro_bench.stats import Estimate

UNKNOWN = Estimate(np.nan, np.nan, np.nan)
Measured = Callable[[Comparison, Entry, str], Estimate]


@dataclass(frozen=True, slots=True)
class Measure:
    """`says`: what it is, in words, with the part's name before it or in the place of `{part}`. `scope`: the entries of
    the comparison that it sees: the one alone, a pair whose reference the other one is, or all that gold has seen.
    `of_part`: whether it is of a part of the scores, such as `gold`. `matched`: whether it is read at the two
    entries' R*, or at levels up to it."""

    says: str
    measured: Measured
    scope: Literal["alone", "pair", "gold"] = "alone"
    of_part: bool = True
    matched: bool = False

    @property
    def unit(self) -> Literal["ratio", "difference", "correlation"]:
        """On what axis it is drawn."""
        return "correlation" if self.scope == "gold" else "ratio" if not self.of_part else "difference"


def _cost_ratio(with_pool: bool) -> Measured:
    def ratio(pair: Comparison, entry: Entry, _: str) -> Estimate:
        level = matched.common_level(pair)
        return UNKNOWN if level is None else matched.ratio_at(pair, entry, level, "evaluations")[with_pool]

    return ratio


def _mean_cost_ratio(with_pool: bool) -> Measured:
    return lambda pair, entry, _: matched.mean_ratio(pair, entry, "evaluations")[with_pool]


def _at_reward(pair: Comparison, entry: Entry, part: str) -> Estimate:
    """A part where the entry first reaches R*, less the reference's where that does. Not known if one of them too often
    does not."""
    level = matched.common_level(pair)
    if level is None:
        return UNKNOWN
    gain = level - float(_values(pair, pair.reference, "reward")[0, 0])
    own, other = (matched.crossed(pair, of, part, gain) for of in (entry, pair.reference))
    return matched.estimate(own - other) if matched.fair(own) and matched.fair(other) else UNKNOWN


def _relative(pair: Comparison, entry: Entry, part: str) -> Estimate:
    """A part at the end of the budget over the reference's, less 1; not known unless that is above 0."""
    ours, theirs = matched.paired(pair, part, (entry, -1), (pair.reference, -1))
    if matched.estimate(theirs).low <= 0:
        return UNKNOWN
    return matched.estimate(ours / theirs - 1)


def _fall(alone: Comparison, entry: Entry, part: str) -> Estimate:
    """A part's last value over its highest one before that, less 1: above 0 if it rose to the end. Not known unless
    that one is above 0."""
    halves = matched.since_highest(alone, entry, part)
    if any(matched.estimate(best).low <= 0 for _, best in halves):
        return UNKNOWN
    return _mean([last / best - 1 for last, best in halves])


def _reward_since_best(alone: Comparison, entry: Entry, part: str) -> Estimate:
    """What the reward gained after the part was at its best."""
    return _mean([last - best for last, best in matched.since_highest(alone, entry, part, "reward")])


def _mean(halves: list[Floats]) -> Estimate:
    return matched.estimate(stats.known_mean(np.stack(halves), 0))


def _values(compared: Comparison, entry: Entry, part: str) -> Floats:
    return matched.with_replicates(entry, compared.prompt_weights, part)


def _rank_correlation(whole: Comparison, entry: Entry, part: str) -> Estimate:
    return prediction.rank_correlations(whole, [part])[1].get(part, UNKNOWN)


MEASURES = {
    "cost-ratio": Measure("cost to R*, over the other's, pools counted", _cost_ratio(True), "pair", False, True),
    "cost-ratio-without-pools": Measure(
        "cost to R*, over the other's, pools not counted", _cost_ratio(False), "pair", False, True
    ),
    "mean-cost-ratio": Measure(
        "cost to equal reward, over the other's, pools counted, mean over levels",
        _mean_cost_ratio(True),
        "pair",
        False,
        True,
    ),
    "mean-cost-ratio-without-pools": Measure(
        "cost to equal reward, over the other's, pools not counted, mean over levels",
        _mean_cost_ratio(False),
        "pair",
        False,
        True,
    ),
    "at-reward": Measure("difference at R*", _at_reward, "pair", matched=True),
    "difference": Measure("difference at the end of the budget", matched.against, "pair"),
    "relative-difference": Measure("difference at the end of the budget, as a share", _relative, "pair"),
    "gain": Measure("change from the base to the end of the budget", matched.since_base),
    "fall": Measure("last value, against the highest before it, as a share", _fall),
    "reward-since-best": Measure("reward at the end, less the reward where {part} was highest", _reward_since_best),
    "rank-correlation": Measure("rank correlation with gold over all checkpoints", _rank_correlation, "gold"),
    "removed": Measure("share of the base's errors that is gone at the end", matched.removed),
}
