"""The figures that Agarwal et al. (2021, arXiv 2108.13264) ask of a comparison over few runs: the interquartile mean,
the probability of improvement and the performance profile, with a seed as the run and a prompt as the task.

Seeds are drawn within each method, prompts once for all, both at once: these are no means, whose two draws could be
added (`stats.replicates`), so with several seeds their intervals are somewhat wide.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from gdro_bench import stats
from gdro_bench.comparison.entries import Comparison, Entry, Floats, same_seeds
from gdro_bench.stats import Estimate, Weights

TRIM = 0.25  # of the scores at either end, which the interquartile mean leaves out
THRESHOLDS = np.linspace(0, 1, 41)  # of the performance profile
AT_ONCE = 500  # resamples, for want of memory


def interquartile_mean(scores: Floats, weights: Floats) -> Floats:
    """The mean of the middle half of scores [N], each counted `weights` [R, N] times: [R]. NaN ones are left out. What
    lies across the edge of the middle half counts in part."""
    known = ~np.isnan(scores)
    order = np.argsort(scores[known], kind="stable")
    values, counted = scores[known][order], weights[:, known][:, order]
    upto = np.cumsum(counted, axis=1)
    total = counted.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = np.minimum(upto, (1 - TRIM) * total) - np.maximum(upto - counted, TRIM * total)
        means: Floats = np.maximum(inside, 0) @ values / ((1 - 2 * TRIM) * total[:, 0])
    return means


def improvement(ours: Floats, theirs: Floats, weights: tuple[Weights, Weights, Weights]) -> Floats:
    """The probability that a run of ours scores above one of theirs on a prompt, ties counting half, mean over prompts:
    [R].

    Args:
        ours, theirs: scores [S, N] and [T, N]; NaN ones are left out. weights: of our seeds [R, S], of theirs [R, T]
            and of the prompts [R, N].
    """
    apart = ours[:, None] - theirs[None]  # [S, T, N]
    known = ~np.isnan(apart)
    above = np.where(known, (apart > 0) + 0.5 * (apart == 0), 0.0)
    won, met = (np.einsum("stn,rs,rt,rn->r", each, *weights, optimize=True) for each in (above, known.astype(float)))
    with np.errstate(invalid="ignore"):
        return np.asarray(won / met)


def profile(scores: Floats, weights: Floats) -> Floats:
    """The share of scores [N], each counted `weights` [R, N] times, that lie above each threshold: [R, T]."""
    known = ~np.isnan(scores)
    above = (scores[known][:, None] > THRESHOLDS).astype(float)
    with np.errstate(invalid="ignore"):
        return np.asarray(weights[:, known] @ above / weights[:, known].sum(axis=1, keepdims=True))


# ---------------------------------------------------------------------------------------------------------------
# Of a comparison


def _ends(entry: Entry) -> Floats:
    """Rewards at the end of the budget, [S, N]."""
    return entry.values("reward")[:, -1]


def _resampled(entry: Entry, prompts: Weights) -> Iterator[Weights]:
    """How often each score of a seed and prompt is counted, [R, S N], some resamples at a time."""
    for start in range(0, len(prompts), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        yield np.einsum("rs,rn->rsn", entry.seed_weights[rows], prompts[rows]).reshape(len(prompts[rows]), -1)


def _alike(n: int) -> Weights:
    return np.full((1, n), 1.0)


def iqm(entry: Entry, prompts: Weights) -> Estimate:
    """Of the rewards at the end of the budget."""
    scores = _ends(entry).ravel()
    drawn = np.concatenate([interquartile_mean(scores, weights) for weights in _resampled(entry, prompts)])
    return stats.estimate(float(interquartile_mean(scores, _alike(len(scores)))[0]), drawn)


def improvement_over(entry: Entry, other: Entry, prompts: Weights) -> Estimate:
    """Of the rewards at the end of the budget."""
    entry, other = same_seeds(entry, other)
    ours, theirs = _ends(entry), _ends(other)
    observed = improvement(ours, theirs, (_alike(len(ours)), _alike(len(theirs)), _alike(ours.shape[1])))
    return stats.estimate(
        float(observed[0]), improvement(ours, theirs, (entry.seed_weights, other.seed_weights, prompts))
    )


def profiles(compared: Comparison) -> pd.DataFrame:
    """A row an entry and threshold: the share of scores at the end of the budget above it, with its _low and _high."""
    rows = []
    for entry in compared.entries:
        scores = _ends(entry).ravel()
        drawn = np.concatenate([profile(scores, weights) for weights in _resampled(entry, compared.prompt_weights)])
        observed = profile(scores, _alike(len(scores)))[0]
        for i, threshold in enumerate(THRESHOLDS.tolist()):
            share = stats.estimate(float(observed[i]), drawn[:, i])
            row = {"label": entry.label, "threshold": threshold, "share": share.mean}
            rows.append(row | {"share_low": share.low, "share_high": share.high})
    return pd.DataFrame(rows)
