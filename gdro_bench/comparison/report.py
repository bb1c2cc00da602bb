"""A comparison -> tables, figures, grids and a page. Everything written is a function of the records and pictures."""

from __future__ import annotations

import math
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from gdro_bench import figures
from gdro_bench.comparison import drawings, matched, page, prediction
from gdro_bench.comparison.entries import Comparison
from gdro_bench.comparison.grids import grids
from gdro_bench.comparison.headlines import headlines
from gdro_bench.comparison.searches import NOT_GIVEN, Searches
from gdro_bench.comparison.tables.costs import columns_of, curve_table, cut_table, reward_table, time_table
from gdro_bench.comparison.tables.doubts import doubt_table
from gdro_bench.comparison.tables.ends import (
    budget_table,
    own_parts_table,
    prediction_table,
    quality_table,
    robust_table,
    short_table,
    verdict_table,
)
from gdro_bench.comparison.tables.errors import error_difference_table, error_table
from gdro_bench.comparison.tables.table import Table, csv_bytes
from gdro_bench.comparison.tables.words import tested_on
from gdro_bench.engine import record
from gdro_bench.errors import BenchError
from gdro_bench.files import write_atomically

LISTED = "files.txt"  # of a report's folder: what it wrote there


def write(
    compared: Comparison,
    out: Path,
    axis: str,
    level: float | None,
    remark: str = "",
    searched: Searches | None = None,
    people: Table | None = None,
) -> tuple[list[str], Table]:
    """Writes the whole report and returns its headlines and the table in short.

    Args:
        axis: a key of `AXES`, what cost is counted in. level: R*; the common one if None. remark: the first headline,
            if there is one. searched: what the methods' settings cost to find, if that is to be told. people: what they
            prefer, if they were asked.

    Raises:
        BenchError: cost is to be counted in seconds, and a run's were not kept; or no method reaches the level.
    """
    _check_axis(compared, axis)
    level = matched.common_level(compared) if level is None else _reached(compared, level)
    at_reward = [] if level is None else matched.at_reward(compared, level, axis)
    at_budget = matched.at_budget(compared)
    errors = error_table(compared)
    tables = _tables(compared, axis, level, at_reward, at_budget, errors)
    tables += [people] if people is not None else []
    tables += [searched.table(compared.entries)] if searched is not None else []
    sentences = [*([remark] if remark else []), *headlines(compared, at_budget, level, axis)]
    curves = curve_table(compared.entries, compared.prompt_weights)
    if searched is not None:
        tables = list(map(searched.titled, tables))
    if searched is not None or len({entry.method for entry in compared.entries}) > 1:
        sentences.insert(1 if remark else 0, searched.sentence if searched is not None else NOT_GIVEN)
    with _replaced(out) as new:
        drawn = drawings.draw(compared, curves, new, axis, level, at_reward, errors)
        pictures = grids(compared, at_reward)
        for grid in pictures:
            figures.sample_sheet(new / f"grid-{grid.name}", grid.columns, grid.captions, grid.prompts)
        _write_text(new, tables, curves, sentences)
        told = (_runs(compared), tested_on(compared.first))
        html = page.render(_title(compared), sentences, tables, drawn, pictures, *told)
        write_atomically(new / "page.html", html.encode())
    return sentences, tables[0]


def _reached(compared: Comparison, level: float) -> float:
    """Raises:
    BenchError: no method's curve gets there."""
    highest = max(float(np.nanmax(entry.mean("reward"), initial=-math.inf)) for entry in compared.entries)
    if level > highest:
        raise BenchError(f"No method reaches a reward of {level:g}: the highest is {highest:.3f}.", "Lower --level.", 2)
    return level


@contextmanager
def _replaced(out: Path) -> Iterator[Path]:
    """A new folder, whose files take the place of those that an earlier report left in `out`. Others stay there."""
    listed = out / LISTED
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        yield Path(folder)
        old = set(listed.read_text(encoding="utf-8").splitlines()) if listed.exists() else set()
        new = {path.name for path in Path(folder).iterdir()}
        for name in old - new:
            if name == Path(name).name:  # whoever wrote the list
                (out / name).unlink(missing_ok=True)
        write_atomically(listed, "".join(f"{name}\n" for name in sorted(old | new)).encode())
        for name in new:
            os.replace(Path(folder) / name, out / name)
        write_atomically(listed, "".join(f"{name}\n" for name in sorted(new)).encode())


def _tables(
    compared: Comparison,
    axis: str,
    level: float | None,
    at_reward: Sequence[matched.AtReward],
    at_budget: Sequence[matched.AtBudget],
    errors: Table | None,
) -> list[Table]:
    """What the runs alone tell, the table in short first."""
    at_level = None if level is None else reward_table(compared, at_reward, level, axis)
    verdicts = (verdict_table(compared), doubt_table(compared))
    of_parts = (errors, error_difference_table(compared), *verdicts, own_parts_table(compared))
    made = [short_table(compared, at_reward, at_budget), at_level, budget_table(compared, at_budget)]
    made += [
        quality_table(compared),
        cut_table(compared, at_reward, axis),
        time_table(compared, axis),
        *of_parts,
        robust_table(compared),
        *_predictions(compared),
    ]
    return [table for table in made if table is not None]


def _predictions(compared: Comparison) -> list[Table]:
    """What predicts gold, if that can be told of anything."""
    checkpoints, correlations = prediction.rank_correlations(compared)
    told = any(not math.isnan(rho.low) for rho in correlations.values())
    return [prediction_table(compared, checkpoints, correlations)] if told else []


def _check_axis(compared: Comparison, axis: str) -> None:
    for run in (run for entry in compared.entries for run in entry.runs):
        if axis == "seconds" and any(math.isnan(s) for point in run.seconds for s in point.values()):
            raise BenchError(
                f"{run.folder} does not say how many seconds it took: it has no timing.json.",
                "Give another --x: evaluations, images or updates.",
            )


def _title(compared: Comparison) -> str:
    run, labels = compared.first, defaultdict[str, list[str]](list)
    for entry in compared.entries:
        labels[entry.method].append(entry.label)
    methods = [of[0] if len(of) == 1 else f"{method} ({len(of)} variants)" for method, of in labels.items()]
    return f"{run.task} on {run.profile}: {', '.join(methods)}"


def _write_text(out: Path, tables: Sequence[Table], curves: pd.DataFrame, sentences: Sequence[str]) -> None:
    write_atomically(out / "curves.csv", csv_bytes(curves))
    write_atomically(out / "columns.csv", csv_bytes(columns_of(curves)))
    parts = ["\n".join(f"- {sentence}" for sentence in sentences) + "\n"]
    for table in tables:
        write_atomically(out / f"{table.name}.csv", csv_bytes(table.numbers))
        write_atomically(out / f"{table.name}.md", table.markdown().encode())
        write_atomically(out / f"{table.name}.tex", table.latex().encode())
        parts.append(f"## {table.title}\n\n{table.markdown()}")
    write_atomically(out / "report.md", "\n".join(parts).encode())


def _runs(compared: Comparison) -> list[page.RunRow]:
    return [
        page.RunRow(entry.label, loaded.run.seed, loaded.run.digests["method"], record.command(loaded.run))
        for entry in compared.all_entries
        for loaded in entry.runs
    ]
