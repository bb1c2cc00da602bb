"""`claims`: finished runs and rules -> a page of verdicts for every profile."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from gdro_bench import content
from gdro_bench.comparison import entries, grouping
from gdro_bench.comparison.claims import page, rules, verdicts
from gdro_bench.engine.tuning import tuned


def execute(
    console: Console,
    folders: tuple[Path, ...],
    runs: Path,
    out: Path | None,
    path: Path | None,
    searched: Path | None = None,
) -> None:
    """Writes the pages and prints every verdict.

    Raises:
        BenchError: there are no finished runs, the rules are of no use, or there is no search where one was named.
    """
    read, digest = rules.load(path or rules.OWN)
    searches = [] if searched is None else tuned.find(searched)
    groups = grouping.apart([entries.load(folder) for folder in entries.finished(folders, runs)])
    for profile in sorted({group.runs[0].run.profile for group in groups}):
        judged = verdicts.judge(read, [group for group in groups if group.runs[0].run.profile == profile], searches)
        folder = (out or runs / "claims") / content.safe_name(profile)
        page.write(judged, folder, f"Claims, judged on {profile}", digest, read.seeds)
        for verdict in judged:
            console.print(f"- {verdict.told}: {verdict.claim.says}", soft_wrap=True, markup=False)
        console.print(
            f"Page: {folder / 'claims.html'} (Markdown, figure and data beside it)", soft_wrap=True, markup=False
        )
