"""Makes a folder of this one from finished runs: their records, of their pictures those that grids show, the report.

    python reports/keep.py ocr-pocket runs/main/ocr/pocket/*

Without runs it writes the report again, from the records that are kept.
"""

import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from gdro_bench.comparison import entries, matched, report, searches
from gdro_bench.comparison.entries import Comparison
from gdro_bench.comparison.grids import grids
from gdro_bench.engine import samples
from gdro_bench.engine.tuning import tuned

HERE = Path(__file__).parent
RECORDS = ("run.json", "scores.parquet", "judged.parquet", "steps.parquet")
FIGURES = ("reward.png", "errors.png", "grid-judged.png")


def compared(folders: list[Path]) -> Comparison:
    return entries.compare([entries.load(folder) for folder in folders], variants=True)


def keep(folders: list[Path], runs: Path) -> None:
    """Records, and the pictures that a report of all these runs shows."""
    found = compared(folders)
    level = matched.common_level(found)
    at_reward = [] if level is None else matched.at_reward(found, level, "evaluations")
    shown = defaultdict[Path, set[int]](set)
    for grid in grids(found, at_reward):
        for path in grid.sources.values():
            shown[path] |= set(grid.numbers)
    for folder in folders:
        kept = runs / folder.name
        shutil.rmtree(kept, ignore_errors=True)
        (kept / "samples").mkdir(parents=True)
        for name in RECORDS:
            shutil.copy(folder / name, kept / name)
        for path, numbers in shown.items():
            if path.is_relative_to(folder):
                wanted = sorted(numbers)
                samples.write(kept / path.relative_to(folder), samples.read(path, wanted), wanted)


def write(folder: Path) -> None:
    """The report of the runs that are kept, with the figures that a text shows."""
    found = compared(sorted(path.parent for path in (folder / "runs").rglob("run.json")))
    searched = searches.of(found, tuned.find(HERE / "search"))
    with tempfile.TemporaryDirectory() as out:
        report.write(found, Path(out), "evaluations", None, searched=searched)
        for name in ("report.md", *FIGURES):
            if (Path(out) / name).exists():
                shutil.copy(Path(out) / name, folder / name)


if __name__ == "__main__":
    name, *runs = sys.argv[1:]
    if runs:
        keep([Path(run) for run in runs], HERE / name / "runs")
    write(HERE / name)
