"""The run record: all that reports are made from. Wall-clock times live beside it, so that records can be compared."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

from gdro_bench import content
from gdro_bench.errors import BenchError, first_line
from gdro_bench.files import strict_json, write_atomically
from gdro_bench.stats import Estimate

SCHEMA = 3
EXECUTION = (  # settings of a profile that say how the work is done: they move no number by more than rounding
    "score_ahead",
    "keep_adapters",
    "health",
    "health.prompts",
    "health.judge",
    "health.kl_limit",
    "pretrained.gradient_checkpointing",
    "pretrained.compiled",
    "pretrained.sharded",
    "pretrained.text_cache",
)
LATER = ("judge.name", "judge.gold", "judge.second_reader", "judge.url", "judge.model", "reader.workers")
# settings that move nothing in the record: judges come after it, and any number of processes reads the same
SCORE_COLUMNS = ("mark", "prompt", "text", "value", "note")  # of scores.parquet; the others are parts


@dataclass(frozen=True, slots=True)
class Point:
    """An evaluation at a mark. `gain` is against the base at equal prompts and noise; `parts` are means.

    `pool_evaluations` and `pool_images` are the parts of what was collected that went into a pool.
    """

    mark: float  # share of the budget
    updates: int
    pool_evaluations: int
    collection_evaluations: int
    optimisation_evaluations: int
    pool_images: int
    images_sampled: int
    images_trained: int
    reward_calls: int
    reward: Estimate
    gain: Estimate
    unscored: int
    parts: dict[str, float]

    @property
    def evaluations(self) -> int:
        return self.collection_evaluations + self.optimisation_evaluations


@dataclass(frozen=True, slots=True)
class Run:
    """What was run (every setting and digest, and which settings the command line `changed`) and what came out."""

    schema: int
    version: str
    task: str
    profile: str
    method: str
    seed: int
    settings: dict[str, Any]
    changed: tuple[str, ...]
    digests: dict[str, str]
    instruments: dict[str, str]
    budget_kind: str
    limit: int
    points: tuple[Point, ...]


def identity_settings(profile: dict[str, Any]) -> dict[str, Any]:
    """A profile's settings as far as runs must agree in them to share a figure or a folder."""
    return content.without(profile, (*EXECUTION, *LATER))


def moves_results(setting: str) -> bool:
    """Whether a setting, `profile.budget.limit`, can move a number of the record by more than rounding."""
    return setting.removeprefix("profile.") not in (*EXECUTION, *LATER)


def write(run: Run, folder: Path) -> None:
    """Writes run.json, last and atomically: a folder with it is a finished run."""
    write_atomically(folder / "run.json", strict_json(dataclasses.asdict(run), sort=True))


def read(folder: Path) -> Run:
    """The record of a finished run.

    Raises:
        BenchError: there is none, or it has another schema version.
    """
    return read_file(folder / "run.json")


def read_file(path: Path) -> Run:
    """The record in a file.

    Raises:
        BenchError: it is missing or damaged, or has another schema version.
    """
    if not path.exists():
        raise BenchError(f"{path.parent} has no run record.", "Finish the run first: type its command again.")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        schema = table["schema"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _damaged(path, error) from error
    if schema not in (2, SCHEMA):
        raise BenchError(f"{path} has schema {schema}, not {SCHEMA}.", "Run it again with this version.")
    try:
        table = _of_schema_2(table) if schema == 2 else table
        points = tuple(point_from(point) for point in table["points"])
        run = Run(**table | {"points": points, "changed": tuple(table["changed"])})
        _check(run)
    except (AttributeError, TypeError, KeyError, ValueError, BenchError) as error:
        raise _damaged(path, error) from error
    return run


def _check(run: Run) -> None:
    """A record may be anybody's.

    Raises:
        TypeError, KeyError: it lacks what all have.
    """
    tables = (run.settings, run.settings["profile"], run.settings["method"], run.digests, run.instruments)
    texts = (run.task, run.profile, run.method, run.digests["method"], run.instruments["reward"], *run.changed)
    if not all(isinstance(table, dict) for table in tables) or not all(isinstance(text, str) for text in texts):
        raise TypeError("its settings, digests or names are of another kind")
    if not run.points:
        raise KeyError("points")


def _of_schema_2(table: dict[str, Any]) -> dict[str, Any]:
    """A record from when a pool did not follow its run's seed, in today's terms: all seeds shared the pool of
    `pool.seed`, which is a seed's own where both are equal."""
    seed, method, changed = table["seed"], copy.deepcopy(table["settings"]["method"]), table["changed"]
    pool = method.get("pool") if method.get("mode", "offline") == "offline" else None
    if pool and seed and pool["seed"] == seed:
        pool["seed"], changed = 0, [setting for setting in changed if not setting.startswith("method.pool.seed=")]
    elif pool and seed:
        pool["shared"], changed = True, [*changed, "method.pool.shared=true"]
    digests = table["digests"] | ({"method": content.digest(method)} if pool and seed else {})
    settings = table["settings"] | {"method": method}
    return table | {"schema": SCHEMA, "settings": settings, "changed": changed, "digests": digests}


def _damaged(path: Path, error: Exception) -> BenchError:
    return BenchError(
        f"The record {path} is damaged: {type(error).__name__}: {str(error)[:120]}.",
        "Delete that folder and run it again (its pool is kept), or restore the file.",
    )


def point_from(table: dict[str, Any]) -> Point:
    """An evaluation point as a record's JSON has it, null for numbers that are not known.

    Raises:
        BenchError: it lacks a field, or one is of another type.
    """
    return content.build(Point, _with_nan(table), "a point of the record")


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_nan(item) for name, item in value.items()}
    return math.nan if value is None else value


def read_scores(folder: Path) -> pd.DataFrame:
    """Scores of every held-out prompt at every mark: columns mark, prompt, text, value, note and parts.

    Raises:
        BenchError: the table is missing or damaged.
    """
    import pandas as pd  # here, because whoever only reads a record need not wait for it

    path = folder / "scores.parquet"
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise BenchError(
            f"The scores {path} cannot be read: {first_line(error)}.",
            "Delete that folder and run it again (its pool is kept), or restore the file.",
        ) from error


def command(run: Run) -> str:
    """What repeats a run. A record knows its own prompts by their digest only: the file has to be filled in."""
    options, remark = [], ""
    for setting in run.changed:
        name, _, value = setting.partition("=")
        if name in ("prompts", "train_prompts"):
            options.append(f"--{name.replace('_', '-')} FILE")
            remark += f"  # FILE: the {name} with digest {value}"
        else:
            options.append(f"--set {shlex.quote(setting)}")
    task, profile, method = map(shlex.quote, (run.task, run.profile, run.method))
    start = f"gdro-bench run {task} --profile {profile} --method {method} --seed {run.seed}"
    return " ".join([start, *options]) + remark
