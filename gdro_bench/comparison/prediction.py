"""How well figures that any world has predict the gold score, which only a known world has.

A checkpoint is a seed's evaluation point after an update, and the base once. Over all checkpoints of all runs, also
those of ablations, Spearman's rank correlation of each figure with gold: 1 orders checkpoints as gold does. A run's
checkpoints depend on each other, and the seeds of one method with one set of settings go the same way, so it is these
entries that are drawn anew, each with all its runs. Prompts are not: their noise, which is in the observed means
already, would come in a second time and pull every correlation to 0.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd

from gdro_bench import stats
from gdro_bench.comparison.entries import Comparison, Entry, Floats, parts_of
from gdro_bench.score import BY_ERROR
from gdro_bench.stats import Estimate

ENOUGH = 5  # entries, for an interval over them
CONSTANT = 1e-6  # below it ranks do not spread: they are whole or half


def rank_correlations(compared: Comparison, wanted: Collection[str] | None = None) -> tuple[int, dict[str, Estimate]]:
    """The number of checkpoints, and name of figure -> its rank correlation with gold, with 95 % intervals over entries
    (none of fewer than `ENOUGH`), of all figures or of those `wanted`; none where there is no gold score or it never
    changes. Runs without a gold score do not count."""
    seen = seen_by_gold(compared)
    runs = [Entry(entry.label, (run,)) for entry in seen for run in entry.runs]
    if not runs:
        return 0, {}
    gold, counts = _checkpoints(runs, "gold"), _drawn(runs, [len(entry.runs) for entry in seen])
    if not np.ptp(gold) > 0:  # constant, or not known
        return 0, {}
    names = ["reward", *(name for name in parts_of(runs) if name != "gold" and not name.startswith(BY_ERROR))]
    names = [name for name in names if wanted is None or name in wanted]
    correlations = {name: _spearman(_checkpoints(runs, name), gold, counts) for name in names}
    return len(gold), {name: _estimate(rho, len(seen)) for name, rho in correlations.items()}


def seen_by_gold(compared: Comparison) -> list[Entry]:
    """All entries, those of ablations too, with the runs of theirs that gold has seen."""
    seen = {entry.label: tuple(run for run in entry.runs if "gold" in run.parts) for entry in compared.all_entries}
    return [Entry(label, runs) for label, runs in seen.items() if runs]


def _estimate(rho: Floats, drawn: int) -> Estimate:
    """Of correlations [1 + R] over so many entries, the first as observed."""
    return stats.estimate(float(rho[0]), rho[1:] if drawn >= ENOUGH else np.full(1, np.nan))


def _checkpoints(runs: list[Entry], part: str) -> Floats:
    """A part's means, [checkpoints]."""
    means: Floats = np.concatenate([run.mean(part)[_of(run, i)] for i, run in enumerate(runs)])
    return means


def _of(run: Entry, i: int) -> list[int]:
    """The indices of the i-th run's checkpoints; the base, which all runs share, is the first one's."""
    return [j for j, point in enumerate(run.points) if point.updates or (j == 0 and i == 0)]


def _drawn(runs: list[Entry], of_entry: list[int]) -> Floats:
    """How often each checkpoint counts, [1 + R, checkpoints]: once as observed, then as often as its entry was drawn.
    of_entry: how many of the runs each entry has."""
    drawn = len(of_entry) * stats.draws_of_few(len(of_entry), seed=1)
    times = np.repeat(np.vstack((np.ones(len(of_entry)), drawn)), of_entry, axis=1)
    counts: Floats = np.repeat(times, [len(_of(run, i)) for i, run in enumerate(runs)], axis=1)
    return counts


def _spearman(x: Floats, y: Floats, counts: Floats) -> Floats:
    """Of [C] and [C], every checkpoint counted so often, [1 + R, C]: [1 + R]; NaN where one of the two is constant.
    Rounded first, or rounding errors would break ties."""
    ranks = [pd.Series(values.round(9)).rank().to_numpy() for values in (x, y)]
    means = [(rank * counts).sum(axis=1, keepdims=True) / counts.sum(axis=1, keepdims=True) for rank in ranks]
    a, b = (rank - mean for rank, mean in zip(ranks, means, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt((counts * a**2).sum(axis=1) * (counts * b**2).sum(axis=1))
        rho: Floats = (counts * a * b).sum(axis=1) / np.where(spread > CONSTANT, spread, np.nan)
    return rho
