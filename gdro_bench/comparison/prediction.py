"""How well figures that any world has predict the gold score, which only a known world has.

A checkpoint is a seed's evaluation point after an update, and the base once. Over all checkpoints of all runs, also
those of ablations, Spearman's rank correlation of each figure with gold: 1 orders checkpoints as gold does. A run's
checkpoints depend on each other, so whole runs are drawn anew, besides prompts.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd

from gdro_bench import stats
from gdro_bench.comparison.entries import Comparison, Entry, Floats, parts_of
from gdro_bench.comparison.matched import with_replicates
from gdro_bench.score import BY_ERROR
from gdro_bench.stats import Estimate

CONSTANT = 1e-6  # below it ranks do not spread: they are whole or half


def rank_correlations(compared: Comparison, wanted: Collection[str] | None = None) -> tuple[int, dict[str, Estimate]]:
    """The number of checkpoints, and name of figure -> its rank correlation with gold, with 95 % intervals over runs
    and prompts, of all figures or of those `wanted`; none where there is no gold score or it never changes. Runs
    without a gold score do not count."""
    runs = [Entry(entry.label, (run,)) for entry in compared.all_entries for run in entry.runs if "gold" in run.parts]
    if not runs:
        return 0, {}
    parts = parts_of(runs)
    gold, drawn = _checkpoints(runs, "gold", compared.prompts), _drawn(runs)
    if not np.ptp(gold[0]) > 0:  # constant, or not known
        return 0, {}
    names = ["reward", *(name for name in parts if name != "gold" and not name.startswith(BY_ERROR))]
    names = [name for name in names if wanted is None or name in wanted]
    correlations = {name: _spearman(_checkpoints(runs, name, compared.prompts), gold, drawn) for name in names}
    return gold.shape[1], {name: stats.estimate(float(rho[0]), rho[1:]) for name, rho in correlations.items()}


def _checkpoints(runs: list[Entry], part: str, prompts: stats.Weights) -> Floats:
    """As observed, then resampled: [1 + R, checkpoints]."""
    columns = [with_replicates(run, prompts, part)[:, _of(run, i)] for i, run in enumerate(runs)]
    stacked: Floats = np.hstack(columns)
    return stacked


def _of(run: Entry, i: int) -> list[int]:
    """The indices of the i-th run's checkpoints; the base, which all runs share, is the first one's."""
    return [j for j, point in enumerate(run.points) if point.updates or (j == 0 and i == 0)]


def _drawn(runs: list[Entry]) -> Floats:
    """How often each checkpoint counts, [1 + R, checkpoints]: once as observed, then as often as its run was drawn. A
    run alone is drawn always."""
    times = np.vstack((np.ones(len(runs)), len(runs) * stats.draws(len(runs), seed=1)))
    counts: Floats = np.repeat(times, [len(_of(run, i)) for i, run in enumerate(runs)], axis=1)
    return counts


def _spearman(x: Floats, y: Floats, counts: Floats) -> Floats:
    """Row by row, [1 + R] of [1 + R, C], every checkpoint counted so often; NaN where one of the two is constant.
    Rounded first, or rounding errors would break ties."""
    ranks = [pd.DataFrame(values.round(9)).rank(axis=1).to_numpy() for values in (x, y)]
    means = [(rank * counts).sum(axis=1, keepdims=True) / counts.sum(axis=1, keepdims=True) for rank in ranks]
    a, b = (rank - mean for rank, mean in zip(ranks, means, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt((counts * a**2).sum(axis=1) * (counts * b**2).sum(axis=1))
        rho: Floats = (counts * a * b).sum(axis=1) / np.where(spread > CONSTANT, spread, np.nan)
    return rho
