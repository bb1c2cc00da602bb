"""`compare`: finished runs -> a report for every task and profile."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from gdro_bench.commands import summary
from gdro_bench.compare import entries, report


def execute(
    console: Console,
    folders: tuple[Path, ...],
    runs: Path,
    out: Path | None,
    axis: str,
    level: float | None,
    reference: str | None,
) -> None:
    """Writes the reports and prints their headlines; says which unfinished runs were left out.

    Raises:
        BenchError: there is nothing to compare, or a named folder is of no use.
    """
    groups, unfinished = entries.groups(folders, runs)
    for group in groups:
        compared = entries.compare(group, bool(folders), reference)
        folder = (out or runs / "compare") / f"{compared.first.task}-{compared.first.profile}"
        summary.print_comparison(console, *report.write(compared, folder, axis, level), folder)
    for folder in unfinished:
        console.print(f"Left out, unfinished: {folder}", soft_wrap=True, markup=False)
