"""Finished runs -> one table of their evaluation points, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from gdro_bench import stats
from gdro_bench.comparison.entries import Entry, LoadedRun, label_of, load
from gdro_bench.comparison.tables.costs import curve_table


def of(folders: Sequence[Path]) -> pd.DataFrame:
    """A row for every evaluation point of the finished runs in these folders; the columns are told at
    `gdro_bench.runs`.

    Raises:
        BenchError: one is not finished, or cannot be read.
    """
    return pd.concat([_of_run(load(folder)) for folder in folders], ignore_index=True)


def _of_run(loaded: LoadedRun) -> pd.DataFrame:
    run = loaded.run
    curve = curve_table([Entry(label_of(run), (loaded,))], stats.draws_of(loaded.prompts, seed=0))
    changed = ", ".join(setting.removeprefix("method.") for setting in run.changed)
    told: dict[str, object] = {"task": run.task, "profile": run.profile, "method": run.method, "changed": changed}
    told |= {"seed": run.seed, "budget": run.limit}
    curve = curve.drop(columns=["label", "seed"]).assign(folder=str(loaded.folder))
    for place, (name, value) in enumerate(told.items()):
        curve.insert(place, name, value)
    return curve
