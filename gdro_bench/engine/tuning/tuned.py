"""What came of a search: `tune.json` beside its trials, which knows each trial from the trial's own folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdro_bench.engine.record import Run
from gdro_bench.errors import BenchError
from gdro_bench.stats import Estimate

SCHEMA = 1
FILE = "tune.json"


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial: the settings that were searched, the digest of all of the method's, and what came out.

    `value` is the reward on the tuning prompts when the budget was spent, `gain` that over the first trial, paired by
    prompt and noise. A trial that failed has neither, and its sentence in `failure`; it has spent at least
    `evaluations`. What is not known is None.
    """

    number: int
    settings: dict[str, Any]
    digest: str
    value: Estimate | None
    gain: Estimate | None
    failure: str
    updates: int | None
    evaluations: int | None  # the pool's included
    pool_evaluations: int | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Tuned:
    """A search that has ended. `best` is the number of the trial with the highest value, None if all failed;
    `evaluations` and `seconds` are what all trials spent, as far as it is known."""

    schema: int
    version: str
    task: str
    profile: str
    method: str
    seed: int
    budget_kind: str
    budget: int
    space: dict[str, dict[str, Any]]
    trials: tuple[Trial, ...]
    best: int | None
    failed: int
    evaluations: int
    seconds: float
    importance: dict[str, float] | None
    no_importance: str  # why there is none


def find(folder: Path) -> list[Tuned]:
    """All searches under a folder.

    Raises:
        BenchError: there is none, or one is damaged.
    """
    paths = sorted(folder.rglob(FILE))
    if not paths:
        raise BenchError(f"There is no {FILE} in {folder}.", "Give the --out of gdro-bench tune, and finish it first.")
    return [read(path) for path in paths]


def read(path: Path) -> Tuned:
    """Raises:
    BenchError: the file is damaged or of another schema."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["schema"] != SCHEMA:
            raise BenchError(f"{path} has schema {table['schema']}, not {SCHEMA}.", "Type its tune command again.")
        return Tuned(**table | {"trials": tuple(_trial(one) for one in table["trials"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BenchError(
            f"{path} is damaged: {type(error).__name__}: {str(error)[:120]}.",
            "Type its tune command again: finished trials are kept, and it is written anew.",
        ) from error


def _trial(table: Mapping[str, Any]) -> Trial:
    estimates = {name: Estimate(**table[name]) if table[name] else None for name in ("value", "gain")}
    return Trial(**{**table, **estimates})


def trial_of(tuned: Tuned, run: Run) -> Trial | None:
    """The trial whose settings a run has; the best one of them."""
    same = [one for one in tuned.trials if one.digest == run.digests["method"]]
    return next((one for one in same if one.number == tuned.best), same[0] if same else None)
