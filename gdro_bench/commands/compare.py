"""`compare`: finished runs -> a report for every task and profile, and for every setting that keeps runs apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from gdro_bench.commands import summary
from gdro_bench.comparison import entries, grouping, report, searches
from gdro_bench.comparison.study import answers, pairs
from gdro_bench.comparison.tables.table import Table
from gdro_bench.engine.tuning import tuned as tuning
from gdro_bench.errors import BenchError, unknown


def _of_these(compared: entries.Comparison, asked: pairs.Study, told: Table) -> Table | None:
    """What people prefer, if it was these runs that they saw."""
    return told if pairs.runs_of(compared, list(asked.marks)) == asked.runs else None


def _check(names: Mapping[str, str], groups: Sequence[grouping.Group]) -> None:
    runs = [loaded.run for group in groups for loaded in group.runs]
    known = {name for run in runs for name in (entries.label_of(run), run.method)}
    for label in names:
        if label not in known:
            raise unknown("method to name called", label, known)


def execute(
    console: Console,
    folders: tuple[Path, ...],
    runs: Path,
    out: Path | None,
    axis: str,
    level: float | None,
    reference: str | None,
    tuned: Path | None = None,
    study: Path | None = None,
    names: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes the reports, prints their headlines and returns their folders; says which runs were left out or apart.
    `names` are what methods are called in them: label -> name.

    Raises:
        BenchError: there is nothing to compare, a named folder is of no use, the level is no number, or a method that
            is named is not there.
    """
    if level is not None and not math.isfinite(level):
        raise BenchError(f"--level is {level}.", "Give a reward, such as --level 0.8.", 2)
    found = None if tuned is None else tuning.find(tuned)
    people = None if study is None else answers.kept(study)
    groups, unfinished = grouping.groups(folders, runs)
    reports, shown = [], False
    _check(names or {}, groups)
    for group in groups:
        lacks_it = group.remark and reference not in [entries.label_of(loaded.run) for loaded in group.runs]
        compared = entries.compare(group.runs, bool(folders), None if lacks_it else reference)
        folder = (out or runs / "compare") / group.name
        reports.append(folder)
        called = entries.named(compared, names or {})
        searched = None if found is None else searches.of(called, found)
        asked = None if people is None else _of_these(compared, *people)
        shown |= asked is not None
        written = report.write(called, folder, axis, level, group.remark, searched, asked)
        summary.print_comparison(console, *written, folder)
    if study is not None and not shown:
        console.print(f"The study in {study} is of other runs: it is in no report.", soft_wrap=True, markup=False)
    for folder in unfinished:
        console.print(f"Left out, unfinished: {folder}", soft_wrap=True, markup=False)
    return reports
